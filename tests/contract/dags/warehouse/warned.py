"""A DAG that Airflow 2 has something against: there is no such pool."""

# pyright: reportMissingImports=false

from __future__ import annotations

from datetime import datetime

from airflow.decorators import dag, task


@dag(schedule=None, start_date=datetime(2026, 1, 1), catchup=False, tags=["contract"])
def warned() -> None:
    @task(pool="no_such_pool")
    def wait_for_ever() -> None: ...

    wait_for_ever()


warned()
