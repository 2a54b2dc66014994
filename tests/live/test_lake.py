"""DuckDB admits one process at a time, and the demo's DAGs wait for each other."""

from __future__ import annotations

import duckdb

from federation_defs.airflow.models import DagRun
from tests.conftest import Airflows
from tests.live.federation import trigger
from tests.waiting import wait_for

DAG_IDS = [f"load_{name}" for name in ("customers", "orders", "payments", "products", "sales")]


def test_dags_that_need_the_lake_at_the_same_time_wait_for_each_other(airflows: Airflows) -> None:
    warehouse = airflows.warehouse
    with duckdb.connect(str(airflows.lake)):  # keeps all of them out
        run_ids = {dag_id: trigger(warehouse, dag_id) for dag_id in DAG_IDS}

        def find_all(*states: str) -> list[DagRun] | None:
            runs = [warehouse.fetch_run(dag_id, run_id) for dag_id, run_id in run_ids.items()]
            found = [run for run in runs if run is not None and run.state in states]
            return found if len(found) == len(DAG_IDS) else None

        wait_for(lambda: find_all("running"), "all five are running")
    ended = wait_for(lambda: find_all("success", "failed"), "all five have ended", timeout_s=240)
    assert {run.dag_id: run.state for run in ended} == dict.fromkeys(DAG_IDS, "success")
