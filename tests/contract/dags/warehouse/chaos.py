"""DAGs for tests that break things.

`paced`, `relayed` and `timed` take as long as a Variable says, fail if another one says so, and
have one run at a time. The runs of `storm_…` end as soon as the scheduler sees them, and so do
those of `unwatched`, `observed` and `streamed`. `never` has no runs, for others to depend on.

Tests that run at the same time have different DAGs: `timed` and `observed` are those of
`tests/live/test_clocks.py`, `relayed` and `streamed` those of `tests/live/test_production.py`, and
`unwatched` is not observed by the Dagster of `tests/live/conftest.py`.
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


def declare_timed(dag_id: str) -> None:
    @dag(
        dag_id=dag_id,
        schedule=None,
        start_date=BEGIN,
        catchup=False,
        max_active_runs=1,
        tags=["chaos"],
    )
    def declare() -> None:
        @task
        def work() -> None:
            read_variable = partial(Variable.get, default_var=None)
            sleep_if_requested(dag_id, read_variable)
            fail_if_requested(dag_id, read_variable)

        work()

    declare()


for dag_id in ["paced", "relayed", "timed"]:
    declare_timed(dag_id)
for dag_id in [
    "never",
    "observed",
    "streamed",
    "unwatched",
    *(f"storm_{number:02}" for number in range(20)),
]:
    with DAG(dag_id, schedule=None, start_date=BEGIN, catchup=False, tags=["chaos"]):
        EmptyOperator(task_id="load")
