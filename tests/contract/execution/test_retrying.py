"""Re-executing a Dagster run whose DAG run failed: `trigger.on_retry`."""

from __future__ import annotations

import math
from typing import Any

import dagster as dg
import pytest

from federation_defs.naming import build_asset_key, build_run_id
from tests.contract.conftest import Airflow
from tests.contract.execution.executing import DagsterJob, ExecutedRun
from tests.contract.execution.interrupting import after_acting, cancel, instead_of_acting, interrupt
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.database import RunRow
from tests.contract.fakes.faults import Fault, hang_up, hang_up_after_acting
from tests.contract.observation.daemon import Daemon, fetch_reported_run_ids

DAG = "customer_metrics"
KEY = build_asset_key("metrics", DAG)
TRIGGER = f"/dags/{DAG}/dagRuns"
CLEAR = f"/dags/{DAG}/clearTaskInstances|{TRIGGER}/[^/]+/clear"
RETRY = {"dagster/retry_number": "1"}
EACH_WAY = pytest.mark.parametrize("on_retry", ["clear_failed", "clear_all"])


def declare(on_retry: str) -> dict[str, Any]:
    return {"trigger": {"on_retry": on_retry}}


def read_tries(run: RunRow) -> dict[str, int]:
    return {task.task_id: task.try_number for task in run.tasks}


class Retried:
    """A DAG whose first run failed, and the job that runs it."""

    def __init__(self, airflow: Airflow, instance: dg.DagsterInstance, on_retry: str) -> None:
        self.airflow = airflow
        self.dag = airflow.database.add_dag(DAG, polls=0, outcome="failed")
        self.job = DagsterJob(airflow.client, [DAG], instance, declare(on_retry))
        self.first = self.job.execute()
        assert "Failed tasks: load" in (self.first.failure or "")

    @property
    def run_ids(self) -> list[str]:
        return [run.run_id for run in self.airflow.database.runs]

    def build_run_id(self, number: int = 1) -> str:
        return build_run_id(self.first.run_id, number=number)

    def execute_after_mending(self, parent: ExecutedRun, **tags: str) -> ExecutedRun:
        self.dag.outcome = "success"
        return self.job.execute(parent, tags)


def test_all_tasks_run_again_with_clear_all(airflow: Airflow, instance: dg.DagsterInstance) -> None:
    retried = Retried(airflow, instance, "clear_all")
    second = retried.execute_after_mending(retried.first)
    assert second.materialized == [DAG]
    (run,) = airflow.database.runs
    assert read_tries(run) == {"extract": 2, "load": 2}


