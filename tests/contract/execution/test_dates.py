"""The logical dates of the DAG runs that Dagster triggers."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg
import pytest

from tests.contract.conftest import Airflow, StartAirflow
from tests.contract.execution.executing import DagsterJob, materialize

DAG = "daily_report"
NONE = {"trigger": {"logical_date": "none"}}


def test_a_dag_that_uses_its_dates_succeeds(airflow: Airflow, instance: dg.DagsterInstance) -> None:
    airflow.database.add_dag(DAG, polls=0, needs_date=True)
    assert materialize(airflow.client, [DAG], instance).materialized == [DAG]


@pytest.mark.parametrize("minutes", [-10, 10])
def test_a_run_begins_at_once_though_our_clock_is_wrong(
    airflow: Airflow, instance: dg.DagsterInstance, minutes: int
) -> None:
    """Airflow runs no task before the logical date."""
    airflow.database.add_dag(DAG, polls=2, needs_date=True)
    airflow.database.skew = timedelta(minutes=minutes)
    assert materialize(airflow.client, [DAG], instance).materialized == [DAG]


def test_no_date_reaches_airflow_3(airflow_v2: Airflow, instance: dg.DagsterInstance) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    assert materialize(airflow_v2.client, {DAG: NONE}, instance).materialized == [DAG]
    assert [run.logical_date for run in airflow_v2.database.runs] == [None]


def test_no_date_in_airflow_2_fails_with_the_version_that_has_it(
    start_airflow: StartAirflow, instance: dg.DagsterInstance
) -> None:
    airflow = start_airflow("v1")
    airflow.database.add_dag(DAG, polls=0)
    executed = materialize(airflow.client, {DAG: NONE}, instance)
    assert "runs without a logical date: they exist since Airflow 3.0" in (executed.failure or "")
    assert airflow.database.runs == []


def test_a_dag_with_partition_keys_gets_no_date(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """As from Airflow's own UI."""
    airflow_v2.database.add_dag(DAG, polls=0, key_format="%Y-%m-%d")
    assert materialize(airflow_v2.client, [DAG], instance).materialized == [DAG]
    assert [run.logical_date for run in airflow_v2.database.runs] == [None]


@pytest.mark.parametrize("on_retry", ["clear_failed", "new_run"])
def test_a_cleared_run_keeps_its_date_and_a_new_one_has_its_own(
    airflow: Airflow, instance: dg.DagsterInstance, on_retry: str
) -> None:
    dag = airflow.database.add_dag(DAG, polls=0, needs_date=True, outcome="failed")
    job = DagsterJob(airflow.client, [DAG], instance, {"trigger": {"on_retry": on_retry}})
    first = job.execute()
    (date,) = [run.logical_date for run in airflow.database.runs]
    dag.outcome, dag.polls = "success", 2
    assert job.execute(first).materialized == [DAG]
    dates = [run.logical_date for run in airflow.database.runs]
    assert dates[0] == date
    assert None not in dates
    assert len(set(dates)) == len(dates) == (2 if on_retry == "new_run" else 1)
