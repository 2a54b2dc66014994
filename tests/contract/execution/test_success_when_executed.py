"""`success_when`: DAGs whose success depends on some of their tasks, run by Dagster."""

from __future__ import annotations

import dagster as dg
from werkzeug import Response

from federation_defs.declaration import SuccessDeclaration
from federation_defs.naming import build_asset_key, build_run_id
from tests.contract.conftest import Airflow
from tests.contract.execution.executing import TIMEOUT, DagsterJob, materialize
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.database import RunRow
from tests.contract.fakes.faults import Act, Fault, answer, hang_up
from tests.contract.observation.daemon import Daemon, fetch_evaluations, fetch_reported_run_ids

DAG = "customer_metrics"
KEY = build_asset_key("metrics", DAG)
TASKS = ("extract", "load", "clean_up")
LOAD = {"success_when": {"tasks": ["load"]}}
TRIGGER = f"/dags/{DAG}/dagRuns"
TASKS_OF_A_RUN = f"{TRIGGER}/[^/]+/taskInstances"


def end_with(airflow: Airflow, **states: str) -> Fault:
    """As the tasks are asked for the first time, some of them are found in other states."""

    def change(act: Act) -> Response:
        for task in airflow.database.runs[0].tasks:
            task.state = states.get(task.task_id, task.state)
        return act()

    return change


def add_green_dag_without_its_data(airflow: Airflow, state: str = "skipped") -> None:
    """Its first run succeeds, but for one task."""
    airflow.database.add_dag(DAG, polls=0, tasks=TASKS)
    airflow.server.fail_next(asks("GET", TASKS_OF_A_RUN), end_with(airflow, load=state))


def read_tries(run: RunRow) -> dict[str, int]:
    return {task.task_id: task.try_number for task in run.tasks}


def test_a_dag_that_fails_in_its_clean_up_is_materialized_and_its_check_passes(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG, polls=0, outcome="failed", tasks=TASKS)
    executed = materialize(airflow.client, {DAG: LOAD}, instance)
    assert (executed.success, executed.materialized) == (True, [DAG])
    assert executed.metadata[DAG]["State"].value == "failed"
    (evaluation,) = fetch_evaluations(instance, KEY)
    assert evaluation.passed
    assert "Failed tasks: clean_up. By its `success_when` it is a success all the same." in (
        evaluation.description or ""
    )


def test_what_its_step_reported_is_not_reported_by_observation_too(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0, outcome="failed", tasks=TASKS)
    executed = materialize(airflow_v2.client, {DAG: LOAD}, instance)
    daemon = Daemon(airflow_v2.client, [DAG], instance)
    daemon.rules[DAG] = SuccessDeclaration(tasks=["load"])
    daemon.restart()
    assert daemon.tick() == []
    assert fetch_reported_run_ids(instance, KEY) == [build_run_id(executed.run_id)]
    assert len(fetch_evaluations(instance, KEY)) == 1


