"""DAGs whose runs are periods of the past: a schedule that has ended starts none by itself.

`daily_export` and `daily_archive` follow DAGs of the other Airflow. All runs end as soon as the
scheduler sees them.
"""

# pyright: reportMissingImports=false, reportUnusedExpression=false

from __future__ import annotations

import pendulum
from airflow import DAG
from airflow.operators.empty import EmptyOperator

SCHEDULES = {
    "daily_load": ("0 0 * * *", "UTC"),
    "hourly_clicks": ("0 * * * *", "Europe/Berlin"),
    "daily_export": (None, "UTC"),
    "daily_archive": (None, "UTC"),
}

for dag_id, (schedule, timezone) in SCHEDULES.items():
    with DAG(
        dag_id,
        schedule=schedule,
        start_date=pendulum.datetime(2025, 3, 1, tz=timezone),
        end_date=pendulum.datetime(2025, 12, 1, tz=timezone),
        catchup=False,
        max_active_runs=100,
        tags=["contract"],
    ):
        EmptyOperator(task_id="load")
