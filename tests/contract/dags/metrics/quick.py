"""A DAG of two tasks for the tests of the client. The second fails if a Variable says so."""

# pyright: reportMissingImports=false, reportUnusedExpression=false

from __future__ import annotations

from functools import partial

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import Variable, dag, task
from fault_injection import fail_if_requested


@dag(schedule=None, tags=["contract"])
def quick() -> None:
    @task
    def load() -> None:
        fail_if_requested("quick", partial(Variable.get, default=None))

    EmptyOperator(task_id="begin") >> load()


quick()
