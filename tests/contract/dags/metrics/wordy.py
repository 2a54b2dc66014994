"""A DAG with a long log, not all of it ASCII."""

# pyright: reportMissingImports=false

from __future__ import annotations

import logging

from airflow.sdk import dag, task

log = logging.getLogger(__name__)


@dag(schedule=None, tags=["contract"])
def wordy() -> None:
    @task
    def talk() -> None:
        for number in range(12_000):
            log.info("line %05d: größer als 数", number)

    talk()


wordy()
