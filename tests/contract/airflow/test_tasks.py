"""Task instances and their logs as the client reads them, from fake and real Airflows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from federation_defs.airflow.models import TaskInstance
from federation_defs.errors import AirflowError
from tests.contract.airflow.test_runs import start_endless_run
from tests.contract.worlds import (
    LINES,
    FakeWorld,
    World,
    find_finished_run,
    run_dag,
    wait_for_end,
)
from tests.waiting import wait_for

LOG = ".*/logs/1"


def test_a_failed_run_has_a_failed_task_whose_log_holds_the_error(fake_world: FakeWorld) -> None:
    with fake_world.failing() as error:
        run = run_dag(fake_world)
    assert run.state == "failed"
    tasks = fake_world.client.fetch_task_instances(fake_world.dag_id, run.run_id)
    (failed,) = [task for task in tasks if task.state == "failed"]
    assert error in fake_world.client.fetch_log(fake_world.dag_id, run.run_id, failed)


def test_clearing_the_failed_tasks_runs_only_them_again_and_keeps_their_logs(world: World) -> None:
    with world.failing() as error:
        run = run_dag(world)
    assert run.state == "failed"
    tries = {
        task.task_id: task.try_number + (task.state == "failed")
        for task in world.client.fetch_task_instances(world.dag_id, run.run_id)
    }
    world.client.clear_failed_tasks(world.dag_id, run.run_id)
    assert wait_for_end(world, run.run_id).is_success
    tasks = world.client.fetch_task_instances(world.dag_id, run.run_id)
    assert {task.task_id: task.try_number for task in tasks} == tries
    again = max(tasks, key=lambda task: task.try_number)  # a busy Airflow may take a third one
    assert again.try_number >= 2

    def fetch_log(try_number: int | None = None) -> str:
        task = replace(again, try_number=try_number or again.try_number)
        return world.client.fetch_log(world.dag_id, run.run_id, task)

    assert (error in fetch_log(1), error in fetch_log()) == (True, False)
    # The task's process says its last words when its run is over already.
    wait_for(lambda: fetch_log() == fetch_log(again.try_number), "the log is whole")


def test_a_mapped_task_is_there_once_per_index_with_a_log_of_its_own(world: World) -> None:
    run = find_finished_run(world, "mapped")
    tasks = world.client.fetch_task_instances("mapped", run.run_id)
    assert [(task.task_id, task.map_index) for task in tasks] == [
        ("weigh", index) for index in range(3)
    ]
    labels = ["number 10", "number 20", "number 30"]
    for task, own in zip(tasks, labels, strict=True):
        log = world.client.fetch_log("mapped", run.run_id, task)
        assert [label for label in labels if label in log] == [own]


def test_a_task_that_ran_has_its_end_and_its_tries(world: World) -> None:
    run = find_finished_run(world, "mapped")
    for task in world.client.fetch_task_instances("mapped", run.run_id):
        assert task.end_date is not None
        assert run.start_date is not None
        assert run.end_date is not None
        assert run.start_date <= task.end_date <= run.end_date
        assert (task.state, task.try_number) == ("success", 1)


def test_a_long_log_that_is_not_ascii_is_read_to_its_end(world: World) -> None:
    run = run_dag(world, "wordy")
    (task,) = world.client.fetch_task_instances("wordy", run.run_id)
    log = world.client.fetch_log("wordy", run.run_id, task)
    lines = [line for line in log.splitlines() if "größer als 数" in line]
    assert len(lines) == LINES
    for number, line in enumerate(lines):
        assert f"line {number:05d}: größer" in line


def test_the_log_of_a_running_task_is_what_it_wrote_so_far(fake_world: FakeWorld) -> None:
    run, task = start_endless_run(fake_world)

    def has_spoken() -> bool:
        return "waiting in process" in fake_world.client.fetch_log("endless", run.run_id, task)

    wait_for(has_spoken, "the task's words are in its log")
    fake_world.client.stop_run("endless", run.run_id)


def test_an_unknown_task_has_no_log(fake_world: FakeWorld) -> None:
    run = run_dag(fake_world)
    unknown = TaskInstance("nobody_knows_it", map_index=-1, state="failed", try_number=1)
    with pytest.raises(AirflowError, match="404"):
        fake_world.client.fetch_log(fake_world.dag_id, run.run_id, unknown)
