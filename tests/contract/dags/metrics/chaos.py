"""DAGs to break things around: `paced` takes as long as a Variable says and runs once at a time,
the many `storm_…` end as soon as the scheduler sees them, and `never` is there to depend on."""

# pyright: reportMissingImports=false, reportUnusedExpression=false

from __future__ import annotations

from functools import partial

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Variable, dag, task
from fault_injection import sleep_if_requested


@dag(schedule=None, max_active_runs=1, tags=["chaos"])
def paced() -> None:
    @task
    def work() -> None:
        sleep_if_requested("paced", partial(Variable.get, default=None))

    work()


paced()
for dag_id in ["never", *(f"storm_{number:02}" for number in range(20))]:
    with DAG(dag_id, schedule=None, tags=["chaos"]):
        EmptyOperator(task_id="load")
