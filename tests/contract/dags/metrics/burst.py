"""A DAG of the same name in both Airflows, whose runs end as soon as the scheduler sees them."""

# pyright: reportMissingImports=false, reportUnusedExpression=false

from __future__ import annotations

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import dag


@dag(schedule=None, max_active_runs=1000, tags=["contract"])
def burst() -> None:
    EmptyOperator(task_id="load")


burst()
