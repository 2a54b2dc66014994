"""Observation of DAGs with `success_when`."""

# No `from __future__ import annotations` here: Dagster refuses a context annotated with text.

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import dagster as dg
import pytest
from werkzeug import Response

from federation_defs.declaration import SuccessDeclaration
from federation_defs.naming import build_asset_key, build_run_id
from federation_defs.timing import Timing
from tests.contract.conftest import Airflow
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.database import Database, RunRow, TaskSpec
from tests.contract.fakes.faults import LOGIN_PAGE, Act, Fault, answer, hang_up
from tests.contract.observation.daemon import (
    Daemon,
    FakeClock,
    fetch_evaluations,
    fetch_reported_runs,
)
from tests.contract.observation.test_ownership import run_owner

DAG = "load_customers"
OTHER = "load_orders"
KEY, OTHER_KEY = build_asset_key("metrics", DAG), build_asset_key("metrics", OTHER)
TASKS = ("extract", "load", "clean_up")
LOAD = SuccessDeclaration(tasks=["load"])
BUT_CLEAN_UP = SuccessDeclaration(all_except=["clean_up"])
FORBIDDEN = answer(403, {"detail": "Forbidden"})


def build_daemon(
    airflow: Airflow,
    instance: dg.DagsterInstance,
    rule: SuccessDeclaration = LOAD,
    timing: Timing | None = None,
) -> Daemon:
    """The daemon of an instance with two DAGs, one of which has a rule."""
    for dag_id in (DAG, OTHER):
        if dag_id not in airflow.database.dags:
            airflow.database.add_dag(dag_id, tasks=TASKS)
    daemon = Daemon(airflow.client, [DAG, OTHER], instance, timing=timing)
    daemon.rules[DAG] = rule
    daemon.restart()
    return daemon


def add_run(
    database: Database,
    run_id: str,
    state: str,
    tasks: Mapping[str, str] | None = None,
    *,
    dag_id: str = DAG,
    ended_s_ago: float = 1,
) -> RunRow:
    """Add a finished run.

    Args:
        tasks: The states of those tasks that did not succeed.
    """
    run = database.start_run(dag_id, run_id)
    database.finish_run(run, end_date=database.now() - timedelta(seconds=ended_s_ago))
    run.state = state
    for task in run.tasks:
        name = task.task_id if task.map_index < 0 else f"{task.task_id}[{task.map_index}]"
        task.state = (tasks or {}).get(name, "success")
    return run


@dataclass
class Outage:
    """A fault that lasts until it is over."""

    fault: Fault
    is_over: bool = False

    def __call__(self, act: Act) -> Response | None:
        return act() if self.is_over else self.fault(act)


def break_tasks(airflow: Airflow, fault: Fault, run_id: str = "[^/]+") -> Outage:
    """Break the answers about the tasks of a DAG's runs."""
    outage = Outage(fault)
    path = f"/dags/{DAG}/dagRuns/{run_id}/taskInstances"
    airflow.server.fail_next(asks("GET", path), outage, times=99)
    return outage


def read_last(daemon: Daemon, key: dg.AssetKey = KEY) -> tuple[bool | None, str]:
    """Return result and description of a DAG's last evaluation."""
    last = fetch_evaluations(daemon.instance, key)[-1]
    return last.passed, last.description or ""


