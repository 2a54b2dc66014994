"""The dates that a DAG of a real Airflow sees when Dagster triggers it."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import dagster as dg
import pytest

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun
from tests.conftest import Airflows
from tests.contract.execution.executing import materialize
from tests.live.federation import NAMES, fetch_runs, utc_now

# The last whole interval of a schedule that fires at three o'clock on 29 February.
LEAP = (
    datetime(2020, 2, 29, 3, tzinfo=timezone.utc),
    datetime(2024, 2, 29, 3, tzinfo=timezone.utc),
)
NONE = {"trigger": {"logical_date": "none"}}


def read_dates(client: AirflowClient, run: DagRun) -> tuple[str, list[datetime]]:
    """Return `ds`, and `ts` and the data interval, as the task's templates had them."""
    (task,) = client.fetch_task_instances(*run.key)
    log = client.fetch_log(*run.key, task)
    (line,) = [line for line in log.splitlines() if "dates: " in line]
    day, *moments = line.partition("dates: ")[2].split()
    return day, [datetime.fromisoformat(moment) for moment in moments]


def execute(client: AirflowClient, dag_id: str, **declared: object) -> tuple[bool, DagRun]:
    """Materialize a DAG. Return whether that succeeded, and the DAG run."""
    since = utc_now() - timedelta(minutes=1)
    before = {run.run_id for run in fetch_runs(client, since, {dag_id})}
    with dg.DagsterInstance.ephemeral() as instance:
        executed = materialize(client, {dag_id: declared}, instance)
    runs = fetch_runs(client, since, {dag_id})
    (run,) = [run for run in runs if run.run_id not in before]
    return executed.success, run


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dag_id", ["dated", "dated_by_cron"])
def test_a_triggered_dag_has_the_moment_of_the_trigger(
    airflows: Airflows, name: str, dag_id: str
) -> None:
    client, begin = airflows.connect(name), utc_now()
    is_success, run = execute(client, dag_id)
    assert is_success
    day, (moment, *interval) = read_dates(client, run)
    assert moment == run.logical_date
    assert begin - timedelta(seconds=3) < moment < utc_now()
    assert day == f"{moment:%Y-%m-%d}"
    has_interval = (name, dag_id) == ("warehouse", "dated_by_cron")
    assert interval == (list(LEAP) if has_interval else [moment, moment])


def test_a_timetable_of_airflow_3_with_data_intervals_has_its_last_one(airflows: Airflows) -> None:
    is_success, run = execute(airflows.metrics, "dated_by_interval")
    assert is_success
    _, (moment, *interval) = read_dates(airflows.metrics, run)
    assert moment == run.logical_date
    assert interval == list(LEAP)


def test_a_dag_that_uses_its_dates_fails_in_a_run_without_one(airflows: Airflows) -> None:
    is_success, run = execute(airflows.metrics, "dated", **NONE)
    assert (is_success, run.state, run.logical_date) == (False, "failed", None)


def test_an_airflow_2_is_not_triggered_without_a_date(airflows: Airflows) -> None:
    since = utc_now()
    with dg.DagsterInstance.ephemeral() as instance:
        executed = materialize(airflows.warehouse, {"dated": NONE}, instance)
    assert "2.11.2, which has no runs without a logical date" in (executed.failure or "")
    assert fetch_runs(airflows.warehouse, since, {"dated"}) == []
