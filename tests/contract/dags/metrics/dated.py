"""DAGs that use the dates of their runs, which no day but 29 February starts by itself."""

# pyright: reportMissingImports=false

from __future__ import annotations

import logging
from typing import Any

from airflow.sdk import CronDataIntervalTimetable, dag, task

log = logging.getLogger(__name__)


@task
def log_dates(dates: str) -> None:
    log.info("dates: %s", dates)


def add_dag(dag_id: str, schedule: Any) -> None:
    @dag(dag_id, schedule=schedule, catchup=False, tags=["contract"])
    def build() -> None:
        log_dates("{{ ds }} {{ ts }} {{ data_interval_start | ts }} {{ data_interval_end | ts }}")

    build()


add_dag("dated", None)
add_dag("dated_by_cron", "0 3 29 2 *")
add_dag("dated_by_interval", CronDataIntervalTimetable("0 3 29 2 *", timezone="UTC"))
