"""A DAG with every field that Airflow returns of one. Its schedule is 29 February only."""

# pyright: reportMissingImports=false, reportUnusedExpression=false

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pendulum
from airflow.decorators import dag, task
from airflow.models.param import Param
from airflow.operators.empty import EmptyOperator

log = logging.getLogger(__name__)


@dag(
    schedule="0 3 29 2 *",
    start_date=pendulum.datetime(2026, 1, 1, tz="Europe/Berlin"),
    catchup=False,
    dagrun_timeout=timedelta(hours=1, minutes=30),
    description="Prüft, was ein Airflow von einer DAG erzählt.",
    doc_md="# Größen\n\nWhat `described` is for: 数据.",
    max_active_runs=3,
    params={
        "day": Param("2026-01-01", type="string", description="The day to load: größer, 日."),
        "size": Param(3, type="integer", minimum=1),
    },
    tags=["contract", "größe"],
    default_args={"owner": "zoë"},
)
def described() -> None:
    @task(retries=2)
    def load(params: dict[str, Any] | None = None) -> None:
        log.info("Größe und 数据: %s", params)

    end = EmptyOperator(task_id="end", trigger_rule="all_done")
    EmptyOperator(task_id="begin") >> load() >> end


described()