def test_a_green_dag_without_its_data_fails_the_run_and_names_success_when(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    add_green_dag_without_its_data(airflow)
    executed = materialize(airflow.client, {DAG: LOAD}, instance)
    assert (executed.success, executed.materialized) == (False, [])
    url = airflow.client.build_run_url(DAG, airflow.database.runs[0].run_id)
    assert executed.failure == (
        f"DAG '{DAG}' ended without its data in Airflow 'metrics'. By its `success_when` it is "
        f"not a success: 'load' did not run. {url}"
    )
    (evaluation,) = fetch_evaluations(instance, KEY)
    assert (evaluation.passed, evaluation.metadata["State"].value) == (False, "success")


def test_the_task_that_is_missing_is_reported_with_the_end_of_its_log(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    add_green_dag_without_its_data(airflow_v2, "failed")
    executed = materialize(airflow_v2.client, {DAG: LOAD}, instance)
    assert "is not a success: load is failed." in (executed.failure or "")
    assert "Starting attempt 1 of load" in str(executed.failure_metadata["Log of load"].value)
    (evaluation,) = fetch_evaluations(instance, KEY)
    assert "Starting attempt 1 of load" in str(evaluation.metadata["Log of load"].value)


def test_what_depends_on_a_dag_without_its_data_is_skipped(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    add_green_dag_without_its_data(airflow_v2)
    airflow_v2.database.add_dag("report", polls=0)
    dags = {DAG: LOAD, "report": {"depends_on": [f"metrics/{DAG}"]}}
    assert materialize(airflow_v2.client, dags, instance).materialized == []
    assert [run.dag_id for run in airflow_v2.database.runs] == [DAG]


def test_tasks_that_airflow_does_not_return_yet_are_waited_for(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG, polls=0, outcome="failed", tasks=TASKS)
    airflow.server.fail_next(asks("GET", TASKS_OF_A_RUN), hang_up, times=4)
    executed = materialize(airflow.client, {DAG: LOAD}, instance)
    assert (executed.success, executed.materialized) == (True, [DAG])


def test_tasks_that_airflow_refuses_to_tell_fail_the_run_and_no_other_dag(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    for dag_id in (DAG, "order_metrics"):
        airflow.database.add_dag(dag_id, polls=0, tasks=TASKS)
    forbidden = answer(403, {"detail": "Forbidden"})
    airflow.server.fail_next(asks("GET", TASKS_OF_A_RUN), forbidden, times=99)
    dags = {DAG: LOAD, "order_metrics": LOAD}
    executed = materialize(airflow.client, dags, instance)
    assert executed.materialized == ["order_metrics"]
    assert "`success_when` can't be checked: Airflow 'metrics' forbids GET " in (
        executed.failure or ""
    )


def test_a_green_run_without_its_data_is_run_again_by_a_re_execution(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    """Nothing failed, so there is nothing to clear but all of it."""
    add_green_dag_without_its_data(airflow)
    job = DagsterJob(airflow.client, [DAG], instance, LOAD)
    first = job.execute()
    assert "ended without its data" in (first.failure or "")
    second = job.execute(first)
    assert second.materialized == [DAG]
    assert second.metadata[DAG]["Run ID"].value == build_run_id(first.run_id)
    (run,) = airflow.database.runs
    assert read_tries(run) == {"extract": 2, "load": 2, "clean_up": 2}
    assert [one.passed for one in fetch_evaluations(instance, KEY)] == [False, True]


def test_of_a_green_run_whose_task_failed_a_re_execution_runs_that_task_again(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    add_green_dag_without_its_data(airflow, "failed")
    job = DagsterJob(airflow.client, [DAG], instance, LOAD)
    second = job.execute(job.execute())
    assert second.materialized == [DAG]
    (run,) = airflow.database.runs
    assert read_tries(run) == {"extract": 1, "load": 2, "clean_up": 1}


def test_a_green_run_whose_missing_task_was_skipped_is_run_again_though_its_clean_up_failed(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """To clear the failed task alone would bring back the same run without its data."""
    airflow_v2.database.add_dag(DAG, polls=0, tasks=TASKS)
    ended = end_with(airflow_v2, load="skipped", clean_up="failed")
    airflow_v2.server.fail_next(asks("GET", TASKS_OF_A_RUN), ended)
    job = DagsterJob(airflow_v2.client, [DAG], instance, LOAD)
    first = job.execute()

    def skip_again(act: Act) -> Response:
        """What was skipped stays so while it is not cleared."""
        for task in airflow_v2.database.runs[0].tasks:
            if task.task_id == "load" and not task.earlier:
                task.state = "skipped"
        return act()

    is_run = asks("GET", f"{TRIGGER}/[^/]+(/taskInstances)?")
    airflow_v2.server.fail_next(is_run, skip_again, times=99)
    assert job.execute(first).materialized == [DAG]


def test_a_failed_run_that_has_its_data_is_adopted_and_not_cleared(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, tasks=TASKS)
    job = DagsterJob(airflow_v2.client, [DAG], instance, {**TIMEOUT, **LOAD})
    first = job.execute()
    assert "still has run" in (first.failure or "")
    (run,) = airflow_v2.database.runs
    airflow_v2.database.finish_run(run, "failed")
    assert job.execute(first).materialized == [DAG]
    assert airflow_v2.server.count("POST", ".*clear.*") == 0
