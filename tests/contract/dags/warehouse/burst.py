"""A DAG of the same name in both Airflows, whose runs end as soon as the scheduler sees them."""

# pyright: reportMissingImports=false, reportUnusedExpression=false

from __future__ import annotations

from datetime import datetime

from airflow.decorators import dag
from airflow.operators.empty import EmptyOperator


@dag(
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1000,
    tags=["contract"],
)
def burst() -> None:
    EmptyOperator(task_id="load")


burst()
