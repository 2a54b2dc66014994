"""A DAG that does not end before somebody stops it."""

# pyright: reportMissingImports=false, reportUnusedExpression=false

from __future__ import annotations

import logging
import os
import time
from datetime import datetime

from airflow.decorators import dag, task
from airflow.operators.empty import EmptyOperator

log = logging.getLogger(__name__)


@dag(schedule=None, start_date=datetime(2026, 1, 1), catchup=False, tags=["contract"])
def endless() -> None:
    @task
    def wait() -> None:
        log.info("waiting in process %d", os.getpid())
        time.sleep(600)

    wait() >> EmptyOperator(task_id="go_on")


endless()
