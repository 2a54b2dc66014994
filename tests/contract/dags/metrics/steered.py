"""DAGs that follow the steered ones of the other Airflow. Each is named after how it is declared.

Their runs end as soon as the scheduler sees them.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

NAMES = ("all", "asset", "date", "each", "failure", "if", "ignore", "late", "slow")

for name in NAMES:
    with DAG(f"react_{name}", schedule=None, tags=["steered"]):
        EmptyOperator(task_id="work")
