"""The asset check `dag_run`, which observation evaluates once for each finished run."""

from __future__ import annotations

import time
from datetime import timedelta

import dagster as dg
import pytest

from federation_defs.naming import build_run_id
from tests.contract.conftest import Airflow
from tests.contract.execution.executing import materialize
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.database import TaskSpec
from tests.contract.fakes.faults import answer
from tests.contract.observation.daemon import (
    DAG,
    KEY,
    Daemon,
    Observed,
    fetch_evaluations,
    fetch_reported_run_ids,
)


def read_outcomes(instance: dg.DagsterInstance) -> list[tuple[str, bool | None]]:
    """Return run id and result of each evaluation, oldest first."""
    found = fetch_evaluations(instance, KEY)
    return [(str(evaluation.metadata["Run ID"].value), evaluation.passed) for evaluation in found]


def test_each_finished_run_is_one_evaluation(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG)
    daemon, database = Daemon(airflow.client, [DAG], instance), airflow.database
    for number, state in enumerate(["success", "failed", "success"]):
        ended = database.now() - timedelta(seconds=9 - number)
        database.finish_run(database.start_run(DAG, f"run_{number}"), state, end_date=ended)
    database.start_run(DAG, "goes on")
    for _ in range(3):
        daemon.tick()
    assert read_outcomes(instance) == [("run_0", True), ("run_1", False), ("run_2", True)]
    assert fetch_reported_run_ids(instance, KEY) == ["run_0", "run_2"]


def test_each_run_of_a_backlog_is_evaluated_also_if_a_later_one_was_before(
    observed: Observed,
) -> None:
    """Otherwise the check would show the failure, although runs after it are a success."""
    daemon = observed.daemon
    daemon = Daemon(daemon.client, [DAG], daemon.instance, lookback_on_first_start="7d")
    observed.add_run("newest", ended_s_ago=1)
    daemon.tick()
    late = [(f"late_{number:02}", number != 3) for number in range(30)]
    for number, (run_id, is_success) in enumerate(late):
        observed.add_run(run_id, "success" if is_success else "failed", ended_s_ago=100 - number)
    daemon.tick()
    assert read_outcomes(daemon.instance) == [("newest", True), *late]


def test_the_evaluation_of_a_success_identifies_the_run(observed: Observed) -> None:
    observed.add_run("mine")
    observed.daemon.tick()
    (evaluation,) = fetch_evaluations(observed.daemon.instance, KEY)
    url = observed.daemon.client.build_run_url(DAG, "mine")
    assert evaluation.description == "Run mine succeeded."
    assert evaluation.metadata["Link to run"] == dg.MetadataValue.url(url)
    assert evaluation.metadata["State"].value == "success"
    assert not [name for name in evaluation.metadata if name.startswith("Log of")]


