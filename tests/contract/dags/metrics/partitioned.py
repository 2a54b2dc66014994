"""A DAG whose runs have partition keys; no day but 29 February starts it by itself."""

# pyright: reportMissingImports=false

from __future__ import annotations

from airflow.sdk import CronPartitionTimetable, dag, task


@dag(
    schedule=CronPartitionTimetable("0 0 29 2 *", timezone="UTC", key_format="%Y-%m-%d"),
    catchup=False,
    tags=["contract"],
)
def partitioned() -> None:
    @task
    def load() -> None: ...

    load()


partitioned()
