"""DAGs for tests that break things.

`paced` takes as long as a Variable says, fails if another one says so, and has one run at a time.
The runs of `storm_…` end as soon as the scheduler sees them, and so do those of `unwatched`, which
no running Dagster observes. `never` has no runs, for others to depend on.
"""

# pyright: reportMissingImports=false, reportUnusedExpression=false

from __future__ import annotations

from functools import partial

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Variable, dag, task
from fault_injection import fail_if_requested, sleep_if_requested


@dag(schedule=None, max_active_runs=1, tags=["chaos"])
def paced() -> None:
    @task
    def work() -> None:
        read_variable = partial(Variable.get, default=None)
        sleep_if_requested("paced", read_variable)
        fail_if_requested("paced", read_variable)

    work()


paced()
for dag_id in ["never", "unwatched", *(f"storm_{number:02}" for number in range(20))]:
    with DAG(dag_id, schedule=None, tags=["chaos"]):
        EmptyOperator(task_id="load")
