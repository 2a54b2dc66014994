"""DAGs whose runs are periods of the past: a schedule that has ended starts none by itself.

`daily_report` and `daily_clicks` follow DAGs of the other Airflow. All runs end as soon as the
scheduler sees them.
"""

# pyright: reportMissingImports=false, reportUnusedExpression=false

from __future__ import annotations

import pendulum
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

SCHEDULES = {"daily_measure": "0 0 * * *", "daily_report": None, "daily_clicks": None}

for dag_id, schedule in SCHEDULES.items():
    with DAG(
        dag_id,
        schedule=schedule,
        start_date=pendulum.datetime(2025, 3, 1),
        end_date=pendulum.datetime(2025, 12, 1),
        max_active_runs=100,
        tags=["contract"],
    ):
        EmptyOperator(task_id="load")
