"""A DAG of two tasks for the tests of the client. The second fails if a Variable says so."""

# pyright: reportMissingImports=false, reportUnusedExpression=false

from __future__ import annotations

from datetime import datetime
from functools import partial

from airflow.decorators import dag, task
from airflow.models import Variable
from airflow.operators.empty import EmptyOperator
from fault_injection import fail_if_requested


@dag(schedule=None, start_date=datetime(2026, 1, 1), catchup=False, tags=["contract"])
def quick() -> None:
    @task
    def load() -> None:
        fail_if_requested("quick", partial(Variable.get, default_var=None))

    EmptyOperator(task_id="begin") >> load()


quick()
