"""The event sensor: what happens upstream starts the runs that are declared, each once."""

from __future__ import annotations

import math
from typing import Any

import dagster as dg
import pytest

from tests.contract.conftest import Airflow
from tests.contract.dependencies.reacting import DAG, EventDaemon, report

LOAD, OTHER = "warehouse/load", "warehouse/other"
ON_FAILURE = {"depends_on": [{"dag": LOAD, "state": "failure"}]}
EACH = {"depends_on": [LOAD], "trigger": {"runs": "each"}}


def start(
    airflow: Airflow, instance: dg.DagsterInstance, dag: Any, polls: float = 0
) -> EventDaemon:
    airflow.database.add_dag(DAG, polls=polls)
    daemon = EventDaemon(airflow.client, instance, {DAG: dag})
    assert daemon.tick() == []
    return daemon


def test_a_failure_starts_the_dag_that_depends_on_it_and_a_success_does_not(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = start(airflow, instance, ON_FAILURE)
    report(instance, LOAD, "success", "one")
    assert daemon.tick() == []
    report(instance, LOAD, "failure", "two")
    assert daemon.tick() == [f"{LOAD} failure two"]
    assert daemon.tick() == []
    assert [run.dag_id for run in airflow.database.runs] == [DAG]


def test_each_upstream_run_leads_to_a_run_in_the_order_seen(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = start(airflow, instance, EACH)
    for run_id in ("one", "two", "three"):
        report(instance, LOAD, "success", run_id)
    assert daemon.tick() == [f"{LOAD} success one"]
    assert daemon.tick() == [f"{LOAD} success two"]
    daemon.restart()
    assert daemon.tick() == [f"{LOAD} success three"]
    assert daemon.tick() == []
    assert len(airflow.database.runs) == 3


def test_a_tick_that_is_repeated_after_a_crash_requests_the_same_run(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = start(airflow, instance, EACH)
    report(instance, LOAD, "success", "one")
    before = daemon.cursor
    assert len(daemon.tick()) == 1
    daemon.cursor = before
    daemon.restart()
    assert daemon.tick() == []
    assert len(airflow.database.runs) == 1


@pytest.mark.parametrize("at_once", [1, 2])
def test_as_many_runs_as_declared_are_active_at_once_also_if_they_are_not_waited_for(
    airflow: Airflow, instance: dg.DagsterInstance, at_once: int
) -> None:
    trigger = {"runs": "each", "at_once": at_once, "wait": False}
    daemon = start(airflow, instance, {"depends_on": [LOAD], "trigger": trigger}, polls=math.inf)
    for number in range(4):
        report(instance, LOAD, "success", f"run_{number}")
    started = daemon.tick()
    assert len(started) == at_once
    assert daemon.tick() == []
    airflow.database.finish_run(airflow.database.runs[0])
    assert daemon.tick() == [f"{LOAD} success run_{at_once}"]