def test_each_re_execution_starts_another_run_with_new_run(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    retried = Retried(airflow, instance, "new_run")
    second = retried.job.execute(retried.first)
    assert "Failed tasks: load" in (second.failure or "")
    third = retried.execute_after_mending(second)
    ids = [retried.build_run_id(number) for number in (1, 2, 3)]
    assert retried.run_ids == ids
    assert ids[1:] == [f"dagster__{retried.first.run_id}__retry_{number}" for number in (2, 3)]
    assert third.metadata[DAG]["Run ID"].value == ids[2]
    assert [run.state for run in airflow.database.runs] == ["failed", "failed", "success"]
    assert [read_tries(run)["load"] for run in airflow.database.runs] == [1, 1, 1]
    assert Daemon(airflow.client, [DAG], instance).tick() == []
    assert fetch_reported_run_ids(instance, KEY) == [ids[2]]


def test_a_new_run_that_goes_on_is_adopted_by_a_retry(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    retried = Retried(airflow_v2, instance, "new_run")
    retried.dag.polls = None
    airflow_v2.server.fail_next(asks("POST", TRIGGER), after_acting(interrupt))
    second = retried.job.execute(retried.first)
    assert (second.success, len(retried.run_ids)) == (False, 2)
    airflow_v2.database.finish_after(airflow_v2.database.runs[-1], polls=1)
    third = retried.job.execute(second)
    assert third.metadata[DAG]["Run ID"].value == retried.build_run_id(2)
    assert len(retried.run_ids) == 2


@pytest.mark.parametrize("on_retry", ["clear_failed", "clear_all", "new_run"])
def test_dagsters_own_retry_leaves_a_failed_run_failed_whatever_is_declared(
    airflow_v2: Airflow, instance: dg.DagsterInstance, on_retry: str
) -> None:
    retried = Retried(airflow_v2, instance, on_retry)
    second = retried.execute_after_mending(retried.first, **RETRY)
    assert "Failed tasks: load" in (second.failure or "")
    (run,) = airflow_v2.database.runs
    assert read_tries(run) == {"extract": 1, "load": 1}


def test_a_new_run_that_failed_is_left_failed_by_dagsters_own_retry(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    retried = Retried(airflow_v2, instance, "new_run")
    second = retried.job.execute(retried.first)
    third = retried.execute_after_mending(second, **RETRY)
    assert (third.success, retried.run_ids[2:]) == (False, [])
    assert retried.build_run_id(2) in (third.failure or "")


@EACH_WAY
def test_a_clear_that_a_worker_died_before_is_made_by_dagsters_own_retry(
    airflow: Airflow, instance: dg.DagsterInstance, on_retry: str
) -> None:
    """A person wanted it, and it was put down before it was to be done."""
    retried = Retried(airflow, instance, on_retry)
    airflow.server.fail_next(asks("POST", CLEAR), instead_of_acting(interrupt))
    second = retried.job.execute(retried.first)
    (run,) = airflow.database.runs
    assert (second.success, run.state, read_tries(run)["load"]) == (False, "failed", 1)
    third = retried.execute_after_mending(second, **RETRY)
    assert third.materialized == [DAG]
    assert read_tries(run)["load"] == 2


@EACH_WAY
def test_a_clear_that_a_worker_died_after_is_not_made_again(
    airflow: Airflow, instance: dg.DagsterInstance, on_retry: str
) -> None:
    """What was cleared has failed once more by then; a person may clear it yet again."""
    retried = Retried(airflow, instance, on_retry)
    (run,) = airflow.database.runs

    def fail_again_and_die() -> None:
        airflow.database.finish_run(run, "failed")
        interrupt()

    airflow.server.fail_next(asks("POST", CLEAR), after_acting(fail_again_and_die))
    second = retried.job.execute(retried.first)
    assert (second.success, read_tries(run)["load"]) == (False, 2)
    third = retried.execute_after_mending(second, **RETRY)
    assert "Failed tasks: load" in (third.failure or "")
    assert read_tries(run)["load"] == 2
    assert retried.execute_after_mending(third).materialized == [DAG]
    assert read_tries(run)["load"] == 3


def test_a_new_run_that_a_worker_died_before_is_started_by_dagsters_own_retry(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    retried = Retried(airflow_v2, instance, "new_run")
    airflow_v2.server.fail_next(asks("POST", TRIGGER), instead_of_acting(interrupt))
    second = retried.job.execute(retried.first)
    assert (second.success, len(retried.run_ids)) == (False, 1)
    third = retried.execute_after_mending(second, **RETRY)
    assert third.materialized == [DAG]
    assert retried.run_ids == [retried.build_run_id(1), retried.build_run_id(2)]


def test_a_new_run_that_a_worker_died_after_is_not_started_again(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    retried = Retried(airflow_v2, instance, "new_run")
    airflow_v2.server.fail_next(asks("POST", TRIGGER), after_acting(interrupt))
    second = retried.job.execute(retried.first)
    assert (second.success, len(retried.run_ids)) == (False, 2)
    third = retried.execute_after_mending(second, **RETRY)
    assert (third.success, len(retried.run_ids)) == (False, 2)


@pytest.mark.parametrize("polls", [0, 1], ids=["over by then", "going on"])
@pytest.mark.parametrize("fault", [hang_up, hang_up_after_acting], ids=["not done", "done"])
@pytest.mark.parametrize("executed", ["success", "failed"])
def test_a_clear_whose_answer_is_lost_is_made_once(
    airflow_v2: Airflow, instance: dg.DagsterInstance, fault: Fault, executed: str, polls: int
) -> None:
    retried = Retried(airflow_v2, instance, "clear_failed")
    retried.dag.outcome, retried.dag.polls = executed, polls
    airflow_v2.server.fail_next(asks("POST", CLEAR), fault)
    second = retried.job.execute(retried.first)
    assert second.success is (executed == "success")
    (run,) = airflow_v2.database.runs
    assert read_tries(run) == {"extract": 1, "load": 2}


@pytest.mark.parametrize("fault", [hang_up, hang_up_after_acting], ids=["not done", "done"])
def test_a_new_run_whose_answer_is_lost_is_started_once(
    airflow_v2: Airflow, instance: dg.DagsterInstance, fault: Fault
) -> None:
    retried = Retried(airflow_v2, instance, "new_run")
    airflow_v2.server.fail_next(asks("POST", TRIGGER), fault)
    second = retried.job.execute(retried.first)
    assert "Failed tasks: load" in (second.failure or "")
    assert retried.run_ids == [retried.build_run_id(1), retried.build_run_id(2)]


def test_a_new_run_whose_answer_is_lost_is_stopped_with_a_canceled_run(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    retried = Retried(airflow_v2, instance, "new_run")
    retried.dag.polls = math.inf

    def lose_sight_and_cancel() -> None:
        query = asks("GET", f"{TRIGGER}/.*retry_2")
        airflow_v2.server.fail_next(query, hang_up, times=4)  # is it there after all?
        cancel(instance)

    airflow_v2.server.fail_next(asks("POST", TRIGGER), after_acting(lose_sight_and_cancel))
    second = retried.job.execute(retried.first)
    assert second.status is dg.DagsterRunStatus.CANCELED
    assert [run.state for run in airflow_v2.database.runs] == ["failed", "failed"]


def test_a_tag_that_somebody_edited_is_ignored(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    retried = Retried(airflow_v2, instance, "clear_failed")
    for spoiled in ("", "[]", '{"customer_metrics": 1}', '{"customer_metrics": ["a"]}'):
        tags = {"federation/runs_again.metrics": spoiled, **RETRY}
        second = retried.job.execute(retried.first, tags)
        assert "Failed tasks: load" in (second.failure or "")
    assert read_tries(airflow_v2.database.runs[0])["load"] == 1
