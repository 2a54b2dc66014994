"""DAGs that use the dates of their runs, which no day but 29 February starts by itself."""

# pyright: reportMissingImports=false

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

from airflow.decorators import dag, task

log = logging.getLogger(__name__)


@task
def log_dates(dates: str) -> None:
    log.info("dates: %s", dates)


def add_dag(dag_id: str, schedule: Any) -> None:
    @dag(
        dag_id, schedule=schedule, start_date=datetime(2026, 1, 1), catchup=False, tags=["contract"]
    )
    def build() -> None:
        log_dates("{{ ds }} {{ ts }} {{ data_interval_start | ts }} {{ data_interval_end | ts }}")

    build()


add_dag("dated", None)
add_dag("dated_by_cron", "0 3 29 2 *")
