"""The logical dates of triggered runs. `tests/live/test_dates.py` has more of real Airflows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import pytest
from werkzeug import Response

from federation_defs.airflow.models import TriggerOptions
from federation_defs.airflow.runs import MAX_NOW_TRIES
from federation_defs.errors import LogicalDateTakenError, RunNotStartedError, UnsupportedError
from tests.contract.conftest import Airflow
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.faults import Act, answer, say_no_time
from tests.contract.worlds import FakeWorld, World, make_run_id, wait_for_end

DAG = "dated"
TRIGGER = asks("POST", f"/dags/{DAG}/dagRuns")
TAKEN = answer(409, {"detail": "already exists", "title": "Conflict"})
NONE = TriggerOptions("none")
TEN_MINUTES = timedelta(minutes=10)


def test_a_dag_that_uses_its_dates_succeeds(fake_world: FakeWorld) -> None:
    run_id, begin = make_run_id(), datetime.now(timezone.utc)
    fake_world.client.trigger_run(DAG, run_id)
    end = datetime.now(timezone.utc)
    run = wait_for_end(fake_world, run_id, DAG)
    assert run.is_success
    assert run.logical_date is not None
    # `Date` has whole seconds, and a server may compute it once a second.
    assert begin - timedelta(seconds=3) < run.logical_date < end + timedelta(milliseconds=10)
    assert run.data_interval_start == run.data_interval_end == run.logical_date


def test_a_run_without_a_date_has_none_and_fails_if_its_tasks_use_it(airflow_v2: Airflow) -> None:
    run_id, world = make_run_id(), FakeWorld(airflow_v2.server)
    run = world.client.trigger_run(DAG, run_id, options=NONE)
    assert (run.logical_date, run.data_interval_start, run.data_interval_end) == (None,) * 3
    assert wait_for_end(world, run_id, DAG).state == "failed"


def test_airflow_2_has_no_runs_without_a_date(world_v1: World) -> None:
    run_id, said = make_run_id(), r"runs Airflow 2\.11\.2, .* without a logical date: .* 3\.0\."
    with pytest.raises(UnsupportedError, match=said):
        world_v1.client.trigger_run(DAG, run_id, options=NONE)
    assert world_v1.client.fetch_run(DAG, run_id) is None


@pytest.mark.parametrize("skew", [-TEN_MINUTES, TEN_MINUTES], ids=["behind", "ahead"])
def test_the_date_is_by_airflows_clock_and_not_ahead_of_it(
    fake_world: FakeWorld, skew: timedelta
) -> None:
    fake_world.database.skew = skew
    run = fake_world.client.trigger_run(DAG, make_run_id())
    assert run.logical_date is not None
    late = fake_world.database.now() - run.logical_date
    assert -timedelta(milliseconds=10) < late < timedelta(seconds=10)


def test_a_server_without_a_date_header_gets_a_date_by_our_clock(fake_world: FakeWorld) -> None:
    fake_world.server.fail_next(asks("GET", "/version"), say_no_time, times=9)
    run = fake_world.client.trigger_run(DAG, make_run_id())
    assert run.logical_date is not None
    assert abs(run.logical_date - datetime.now(timezone.utc)) < timedelta(seconds=10)


@pytest.mark.parametrize("second", ["23:59:59", "00:00:00"])
def test_the_triggers_of_one_second_have_dates_of_their_own_in_that_second(
    airflow_v2: Airflow, second: str
) -> None:
    """Not the whole second either: schedules have it."""
    database = airflow_v2.database
    database.add_dag(DAG)
    begin = database.stopped_at = datetime.fromisoformat(f"2026-02-03T{second}+00:00")
    with ThreadPoolExecutor(8) as threads:
        run_ids = [f"run-{number}" for number in range(50)]
        runs = list(threads.map(lambda run_id: airflow_v2.client.trigger_run(DAG, run_id), run_ids))
    dates = {run.logical_date for run in runs}
    assert len(dates) == len(database.runs) == 50
    assert all(date and begin < date < begin + timedelta(milliseconds=10) for date in dates)


def test_a_trigger_whose_date_is_taken_takes_another(fake_world: FakeWorld) -> None:
    fake_world.server.fail_next(TRIGGER, TAKEN, times=MAX_NOW_TRIES - 1)
    run_id = make_run_id()
    assert fake_world.client.trigger_run(DAG, run_id).run_id == run_id
    assert len(fake_world.database.runs) == 1


def test_a_trigger_whose_dates_are_all_taken_is_given_up(fake_world: FakeWorld) -> None:
    fake_world.server.fail_next(TRIGGER, TAKEN, times=99)
    with pytest.raises(LogicalDateTakenError, match=r"another run .* \(409: already exists\)"):
        fake_world.client.trigger_run(DAG, make_run_id())
    assert sum(map(TRIGGER, fake_world.server.requests)) == MAX_NOW_TRIES


@pytest.mark.parametrize("is_first", [True, False], ids=["before the second", "after the second"])
def test_a_trigger_that_arrives_late_and_its_repetition_are_one_run(
    fake_world: FakeWorld, *, is_first: bool
) -> None:
    late: list[Act] = []
    fake_world.server.fail_next(TRIGGER, late.append)
    run_id, database = make_run_id(), fake_world.database
    with pytest.raises(RunNotStartedError):
        fake_world.client.trigger_run(DAG, run_id)
    database.skew = timedelta(seconds=30)
    answers: list[Response] = [late[0]()] if is_first else []
    begin, run = database.now(), fake_world.client.trigger_run(DAG, run_id)
    answers += [] if is_first else [late[0]()]
    assert [response.status_code for response in answers] == [200 if is_first else 409]
    assert [row.logical_date for row in database.runs] == [run.logical_date]
    assert fake_world.client.trigger_run(DAG, run_id).logical_date == run.logical_date
    if fake_world.client.api_version.api == "v2":  # 2.x dates a run when it is made
        assert run.logical_date
        assert run.logical_date < begin - timedelta(seconds=20)
