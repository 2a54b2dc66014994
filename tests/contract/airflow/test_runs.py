"""Runs as the client reads and changes them, on Airflows of both APIs, fake and real."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

import psutil
import pytest

from federation_defs.airflow.models import DagRun
from federation_defs.errors import DagNotFoundError, RunLostError
from tests.contract.conftest import Airflow
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.faults import answer
from tests.contract.worlds import (
    FakeWorld,
    RealWorld,
    World,
    find_finished_run,
    make_run_id,
    pausing,
    run_dag,
    start_endless_run,
    wait_for_end,
)
from tests.waiting import wait_for


def fetch_own_runs(world: World, run_id: str, since: datetime) -> list[DagRun]:
    """All runs of this id among those that changed."""
    runs = world.client.fetch_changed_runs(since).entries
    return [run for run in runs if (run.dag_id, run.run_id) == (world.dag_id, run_id)]


def an_hour_ago() -> datetime:
    return datetime.now(timezone.utc) - timedelta(hours=1)


def find_moment_before(run: DagRun) -> datetime:
    """Return a moment before the run started."""
    assert run.start_date is not None
    return run.start_date - timedelta(minutes=1)


def test_an_unknown_run_is_none(world: World) -> None:
    assert world.client.fetch_run(world.dag_id, make_run_id()) is None
    assert world.client.fetch_run("nobody_knows_it", make_run_id()) is None


def test_a_new_run_is_among_the_changed_ones_and_so_is_its_end(world: World) -> None:
    since, run_id = an_hour_ago(), make_run_id()
    world.client.trigger_run(world.dag_id, run_id)
    (new,) = fetch_own_runs(world, run_id, since)
    assert not new.is_finished
    ended = wait_for_end(world, run_id)
    assert fetch_own_runs(world, run_id, since) == [ended]


def test_a_run_that_ended_earlier_is_not_among_the_changed_ones(fake_world: FakeWorld) -> None:
    run = run_dag(fake_world)
    assert run.end_date is not None
    later = run.end_date + timedelta(minutes=1)
    assert fetch_own_runs(fake_world, run.run_id, later) == []


def test_a_state_set_by_hand_is_a_change_though_the_end_stays(world: World) -> None:
    run = run_dag(world)
    world.set_state(run.run_id, "failed")
    assert run.end_date is not None
    (changed,) = fetch_own_runs(world, run.run_id, an_hour_ago())
    assert (changed.state, changed.end_date) == ("failed", run.end_date)


def test_a_cleared_run_is_a_change_and_has_lost_its_dates(world: World) -> None:
    run = run_dag(world)
    with pausing(world):  # so that it stays as the clear leaves it
        world.client.clear_run(world.dag_id, run.run_id)
        (changed,) = fetch_own_runs(world, run.run_id, an_hour_ago())
    assert (changed.state, changed.start_date, changed.end_date) == ("queued", None, None)
    assert wait_for_end(world, run.run_id).end_date != run.end_date


def test_the_changed_runs_come_with_the_servers_own_time(world: World) -> None:
    server_time = world.client.fetch_changed_runs(an_hour_ago()).server_time
    assert server_time is not None
    assert abs(server_time - datetime.now(timezone.utc)) < timedelta(seconds=30)


def test_changed_runs_are_filtered_by_state(world: World) -> None:
    run = find_finished_run(world)
    since = find_moment_before(run)
    for states in (["success"], ["success", "failed"], ["success", "queued"]):
        changed = world.client.fetch_changed_runs(since, states=states).entries
        assert run in changed
        assert {run.state for run in changed} <= set(states)
    assert run not in world.client.fetch_changed_runs(since, states=["failed"]).entries


def test_changed_runs_are_filtered_by_an_upper_bound(world: World) -> None:
    run = find_finished_run(world)
    since = find_moment_before(run)
    now = world.client.fetch_changed_runs(since).server_time
    assert now is not None
    assert run in world.client.fetch_changed_runs(since, now + timedelta(minutes=1)).entries
    assert run.start_date is not None
    before = run.start_date - timedelta(seconds=10)
    assert run not in world.client.fetch_changed_runs(since, before).entries


def test_more_changed_runs_than_asked_for_are_only_counted(airflow: Airflow) -> None:
    airflow.database.add_dag("load_customers")
    for _ in range(250):
        airflow.database.start_run("load_customers")
    airflow.client.fetch_dag("load_customers")
    before = len(airflow.server.requests)
    changed = airflow.client.fetch_changed_runs(an_hour_ago(), at_most=249)
    assert (changed.total, len(changed.entries)) == (250, 100)
    assert not changed.is_whole
    assert len(airflow.server.requests) == before + 2  # a page, and the first one too many
    changed = airflow.client.fetch_changed_runs(an_hour_ago(), at_most=250)
    assert (changed.total, len(changed.entries), changed.is_whole) == (250, 250, True)


def test_the_latest_finished_run_is_the_one_that_ended_last(world: World) -> None:
    find_finished_run(world)
    latest = run_dag(world)
    assert world.client.fetch_latest_finished_run(world.dag_id) == latest


def test_a_dag_of_which_no_run_ended_has_no_latest_one(airflow: Airflow) -> None:
    airflow.database.add_dag("load_customers")
    airflow.database.start_run("load_customers")
    assert airflow.client.fetch_latest_finished_run("load_customers") is None


def test_an_unknown_dag_has_no_latest_run(world: World) -> None:
    with pytest.raises(DagNotFoundError):
        world.client.fetch_latest_finished_run("nobody_knows_it")


def test_an_unknown_run_cannot_be_cleared(fake_world: FakeWorld) -> None:
    with pytest.raises(RunLostError, match="to clear"):
        fake_world.client.clear_failed_tasks(fake_world.dag_id, make_run_id())
    with pytest.raises(RunLostError, match="to clear"):
        fake_world.client.clear_run(fake_world.dag_id, make_run_id())


def test_a_running_run_is_stopped_with_its_tasks_and_their_processes(world: World) -> None:
    run, task = start_endless_run(world)
    assert run.state == "running"

    def find_process() -> int | None:
        log = world.client.fetch_log("endless", run.run_id, task)
        said = re.search(r"waiting in process (\d+)", log)
        return int(said[1]) if said else None

    process = wait_for(find_process, "the task says which process it is")
    is_real = isinstance(world, RealWorld)  # the tasks of a fake one have no processes
    assert psutil.pid_exists(process) or not is_real

    def stop() -> DagRun | None:
        """Stop it again while the scheduler overwrites that (2.11 without row locks)."""
        stopped = world.client.stop_run("endless", run.run_id)
        return stopped if world.client.fetch_run("endless", run.run_id) == stopped else None

    stopped = wait_for(stop, "it stays stopped")
    assert (stopped.run_id, stopped.state) == (run.run_id, "failed")
    assert stopped.end_date is not None
    tasks = world.client.fetch_task_instances("endless", run.run_id)
    assert {task.task_id: (task.state, task.try_number) for task in tasks} == {
        "wait": ("failed", 1),
        "go_on": ("skipped", 0),
    }
    if is_real:
        wait_for(lambda: not psutil.pid_exists(process), "the task's process is gone")


def test_a_run_that_is_over_is_left_as_it_is_by_a_stop(fake_world: FakeWorld) -> None:
    run = run_dag(fake_world)
    assert run.is_success
    assert fake_world.client.stop_run(fake_world.dag_id, run.run_id) == run
    assert fake_world.client.fetch_run(fake_world.dag_id, run.run_id) == run


def test_a_stop_that_the_scheduler_overwrote_is_repeated(fake_world: FakeWorld) -> None:
    """A scheduler without row locks stores what it made of the tasks while the run was stopped."""
    run_id = make_run_id()
    fake_world.client.trigger_run("endless", run_id)
    fake_world.client.stop_run("endless", run_id)
    run = fake_world.database.find_run("endless", run_id)
    assert run is not None
    fake_world.database.set_state(run, "success")
    assert fake_world.client.stop_run("endless", run_id).state == "success"
    assert fake_world.client.stop_run("endless", run_id, again=True).state == "failed"
    assert run.state == "failed"


def test_a_queued_run_is_stopped_before_it_starts(world: World) -> None:
    run_id = make_run_id()
    with pausing(world):
        world.client.trigger_run(world.dag_id, run_id)
        stopped = world.client.stop_run(world.dag_id, run_id)
    assert stopped.state == "failed"


def test_an_unknown_run_cannot_be_stopped(fake_world: FakeWorld) -> None:
    with pytest.raises(RunLostError, match="to stop"):
        fake_world.client.stop_run(fake_world.dag_id, make_run_id())


def test_a_stop_that_is_refused_is_no_stop(fake_world: FakeWorld) -> None:
    run_id = make_run_id()
    fake_world.client.trigger_run("endless", run_id)
    conflict = answer(409, {"detail": "not now"})
    fake_world.server.fail_next(asks("PATCH", ".*"), conflict)
    with pytest.raises(Exception, match="409: not now"):
        fake_world.client.stop_run("endless", run_id)
