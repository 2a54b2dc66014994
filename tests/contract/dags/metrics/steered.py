"""DAGs that follow the steered ones of the other Airflow. Each is named after how it is declared.

Their runs end as soon as the scheduler sees them. Those of `react_each` take a while, so that two
at a time would overlap.
"""

# pyright: reportMissingImports=false, reportUnusedExpression=false

from __future__ import annotations

import time

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, dag, get_current_context, task


@dag(schedule=None, tags=["steered"])
def react_each() -> None:
    @task
    def work() -> None:
        time.sleep(get_current_context()["dag_run"].conf["seconds"])

    work()


react_each()
for dag_id in [
    *("react_failure", "react_slow", "react_late"),
    *("react_rerun", "react_ignore", "react_date", "react_if", "react_all", "react_asset"),
]:
    with DAG(dag_id, schedule=None, tags=["steered"]):
        EmptyOperator(task_id="work")
