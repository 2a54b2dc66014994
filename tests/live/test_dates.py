"""The dates that a DAG of a real Airflow sees when Dagster triggers it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from uuid import uuid4

import dagster as dg
import pytest

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun
from federation_defs.naming import build_run_id
from tests.conftest import Airflows
from tests.contract.execution.executing import ExecutedRun, materialize
from tests.contract.worlds import trigger_surely
from tests.live.federation import NAMES, UNWATCHED, utc_now, wait_for_state

# The last whole interval of a schedule that fires at three o'clock on 29 February.
# The `Date` of a busy server may be late: it is renewed by a timer.
LAG = timedelta(minutes=1)
LEAP = [datetime(year, 2, 29, 3, tzinfo=timezone.utc) for year in (2020, 2024)]
NONE = {"trigger": {"logical_date": "none"}}


def read_dates(client: AirflowClient, run: DagRun) -> tuple[str, list[datetime]]:
    """Return `ds`, and `ts` and the data interval, as the task's templates had them."""
    (task,) = client.fetch_task_instances(*run.key)
    log = client.fetch_log(*run.key, task)
    (line,) = [line for line in log.splitlines() if "dates: " in line]
    day, *moments = line.partition("dates: ")[2].split()
    return day, [datetime.fromisoformat(moment) for moment in moments]


def execute(
    client: AirflowClient, dag_id: str, **declared: object
) -> tuple[ExecutedRun, DagRun | None]:
    """Materialize a DAG. Return the Dagster run and the DAG run."""
    with dg.DagsterInstance.ephemeral() as instance:
        executed = materialize(client, {dag_id: declared}, instance)
    return executed, client.fetch_run(dag_id, build_run_id(executed.run_id))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dag_id", ["dated", "dated_by_cron"])
def test_a_triggered_dag_has_the_moment_of_the_trigger(
    airflows: Airflows, name: str, dag_id: str
) -> None:
    client, begin = airflows.connect(name), utc_now()
    executed, run = execute(client, dag_id)
    assert executed.materialized == [dag_id]
    assert run
    day, (moment, *interval) = read_dates(client, run)
    assert moment == run.logical_date
    assert begin - LAG < moment < utc_now()
    assert day == f"{moment:%Y-%m-%d}"
    has_interval = (name, dag_id) == ("warehouse", "dated_by_cron")
    assert interval == (LEAP if has_interval else [moment, moment])
    assert [run.data_interval_start, run.data_interval_end] == interval


def test_a_timetable_of_airflow_3_with_data_intervals_has_its_last_one(airflows: Airflows) -> None:
    executed, run = execute(airflows.metrics, "dated_by_interval")
    assert executed.materialized == ["dated_by_interval"]
    assert run
    _, (moment, *interval) = read_dates(airflows.metrics, run)
    assert (moment, interval) == (run.logical_date, LEAP)


@pytest.mark.parametrize("name", NAMES)
def test_triggers_at_the_same_time_have_dates_of_their_own(airflows: Airflows, name: str) -> None:
    client, run_ids = airflows.connect(name), [f"at-once__{uuid4()}" for _ in range(5)]
    begin = utc_now()
    with ThreadPoolExecutor(5) as threads:
        runs = list(threads.map(lambda run_id: trigger_surely(client, UNWATCHED, run_id), run_ids))
    assert [run.run_id for run in runs] == run_ids
    dates = {run.logical_date for run in runs}
    assert len(dates - {None}) == 5
    assert all(date and begin - LAG < date < utc_now() for date in dates)
    for run in runs:
        wait_for_state(client, *run.key, "success")


def test_a_dag_that_uses_its_dates_fails_in_a_run_without_one(airflows: Airflows) -> None:
    executed, run = execute(airflows.metrics, "dated", **NONE)
    assert not executed.success
    assert run
    assert (run.state, run.logical_date) == ("failed", None)
    assert (run.data_interval_start, run.data_interval_end) == (None, None)


def test_an_airflow_2_is_not_triggered_without_a_date(airflows: Airflows) -> None:
    executed, run = execute(airflows.warehouse, "dated", **NONE)
    assert "2.11.2, which has no runs without a logical date" in (executed.failure or "")
    assert run is None
