"""A DAG that updates an asset, and one that its updates start: two DAGs of one file."""

# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

from airflow.sdk import Asset, dag, task

NUMBERS = Asset("numbers", uri="x-contract://lake/numbers", group="lake", extra={"owner": "Zoë"})


@dag(schedule=None, tags=["contract"])
def write_numbers() -> None:
    @task(outlets=[NUMBERS])
    def write(*, outlet_events: Any = None) -> None:
        outlet_events[NUMBERS].extra = {"rows": 3, "place": "Zürich"}

    write()


@dag(schedule=[NUMBERS], tags=["contract"])
def read_numbers() -> None:
    @task
    def read() -> None: ...

    read()


write_numbers()
read_numbers()
