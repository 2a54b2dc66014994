"""DAGs of which each run does what its conf says, and DAGs that follow others.

Keys of the conf: `until`, the path of a file for which the run waits; `fail`, whether it fails.

The runs of `steered_often` end as soon as the scheduler sees them. `steered_never` has none.
"""

# pyright: reportMissingImports=false, reportUnusedExpression=false

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

from airflow import DAG
from airflow.decorators import dag, task
from airflow.operators.empty import EmptyOperator
from airflow.operators.python import get_current_context

BEGIN = datetime(2026, 1, 1)
TIMEOUT_S = 600


def add_steered_dag(dag_id: str) -> None:
    @dag(dag_id, schedule=None, start_date=BEGIN, catchup=False, tags=["steered"])
    def build() -> None:
        @task
        def work() -> None:
            conf = get_current_context()["dag_run"].conf
            deadline = time.monotonic() + TIMEOUT_S
            while "until" in conf and not Path(conf["until"]).exists():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{conf['until']} is not there after {TIMEOUT_S} s.")
                time.sleep(0.1)
            if conf.get("fail"):
                raise ValueError("The run fails because its conf says so.")

        work()

    build()


add_steered_dag("steered")
add_steered_dag("steered_long")
for dag_id in ("steered_often", "steered_never", "react_back"):
    with DAG(dag_id, schedule=None, start_date=BEGIN, catchup=False, tags=["steered"]):
        EmptyOperator(task_id="work")
