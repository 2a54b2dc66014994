"""A DAG that is not waited for, under automation: its run goes on after the Dagster run has ended,
and an update that comes meanwhile leads to one more run, when that is over."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone

import dagster as dg
import pytest

from tests.contract.conftest import Airflow
from tests.contract.execution.automating import DAG, Automation

FOLLOWING = "a_report"
DETACHED = {"trigger": {"wait": False}}


@pytest.fixture
def automation(airflow_v2: Airflow, instance: dg.DagsterInstance) -> Automation:
    airflow_v2.database.add_dag(DAG, polls=math.inf)
    dags = {DAG: DETACHED, FOLLOWING: {"depends_on": [f"metrics/{DAG}"], **DETACHED}}
    return Automation(airflow_v2, instance, dags)


@pytest.mark.parametrize("executed", ["success", "failed"])
def test_updates_during_a_run_lead_to_one_more_when_it_is_over(
    automation: Automation, executed: str
) -> None:
    automation.update_upstream()
    assert automation.tick()
    for _ in range(3):
        automation.update_upstream()
        assert not automation.tick()
    automation.end_run(executed)
    assert automation.tick()
    assert not automation.tick()
    automation.end_run()
    assert not automation.tick()
    assert automation.runs == [executed, "success"]


def test_an_update_after_a_run_is_over_starts_the_next_at_once(automation: Automation) -> None:
    for _ in range(2):
        automation.update_upstream()
        assert automation.tick()
        automation.end_run()
        assert not automation.tick()
    assert automation.runs == ["success", "success"]


def test_a_dag_that_could_not_be_started_waits_for_the_next_update_and_for_no_run(
    automation: Automation,
) -> None:
    """There is no run whose end would be reported."""
    automation.airflow.database.dags[DAG].is_paused = True
    for _ in range(2):
        automation.update_upstream()
        assert automation.tick()
        assert not automation.tick()
    automation.airflow.database.dags[DAG].is_paused = False
    automation.update_upstream()
    assert automation.tick()
    assert len(automation.runs) == 1


def test_a_dag_that_follows_one_that_is_not_waited_for_runs_when_that_was_reported(
    automation: Automation,
) -> None:
    automation.airflow.database.add_dag(FOLLOWING, polls=math.inf)
    automation.update_upstream()
    assert automation.tick()
    assert not automation.tick(FOLLOWING)
    automation.end_run()
    assert automation.tick(FOLLOWING)
    assert [run.dag_id for run in automation.airflow.database.runs] == [DAG, FOLLOWING]


def test_a_run_that_never_ends_delays_the_next_until_the_full_hour_at_most(
    automation: Automation,
) -> None:
    """A run that was deleted in Airflow, or that a canceled Dagster run did not start."""
    automation.update_upstream()
    assert automation.tick()
    automation.airflow.database.runs.clear()
    automation.update_upstream()
    assert not automation.tick()
    following_hour = datetime.now(timezone.utc) + timedelta(hours=1)
    assert automation.tick(at=following_hour)


def test_a_request_that_is_made_twice_delays_no_later_update(automation: Automation) -> None:
    automation.request_while(automation.update_upstream)
    automation.end_run()
    assert automation.tick()
    assert len(automation.runs) == 1
    automation.update_upstream()
    assert automation.tick()
    assert len(automation.runs) == 2
