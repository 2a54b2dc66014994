"""A DAG that does not end before somebody stops it."""

# pyright: reportMissingImports=false, reportUnusedExpression=false

from __future__ import annotations

import logging
import os
import time

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import dag, task

log = logging.getLogger(__name__)


@dag(schedule=None, tags=["contract"])
def endless() -> None:
    @task
    def wait() -> None:
        log.info("waiting in process %d", os.getpid())
        time.sleep(600)

    wait() >> EmptyOperator(task_id="go_on")


endless()