def test_a_failed_run_whose_named_tasks_succeeded_is_materialized_with_its_state(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = build_daemon(airflow, instance)
    add_run(airflow.database, "mine", "failed", {"clean_up": "failed"})
    assert daemon.tick() == ["mine"]
    assert daemon.tick() == []
    (metadata,) = fetch_reported_runs(instance, KEY)
    assert metadata["State"].value == "failed"
    (evaluation,) = fetch_evaluations(instance, KEY)
    assert (evaluation.passed, evaluation.metadata["State"].value) == (True, "failed")
    assert evaluation.description == (
        "Run mine failed. Failed tasks: clean_up. By its `success_when` it is a success all the "
        "same."
    )


@pytest.mark.parametrize("state", ["skipped", "failed", "upstream_failed"])
def test_a_successful_run_without_its_named_task_is_no_success(
    airflow: Airflow, instance: dg.DagsterInstance, state: str
) -> None:
    daemon = build_daemon(airflow, instance)
    add_run(airflow.database, "mine", "success", {"load": state})
    assert daemon.tick() == []
    assert daemon.tick() == []
    (evaluation,) = fetch_evaluations(instance, KEY)
    missing = "'load' did not run" if state == "skipped" else f"load is {state}"
    assert evaluation.passed is False
    assert evaluation.description == (
        f"Run mine succeeded. By its `success_when` it is not a success: {missing}."
    )
    assert ("Log of load" in evaluation.metadata) == (state == "failed")


def test_without_a_rule_the_runs_state_decides(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = build_daemon(airflow_v2, instance)
    add_run(airflow_v2.database, "green", "success", {"load": "skipped"}, dag_id=OTHER)
    add_run(airflow_v2.database, "red", "failed", {"clean_up": "failed"}, dag_id=OTHER)
    assert daemon.tick() == ["green"]
    assert [evaluation.passed for evaluation in fetch_evaluations(instance, OTHER_KEY)] == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("states", "missing"),
    [
        ({"load[0]": "skipped", "clean_up": "failed"}, None),
        ({"load[1]": "failed"}, "load[1] is failed."),
        ({f"load[{index}]": "skipped" for index in range(3)}, "'load' did not run."),
    ],
    ids=["one skipped", "one failed", "all skipped"],
)
def test_a_mapped_task_stands_for_all_its_instances(
    airflow: Airflow, instance: dg.DagsterInstance, states: dict[str, str], missing: str | None
) -> None:
    load = TaskSpec("load", labels=("a", "b", "c"))
    airflow.database.add_dag(DAG, tasks=("extract", load, "clean_up"))
    daemon = build_daemon(airflow, instance)
    add_run(airflow.database, "mine", "failed", states)
    assert daemon.tick() == ([] if missing else ["mine"])
    passed, words = read_last(daemon)
    assert passed == (missing is None)
    assert words.endswith(missing or "By its `success_when` it is a success all the same.")


@pytest.mark.parametrize(("task", "is_success"), [("clean_up", True), ("extract", False)])
def test_with_all_except_every_other_task_has_to_succeed(
    airflow: Airflow, instance: dg.DagsterInstance, task: str, *, is_success: bool
) -> None:
    daemon = build_daemon(airflow, instance, BUT_CLEAN_UP)
    add_run(airflow.database, "mine", "failed", {task: "failed"})
    assert daemon.tick() == (["mine"] if is_success else [])
    assert read_last(daemon)[0] == is_success


def test_forbidden_tasks_make_no_success_and_delay_no_other_dag(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = build_daemon(airflow, instance)
    break_tasks(airflow, FORBIDDEN)
    add_run(airflow.database, "mine", "success", ended_s_ago=2)
    add_run(airflow.database, "other", "success", dag_id=OTHER)
    assert daemon.tick() == ["other"]
    passed, words = read_last(daemon)
    assert passed is False
    assert "`success_when` can't be checked: Airflow 'metrics' forbids GET " in words
    assert daemon.tick() == []
    assert fetch_reported_runs(instance, KEY) == []


AWAY = {"hangs up": hang_up, "503": answer(503, LOGIN_PAGE), "500": answer(500, {"detail": "no"})}


@pytest.mark.parametrize("fault", AWAY.values(), ids=AWAY.keys())
def test_a_run_waits_for_its_tasks_while_they_can_not_be_fetched(
    airflow: Airflow, instance: dg.DagsterInstance, fault: Fault
) -> None:
    daemon = build_daemon(airflow, instance)
    outage = break_tasks(airflow, fault)
    add_run(airflow.database, "first", "success", ended_s_ago=3)
    add_run(airflow.database, "second", "failed", {"clean_up": "failed"}, ended_s_ago=2)
    add_run(airflow.database, "other", "success", dag_id=OTHER)
    assert daemon.tick() == ["other"]
    assert fetch_evaluations(instance, KEY) == []
    outage.is_over = True
    assert daemon.tick() == ["first", "second"]
    assert [evaluation.passed for evaluation in fetch_evaluations(instance, KEY)] == [True, True]
    assert len(fetch_evaluations(instance, OTHER_KEY)) == 1
    assert daemon.tick() == []


def test_tasks_that_can_not_be_fetched_for_ten_minutes_make_no_success(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    clock = FakeClock()
    daemon = build_daemon(airflow_v2, instance, timing=clock.timing)
    outage = break_tasks(airflow_v2, answer(200, "<html>maintenance"), "first")
    add_run(airflow_v2.database, "first", "success", ended_s_ago=3)
    add_run(airflow_v2.database, "second", "success", ended_s_ago=2)
    assert daemon.tick() == []
    clock.advance(599)
    assert daemon.tick() == []
    clock.advance(2)
    assert daemon.tick() == ["second"]
    first, second = fetch_evaluations(instance, KEY)
    assert (first.passed, second.passed) == (False, True)
    assert "`success_when` can't be checked: Airflow 'metrics' " in (first.description or "")
    outage.is_over = True
    assert daemon.tick() == []


def test_later_runs_of_a_dag_wait_with_an_earlier_one(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = build_daemon(airflow_v2, instance)
    for number in range(4):
        add_run(airflow_v2.database, f"run_{number}", "success", ended_s_ago=9 - number)
    outage = break_tasks(airflow_v2, hang_up, "run_1")
    assert daemon.tick() == ["run_0"]
    outage.is_over = True
    add_run(airflow_v2.database, "run_4", "success")
    assert daemon.tick() == ["run_1", "run_2", "run_3", "run_4"]


def test_a_run_waits_if_a_maintenance_page_is_returned_instead_of_its_tasks(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """Otherwise it would never be reported as a success."""
    daemon = build_daemon(airflow_v2, instance)
    outage = break_tasks(airflow_v2, answer(200, "<html>maintenance"))
    add_run(airflow_v2.database, "mine", "success")
    assert daemon.tick() == []
    outage.is_over = True
    assert daemon.tick() == ["mine"]


def test_a_deferred_run_that_has_to_wait_afterwards_is_not_lost(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """When its owner died it had left the overlap, and its tasks could not be fetched."""
    daemon = build_daemon(airflow_v2, instance)

    def die_late(context: dg.OpExecutionContext) -> None:
        run = add_run(airflow_v2.database, build_run_id(context.run_id), "success")
        run.updated_at -= timedelta(minutes=10)
        assert daemon.tick() == []
        assert daemon.tick() == []
        raise RuntimeError("killed before it could report")

    run_id = build_run_id(run_owner(instance, die_late).run_id)
    outage = break_tasks(airflow_v2, hang_up)
    assert daemon.tick() == []
    outage.is_over = True
    assert daemon.tick() == [run_id]
