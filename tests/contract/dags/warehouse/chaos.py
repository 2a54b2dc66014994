"""DAGs for tests that break things.

`paced` takes as long as a Variable says, fails if another one says so, and has one run at a time.
The runs of `storm_…` end as soon as the scheduler sees them, and so do those of `unwatched`, which
no running Dagster observes. `never` has no runs, for others to depend on.
"""

# pyright: reportMissingImports=false, reportUnusedExpression=false

from __future__ import annotations

from datetime import datetime
from functools import partial

from airflow import DAG
from airflow.decorators import dag, task
from airflow.models import Variable
from airflow.operators.empty import EmptyOperator
from fault_injection import fail_if_requested, sleep_if_requested

BEGIN = datetime(2026, 1, 1)


@dag(schedule=None, start_date=BEGIN, catchup=False, max_active_runs=1, tags=["chaos"])
def paced() -> None:
    @task
    def work() -> None:
        read_variable = partial(Variable.get, default_var=None)
        sleep_if_requested("paced", read_variable)
        fail_if_requested("paced", read_variable)

    work()


paced()
for dag_id in ["never", "unwatched", *(f"storm_{number:02}" for number in range(20))]:
    with DAG(dag_id, schedule=None, start_date=BEGIN, catchup=False, tags=["chaos"]):
        EmptyOperator(task_id="load")
