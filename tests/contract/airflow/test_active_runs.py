"""Active runs as the client reads them, from Airflows of both APIs, fake and real."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from uuid import uuid4

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun, TriggerOptions
from federation_defs.execution.concurrency import ConcurrencyLimit
from federation_defs.outcome import name_task
from federation_defs.timing import Timing
from tests.contract.conftest import Airflow
from tests.contract.worlds import (
    FakeWorld,
    World,
    make_date,
    make_run_id,
    pausing,
    run_dag,
    start_endless_run,
    wait_for_end,
)
from tests.waiting import wait_for

CONF = {"day": "2026-02-03", "size": 5}
MANY = 5000


def fetch_active(client: AirflowClient, at_most: int = MANY) -> list[DagRun]:
    page = client.fetch_active_runs(at_most)
    assert page is not None
    return page.entries


def test_running_runs_and_their_tasks_are_listed_until_they_end(world: World) -> None:
    """Among the active runs, by the start, and the tasks by run."""
    runs = [start_endless_run(world)[0] for _ in range(2)]
    active = fetch_active(world.client)
    tasks = world.client.fetch_running_tasks(MANY)
    assert tasks is not None
    for run in runs:
        assert run in active
        of_run = tasks["endless", run.run_id]
        assert [(name_task(task), task.state) for task in of_run] == [("wait", "running")]
        assert run.start_date is not None
        for seconds, is_found in ((1, True), (-1, False)):
            moment = run.start_date + timedelta(seconds=seconds)
            page = world.client.fetch_running_runs(moment, MANY)
            assert (run in page.entries) is is_found

    for run in runs:
        world.client.stop_run("endless", run.run_id)
    run_ids = {run.run_id for run in runs}
    assert not run_ids & {run.run_id for run in fetch_active(world.client)}
    tomorrow = datetime.now(timezone.utc) + timedelta(days=1)
    running = world.client.fetch_running_runs(tomorrow, MANY).entries
    assert not run_ids & {run.run_id for run in running}
    tasks = world.client.fetch_running_tasks(MANY)
    assert tasks is not None
    assert not {("endless", run_id) for run_id in run_ids} & tasks.keys()


def test_a_queued_run_is_among_the_active_ones(world: World) -> None:
    run_id = make_run_id()
    with pausing(world):
        world.client.trigger_run(world.dag_id, run_id)
        active = {run.run_id: run.state for run in fetch_active(world.client)}
    assert active[run_id] == "queued"
    wait_for_end(world, run_id)


def test_a_run_that_is_over_is_not_among_the_active_ones(fake_world: FakeWorld) -> None:
    run = run_dag(fake_world)
    assert run.run_id not in {run.run_id for run in fetch_active(fake_world.client)}


def test_more_running_runs_than_the_limit_are_the_oldest(airflow: Airflow) -> None:
    airflow.server.endpoints.page_limit = 3
    airflow.database.add_dag("busy")
    runs = [airflow.database.start_run("busy").run_id for _ in range(8)]
    page = airflow.client.fetch_running_runs(airflow.database.now() + timedelta(hours=1), 4)
    assert ([run.run_id for run in page.entries], page.is_whole) == (runs[:3], False)


def test_more_active_runs_than_the_limit_give_none(airflow: Airflow) -> None:
    airflow.database.add_dag("busy")
    for _ in range(250):
        airflow.database.start_run("busy")
    assert len({run.run_id for run in fetch_active(airflow.client, 250)}) == 250
    before = airflow.server.count("GET", "/dags/~/dagRuns")
    assert airflow.client.fetch_active_runs(249) is None
    requests = airflow.server.count("GET", "/dags/~/dagRuns") - before
    assert requests == 2  # for a page, and for the first run too many


def test_no_active_runs_are_an_empty_list(airflow: Airflow) -> None:
    airflow.database.add_dag("idle")
    assert fetch_active(airflow.client, 0) == []


def test_the_active_runs_of_all_pages_are_fetched(airflow: Airflow) -> None:
    airflow.server.endpoints.page_limit = 3
    airflow.database.add_dag("busy")
    runs = [airflow.database.start_run("busy").run_id for _ in range(8)]
    assert [run.run_id for run in fetch_active(airflow.client, 8)] == runs


def test_a_run_is_found_by_exactly_its_logical_date(world: World) -> None:
    date, run_id = make_date(), make_run_id()
    world.client.trigger_run("described", run_id, CONF, TriggerOptions(date))
    run = world.client.fetch_run_of_date("described", date)
    assert run is not None
    assert (run.run_id, run.logical_date) == (run_id, date)
    there = date.astimezone(timezone(timedelta(hours=-3, minutes=-30)))
    same = world.client.fetch_run_of_date("described", there)
    assert same is not None
    assert same.run_id == run_id
    for seconds in (-0.5, 0.5):
        near = date + timedelta(seconds=seconds)
        assert world.client.fetch_run_of_date("described", near) is None
    assert world.client.fetch_run_of_date("mapped", date) is None
    wait_for_end(world, run_id, "described")


def test_an_unknown_dag_has_no_run_of_any_date(fake_world: FakeWorld) -> None:
    assert fake_world.client.fetch_run_of_date("nobody_knows_it", make_date()) is None


def test_more_running_tasks_than_the_limit_give_none(airflow: Airflow) -> None:
    airflow.database.add_dag("busy")
    for _ in range(3):
        airflow.database.start_run("busy").tasks[0].state = "running"
    airflow.server.endpoints.page_limit = 2
    assert len(airflow.client.fetch_running_tasks(3) or ()) == 3
    assert airflow.client.fetch_running_tasks(2) is None


def test_the_active_runs_that_are_ours_are_selected_and_count_for_a_limit(world: World) -> None:
    client, own, other = world.client, f"dagster__{uuid4()}", make_run_id()
    wanted = ("endless", f"dagster__{uuid4()}")
    for run_id in (own, other):
        client.trigger_run("endless", run_id)
    try:
        found = client.fetch_active_runs(1000, "dagster__")
        assert found is not None
        run_ids = {run.run_id for run in found.entries}  # also of other tests on a real Airflow
        assert (own in run_ids, other in run_ids) == (True, False)
        assert found.server_time is not None
        assert ConcurrencyLimit(client, {}, 1, Timing()).reserve([wanted]) == set()
    finally:
        for run_id in (own, other):
            client.stop_run("endless", run_id)

    def is_over() -> bool:
        client.stop_run("endless", own)  # the scheduler of 2.11 may have overwritten the stop
        found = client.fetch_active_runs(1000, "dagster__")
        return found is not None and own not in {run.run_id for run in found.entries}

    wait_for(is_over, f"run {own} is not active")
