"""A DAG with one mapped task."""

# pyright: reportMissingImports=false, reportFunctionMemberAccess=false

from __future__ import annotations

import logging
from datetime import datetime

from airflow.decorators import dag, task
from airflow.operators.python import get_current_context

log = logging.getLogger(__name__)


@dag(schedule=None, start_date=datetime(2026, 1, 1), catchup=False, tags=["contract"])
def mapped() -> None:
    @task(map_index_template="{{ label }}")
    def weigh(number: int) -> None:
        get_current_context()["label"] = f"number {number}"
        log.info("weighing number %d", number)

    weigh.expand(number=[10, 20, 30])


mapped()
