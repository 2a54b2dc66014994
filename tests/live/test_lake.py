"""DuckDB lets one process in at a time; the demo's DAGs must do with that."""

from __future__ import annotations

from uuid import uuid4

import duckdb

from federation_defs.airflow.models import DagRun
from tests.conftest import Airflows
from tests.waiting import wait_for

DAG_IDS = [f"load_{name}" for name in ("customers", "orders", "payments", "products", "sales")]


def test_dags_that_want_the_lake_at_once_wait_for_their_turn(airflows: Airflows) -> None:
    warehouse, run_id = airflows.warehouse, f"lake__{uuid4()}"

    def find_all(*states: str) -> list[DagRun] | None:
        runs = [warehouse.fetch_run(dag_id, run_id) for dag_id in DAG_IDS]
        found = [run for run in runs if run is not None and run.state in states]
        return found if len(found) == len(DAG_IDS) else None

    with duckdb.connect(str(airflows.lake)):  # so that none of them gets in
        for dag_id in DAG_IDS:
            warehouse.trigger_run(dag_id, run_id)
        wait_for(lambda: find_all("running"), "all five want the lake", timeout_s=45)
    ended = wait_for(lambda: find_all("success", "failed"), "all five are over", timeout_s=120)
    assert {run.dag_id: run.state for run in ended} == dict.fromkeys(DAG_IDS, "success")
