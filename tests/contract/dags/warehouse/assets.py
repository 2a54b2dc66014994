"""A DAG that updates a dataset, and one that its updates start: two DAGs of one file."""

# pyright: reportMissingImports=false

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.datasets import Dataset
from airflow.decorators import dag, task

NUMBERS = Dataset("x-contract://lake/numbers", extra={"owner": "Zoë"})


@dag(schedule=None, start_date=datetime(2026, 1, 1), catchup=False, tags=["contract"])
def write_numbers() -> None:
    @task(outlets=[NUMBERS])
    def write(*, outlet_events: Any = None) -> None:
        outlet_events[NUMBERS].extra = {"rows": 3, "place": "Zürich"}

    write()


@dag(schedule=[NUMBERS], start_date=datetime(2026, 1, 1), catchup=False, tags=["contract"])
def read_numbers() -> None:
    @task
    def read() -> None: ...

    read()


write_numbers()
read_numbers()
