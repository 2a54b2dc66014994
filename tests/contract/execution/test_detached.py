"""DAG runs that are started and not waited for: `trigger.wait: false`."""

from __future__ import annotations

import math
from typing import Any

import dagster as dg

from federation_defs.naming import build_asset_key, build_run_id
from tests.contract.conftest import Airflow
from tests.contract.execution.executing import DagsterJob, materialize
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.faults import hang_up_after_acting
from tests.contract.observation.daemon import Daemon, fetch_reported_run_ids

DAG = "customer_metrics"
KEY = build_asset_key("metrics", DAG)
TRIGGER = f"/dags/{DAG}/dagRuns"
DETACHED: dict[str, Any] = {"trigger": {"wait": False}}


def test_the_dagster_run_ends_at_once_and_observation_reports_the_dag_run(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG, polls=math.inf)
    daemon = Daemon(airflow.client, [DAG], instance)
    executed = materialize(airflow.client, {DAG: DETACHED}, instance)
    assert (executed.success, executed.materialized) == (True, [])
    (run,) = airflow.database.runs
    assert (run.run_id, run.state) == (build_run_id(executed.run_id), "queued")
    assert daemon.tick() == []
    airflow.database.finish_run(run)
    assert (daemon.tick(), daemon.tick()) == ([run.run_id], [])
    assert fetch_reported_run_ids(instance, KEY) == [run.run_id]


def test_a_run_that_ended_at_once_is_left_to_observation_too(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0, outcome="failed")
    executed = materialize(airflow_v2.client, {DAG: DETACHED}, instance)
    assert (executed.success, executed.materialized) == (True, [])
    assert Daemon(airflow_v2.client, [DAG], instance).tick() == []  # a failure is none


def test_what_depends_on_it_is_skipped_and_the_rest_is_run(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    dags = {DAG: DETACHED, "report": {"depends_on": [f"metrics/{DAG}"]}, "other": {}}
    for dag_id in dags:
        airflow_v2.database.add_dag(dag_id, polls=0)
    executed = materialize(airflow_v2.client, dags, instance)
    assert executed.materialized == ["other"]
    assert f"report is skipped: it needs a success of {DAG}." in executed.log
    assert {run.dag_id for run in airflow_v2.database.runs} == {DAG, "other"}


def test_a_trigger_whose_answer_is_lost_starts_one_run(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG)
    airflow_v2.server.fail_next(asks("POST", TRIGGER), hang_up_after_acting)
    assert materialize(airflow_v2.client, {DAG: DETACHED}, instance).success
    assert len(airflow_v2.database.runs) == 1


def test_a_trigger_that_is_refused_fails_the_run(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, is_paused=True)
    executed = materialize(airflow_v2.client, {DAG: DETACHED}, instance)
    assert "paused" in (executed.failure or "")


def test_a_re_execution_starts_no_second_run(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=math.inf)
    job = DagsterJob(airflow_v2.client, [DAG], instance, DETACHED)
    first = job.execute()
    assert job.execute(first).success
    (run,) = airflow_v2.database.runs
    airflow_v2.database.finish_run(run)
    daemon = Daemon(airflow_v2.client, [DAG], instance)
    assert (daemon.tick(), daemon.tick()) == ([run.run_id], [])
