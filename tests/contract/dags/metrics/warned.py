"""A DAG that Airflow 3 has something against: a value that could be another each time.

(That a pool is missing, which Airflow 2 warns of, is nothing to 3.3.)
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from datetime import datetime

from airflow.sdk import dag, task


@dag(schedule=None, tags=["contract"], description=datetime.now().strftime("The same."))
def warned() -> None:
    @task
    def work() -> None: ...

    work()


warned()
