"""What the client asks and does, on an Airflow of either API version, fake or real."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from werkzeug import Response

from federation_defs.airflow.records import DagRun
from federation_defs.errors import AirflowError, DagNotFoundError, RunLostError
from tests.contract.conftest import Airflow
from tests.contract.fake_airflow import asks
from tests.contract.faults import Act
from tests.contract.worlds import World, make_run_id, run_dag, wait_for_end


def fetch_own_runs(world: World, run_id: str, since: datetime) -> list[DagRun]:
    """All runs of this id among those that changed."""
    runs = world.client.fetch_changed_runs(since).runs
    return [run for run in runs if (run.dag_id, run.run_id) == (world.dag_id, run_id)]


def an_hour_ago() -> datetime:
    return datetime.now(timezone.utc) - timedelta(hours=1)


def test_the_api_version_is_found_out(world: World) -> None:
    assert world.client.dialect.api == world.api


def test_the_version_is_of_the_major_that_serves_the_api(world: World) -> None:
    assert world.client.fetch_version().startswith({"v1": "2.", "v2": "3."}[world.api])


def test_a_dag_is_in_the_list_as_it_is_on_its_own(world: World) -> None:
    listed = [dag for dag in world.client.fetch_dags() if dag.dag_id == world.dag_id]
    assert listed == [world.client.fetch_dag(world.dag_id)]


def test_a_dag_tells_whether_it_is_paused(world: World) -> None:
    world.set_paused(is_paused=True)
    is_paused = world.client.fetch_dag(world.dag_id).is_paused
    world.set_paused(is_paused=False)
    assert (is_paused, world.client.fetch_dag(world.dag_id).is_paused) == (True, False)


def test_the_source_of_a_dag_is_text(world: World) -> None:
    source = world.client.fetch_dag_source(world.client.fetch_dag(world.dag_id))
    compile(source, world.dag_id, "exec")


def test_an_unknown_dag_is_not_found(world: World) -> None:
    with pytest.raises(DagNotFoundError, match="has no DAG 'nobody_knows_it'"):
        world.client.fetch_dag("nobody_knows_it")


def test_an_unknown_dag_cannot_be_triggered(world: World) -> None:
    with pytest.raises(DagNotFoundError, match="has no DAG 'nobody_knows_it'"):
        world.client.trigger_run("nobody_knows_it", make_run_id())


def test_an_unknown_run_is_none(world: World) -> None:
    assert world.client.fetch_run(world.dag_id, make_run_id()) is None


def test_an_unknown_run_cannot_be_cleared(world: World) -> None:
    with pytest.raises(RunLostError, match="to clear"):
        world.client.clear_failed_tasks(world.dag_id, make_run_id())


def test_a_triggered_run_is_there_and_ends(world: World) -> None:
    run_id = make_run_id()
    triggered = world.client.trigger_run(world.dag_id, run_id)
    assert (triggered.dag_id, triggered.run_id) == (world.dag_id, run_id)
    assert not triggered.is_finished
    ended = wait_for_end(world, run_id)
    assert ended.is_success
    assert ended.start_date is not None
    assert ended.end_date is not None
    assert ended.start_date <= ended.end_date


def test_a_run_id_that_is_there_is_adopted_and_not_run_twice(world: World) -> None:
    since, run_id = an_hour_ago(), make_run_id()
    first = world.client.trigger_run(world.dag_id, run_id)
    second = world.client.trigger_run(world.dag_id, run_id)
    assert (second.run_id, second.logical_date) == (first.run_id, first.logical_date)
    assert wait_for_end(world, run_id).is_success
    assert world.client.trigger_run(world.dag_id, run_id).is_success
    assert len(fetch_own_runs(world, run_id, since)) == 1


def test_a_conf_comes_back_as_it_went(world: World) -> None:
    conf = {"day": "2026-01-02", "sizes": [1, 2.5, None], "deep": {"ünï": True}}
    run_id = make_run_id()
    world.client.trigger_run(world.dag_id, run_id, conf)
    assert wait_for_end(world, run_id).conf == conf


def test_a_new_run_is_among_the_changed_ones_and_so_is_its_end(world: World) -> None:
    since, run_id = an_hour_ago(), make_run_id()
    world.client.trigger_run(world.dag_id, run_id)
    (new,) = fetch_own_runs(world, run_id, since)
    assert not new.is_finished
    ended = wait_for_end(world, run_id)
    assert fetch_own_runs(world, run_id, since) == [ended]


def test_what_ended_before_the_moment_asked_for_is_not_among_the_changed(world: World) -> None:
    run = run_dag(world)
    assert run.end_date is not None
    later = run.end_date + timedelta(minutes=1)
    assert fetch_own_runs(world, run.run_id, later) == []


def test_a_state_set_by_hand_is_a_change_though_the_end_stays(world: World) -> None:
    run = run_dag(world)
    world.set_state(run.run_id, "failed")
    assert run.end_date is not None
    (changed,) = fetch_own_runs(world, run.run_id, an_hour_ago())
    assert (changed.state, changed.end_date) == ("failed", run.end_date)


def test_a_cleared_run_is_a_change_and_has_lost_its_dates(world: World) -> None:
    run = run_dag(world)
    world.set_paused(is_paused=True)  # so that it stays as the clear leaves it
    world.clear(run.run_id)
    (changed,) = fetch_own_runs(world, run.run_id, an_hour_ago())
    world.set_paused(is_paused=False)
    assert (changed.state, changed.start_date, changed.end_date) == ("queued", None, None)
    assert wait_for_end(world, run.run_id).end_date != run.end_date


def test_the_changed_runs_come_with_the_servers_own_time(world: World) -> None:
    server_time = world.client.fetch_changed_runs(an_hour_ago()).server_time
    assert server_time is not None
    assert abs(server_time - datetime.now(timezone.utc)) < timedelta(seconds=30)


def test_a_failed_run_has_a_failed_task_whose_log_holds_the_error(world: World) -> None:
    with world.failing() as error:
        run = run_dag(world)
    assert run.state == "failed"
    tasks = world.client.fetch_task_instances(world.dag_id, run.run_id)
    (failed,) = [task for task in tasks if task.state == "failed"]
    assert error in world.client.fetch_log(world.dag_id, run.run_id, failed)


def test_clearing_the_failed_tasks_runs_them_again_and_no_others(world: World) -> None:
    with world.failing():
        run = run_dag(world)
    tries = {
        task.task_id: task.try_number + (task.state == "failed")
        for task in world.client.fetch_task_instances(world.dag_id, run.run_id)
    }
    world.client.clear_failed_tasks(world.dag_id, run.run_id)
    assert wait_for_end(world, run.run_id).is_success
    again = world.client.fetch_task_instances(world.dag_id, run.run_id)
    assert {task.task_id: task.try_number for task in again} == tries


def test_a_wrong_password_is_told_as_such(world: World) -> None:
    """2.11 as it comes answers 403 to it: who is not known has the role Public."""
    client = world.connect_with_password("not-the-password")
    with pytest.raises(AirflowError) as refused:
        client.fetch_dags()
    assert client.instance in str(refused.value)
    assert f"{client.instance.upper()}_PASSWORD" in str(refused.value)
    assert "not-the-password" not in str(refused.value)


def test_all_dags_are_listed_though_the_server_clamps_the_pages(airflow: Airflow) -> None:
    dag_ids = [f"dag_{number:03}" for number in range(250)]
    for dag_id in dag_ids:
        airflow.database.add_dag(dag_id)
    assert [dag.dag_id for dag in airflow.client.fetch_dags()] == dag_ids
    assert airflow.server.count("GET", "/dags") == 3


def test_all_changed_runs_are_listed_by_a_server_with_smaller_pages(airflow: Airflow) -> None:
    airflow.database.add_dag("load_customers")
    runs = [airflow.database.start_run("load_customers") for _ in range(25)]
    airflow.server.endpoints.page_limit = 10
    changed = airflow.client.fetch_changed_runs(an_hour_ago()).runs
    assert [run.run_id for run in changed] == [run.run_id for run in runs]
    assert airflow.server.count("GET", "/dags/~/dagRuns") == 3


def test_runs_that_change_while_the_list_is_read_push_no_others_out(airflow: Airflow) -> None:
    """Were there an upper bound, or an order by time, later pages would begin too late."""
    airflow.database.add_dag("load_customers")
    runs = [airflow.database.start_run("load_customers") for _ in range(25)]
    airflow.server.endpoints.page_limit = 10

    def let_the_first_end(act: Act) -> Response:
        response = act()
        airflow.database.finish_run(runs[0])
        return response

    airflow.server.fail_next(asks("GET", "/dags/~/dagRuns"), let_the_first_end)
    changed = airflow.client.fetch_changed_runs(an_hour_ago()).runs
    assert [run.run_id for run in changed] == [run.run_id for run in runs]


def test_a_dag_has_its_fields(airflow: Airflow) -> None:
    airflow.database.add_dag(
        "load_customers",
        description="Loads customers.",
        owners=("sales", "data@example.com"),
        tags=("daily", "crm"),
        schedule="0 3 * * *",
        source="print('hello')",
    )
    dag = airflow.client.fetch_dag("load_customers")
    assert (dag.description, dag.schedule) == ("Loads customers.", "0 3 * * *")
    assert (dag.owners, dag.tags) == (("sales", "data@example.com"), ("daily", "crm"))
    assert (dag.is_paused, dag.is_present) == (False, True)
    assert airflow.client.fetch_dag_source(dag) == "print('hello')"


def test_a_dag_whose_file_has_gone_is_not_found(airflow: Airflow) -> None:
    airflow.database.add_dag("load_customers", is_present=False)
    with pytest.raises(DagNotFoundError, match="its file has gone"):
        airflow.client.fetch_dag("load_customers")
    assert airflow.client.fetch_dags() == []


def test_the_log_of_a_mapped_task_is_that_of_its_index(airflow: Airflow) -> None:
    airflow.database.add_dag("load_customers", tasks=("load", "load"))
    run = airflow.database.start_run("load_customers")
    for index, task in enumerate(run.tasks):
        task.map_index = index
    airflow.database.finish_run(run, "failed")
    run.tasks[0].log, run.tasks[1].log = ["the first"], ["the second"]
    tasks = airflow.client.fetch_task_instances("load_customers", run.run_id)
    logs = [airflow.client.fetch_log("load_customers", run.run_id, task) for task in tasks]
    assert [task.map_index for task in tasks] == [0, 1]
    assert "the first" in logs[0]
    assert "the second" in logs[1]