def test_the_evaluation_of_a_failure_holds_failed_tasks_log_tails_and_a_link(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    load = TaskSpec("load", labels=("a", "b"), says=tuple(f"line {n}." for n in range(500)))
    airflow.database.add_dag(DAG, tasks=("extract", load))
    run = airflow.database.start_run(DAG, "mine")
    airflow.database.finish_run(run, "failed")
    Daemon(airflow.client, [DAG], instance).tick()
    (evaluation,) = fetch_evaluations(instance, KEY)
    assert evaluation.passed is False
    assert evaluation.description == "Run mine failed. Failed tasks: load[1]."
    log = str(evaluation.metadata["Log of load[1]"].value)
    assert "ValueError: load could not read its table" in log
    assert "line 499." in log
    assert "line 300." not in log
    url = airflow.client.build_run_url(DAG, "mine")
    assert evaluation.metadata["Link to run"].value == url


def test_the_lines_at_which_airflow_folds_a_log_are_not_shown(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    load = TaskSpec("load", says=("::group::Pre task execution logs", "line 1.", "::endgroup::"))
    airflow.database.add_dag(DAG, tasks=(load,))
    run = airflow.database.start_run(DAG, "mine")
    airflow.database.finish_run(run, "failed")
    Daemon(airflow.client, [DAG], instance).tick()
    (evaluation,) = fetch_evaluations(instance, KEY)
    log = str(evaluation.metadata["Log of load"].value)
    assert "line 1." in log
    assert "group::" not in log


def test_all_failed_tasks_are_named_and_three_of_their_logs_are_shown(observed: Observed) -> None:
    load = TaskSpec("load", labels=tuple("abcdefgh"))
    observed.database.add_dag(DAG, tasks=(load,))
    for task in observed.add_run("mine", "failed").tasks:
        task.state = "failed"
    observed.daemon.tick()
    (evaluation,) = fetch_evaluations(observed.daemon.instance, KEY)
    logs = [name for name in evaluation.metadata if name.startswith("Log of")]
    assert logs == ["Log of load[0]", "Log of load[1]", "Log of load[2]"]
    assert "load[0], load[1], load[2], load[3], load[4]" in (evaluation.description or "")


@pytest.mark.parametrize("what", ["taskInstances", "taskInstances/load/logs/1"])
def test_a_failure_is_reported_without_its_tasks_or_logs_if_they_are_forbidden(
    observed: Observed, what: str
) -> None:
    forbidden = answer(403, {"detail": "Forbidden"})
    observed.server.fail_next(asks("GET", f".*/{what}"), forbidden)
    observed.add_run("mine", "failed")
    observed.daemon.tick()
    (evaluation,) = fetch_evaluations(observed.daemon.instance, KEY)
    assert evaluation.passed is False
    reported = f"{evaluation.description} {evaluation.metadata.get('Log of load')}"
    assert "Airflow 'metrics' forbids GET " in reported


def test_a_success_that_is_set_to_failed_by_hand_fails_and_is_no_second_materialization(
    observed: Observed,
) -> None:
    run = observed.add_run("mine")
    observed.daemon.tick()
    executed = [("mine", True)]
    for state, passed in [("failed", False), ("success", True), ("failed", False)]:
        observed.database.set_state(run, state)
        assert observed.daemon.tick() == []
        executed.append(("mine", passed))
        assert read_outcomes(observed.daemon.instance) == executed
    assert observed.reported == ["mine"]


def test_a_run_that_is_cleared_and_runs_again_is_evaluated_again(observed: Observed) -> None:
    run = observed.add_run("mine", "failed")
    observed.daemon.tick()
    observed.database.clear(run)
    observed.daemon.tick()
    observed.database.finish_run(run)
    assert observed.daemon.tick() == ["mine"]
    assert observed.daemon.tick() == []
    assert read_outcomes(observed.daemon.instance) == [("mine", False), ("mine", True)]


def test_the_reports_of_a_deleted_run_stay(observed: Observed) -> None:
    run = observed.add_run("mine")
    observed.daemon.tick()
    observed.database.delete_run(run)
    assert observed.daemon.tick() == []
    assert read_outcomes(observed.daemon.instance) == [("mine", True)]
    assert observed.reported == ["mine"]


def test_a_run_that_never_started_and_is_set_to_failed_is_reported_without_logs(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG)
    run = airflow.database.start_run(DAG, "mine", state="queued")
    airflow.database.set_state(run, "failed")
    Daemon(airflow.client, [DAG], instance).tick()
    (evaluation,) = fetch_evaluations(instance, KEY)
    assert evaluation.passed is False
    assert evaluation.description == "Run mine failed. Failed tasks: none of its tasks."
    assert not [name for name in evaluation.metadata if name.startswith("Log of")]
    assert airflow.server.count("GET", ".*/logs/.*") == 0


def test_a_task_that_failed_before_it_ever_ran_has_no_log(observed: Observed) -> None:
    run = observed.database.start_run(DAG, "mine", state="queued")
    observed.database.set_state(run, "failed")
    run.tasks[0].state = "failed"
    observed.daemon.tick()
    (evaluation,) = fetch_evaluations(observed.daemon.instance, KEY)
    assert evaluation.metadata["Log of extract"].value == "It never ran."
    assert observed.server.count("GET", ".*/logs/.*") == 0


def test_a_lost_cursor_evaluates_nothing_twice(observed: Observed) -> None:
    observed.add_run("good")
    observed.add_run("bad", "failed")
    observed.daemon.tick()
    observed.daemon.cursor = None
    observed.daemon.tick()
    assert sorted(read_outcomes(observed.daemon.instance)) == [("bad", False), ("good", True)]


def report_long_ago(instance: dg.DagsterInstance, run_id: str, hours: float) -> None:
    """Store an evaluation that observation wrote hours ago."""
    evaluation = dg.AssetCheckEvaluation(
        asset_key=KEY,
        check_name="dag_run",
        passed=True,
        metadata={"Run ID": run_id, "State": "success"},
    )
    event = dg.DagsterEvent(
        event_type_value=dg.DagsterEventType.ASSET_CHECK_EVALUATION.value,
        job_name="",
        event_specific_data=evaluation,
    )
    entry = dg.EventLogEntry(
        error_info=None,
        level="INFO",
        user_message="",
        run_id="",
        timestamp=time.time() - hours * 3600,
        dagster_event=event,
    )
    instance.event_log_storage.store_event(entry)


def test_a_long_run_that_its_step_evaluated_is_not_evaluated_again(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """Dagster writes a step's evaluation into the row of its plan, which is older than the events
    that observation wrote while the DAG was running."""
    airflow_v2.database.add_dag(DAG, polls=0)
    executed = materialize(airflow_v2.client, [DAG], instance)
    report_long_ago(instance, "of a person, in the meantime", hours=3)
    Daemon(airflow_v2.client, [DAG], instance).tick()
    own = build_run_id(executed.run_id)
    assert [run_id for run_id, _ in read_outcomes(instance)].count(own) == 1
