"""A re-execution, by a person or by Dagster's retries, adopts the DAG run of the attempt before."""

from __future__ import annotations

import dagster as dg

from federation_defs.dagster_io.current_run import CurrentRun
from federation_defs.dagster_io.run_tags import Target
from federation_defs.execution.launcher import Launcher
from federation_defs.naming import build_run_id
from tests.contract.conftest import Airflow
from tests.contract.execution.executing import TIMEOUT, DagsterJob, ExecutedRun, build_context

DAG = "customer_metrics"
TRIGGER = f"/dags/{DAG}/dagRuns"
CLEAR = f"/dags/{DAG}/clearTaskInstances"


def give_up(job: DagsterJob) -> ExecutedRun:
    """A first attempt that stopped waiting while its DAG run went on."""
    first = job.execute()
    assert "still has run" in (first.failure or "")
    return first


def test_a_run_that_goes_on_is_adopted(airflow_v2: Airflow, instance: dg.DagsterInstance) -> None:
    airflow_v2.database.add_dag(DAG)
    job = DagsterJob(airflow_v2.client, [DAG], instance, TIMEOUT)
    first = give_up(job)
    (run,) = airflow_v2.database.runs
    airflow_v2.database.finish_after(run, polls=1)
    second = job.execute(first)
    assert second.materialized == [DAG]
    assert [run.run_id for run in airflow_v2.database.runs] == [build_run_id(first.run_id)]
    assert airflow_v2.server.count("POST", TRIGGER) == 1


def test_a_run_that_succeeded_meanwhile_is_adopted(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG)
    job = DagsterJob(airflow_v2.client, [DAG], instance, TIMEOUT)
    first = give_up(job)
    (run,) = airflow_v2.database.runs
    airflow_v2.database.finish_run(run)
    second = job.execute(first)
    assert second.materialized == [DAG]
    assert second.metadata[DAG]["Run ID"].value == build_run_id(first.run_id)
    assert airflow_v2.server.count("POST", f"{TRIGGER}|{CLEAR}") == 1


def test_a_run_that_failed_runs_its_failed_tasks_again(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    dag = airflow.database.add_dag(DAG, polls=0, outcome="failed", tasks=("extract", "load"))
    job = DagsterJob(airflow.client, [DAG], instance)
    first = job.execute()
    assert "Failed tasks: load" in (first.failure or "")
    dag.outcome = "success"
    second = job.execute(first)
    assert second.materialized == [DAG]
    (run,) = airflow.database.runs
    assert {task.task_id: task.try_number for task in run.tasks} == {"extract": 1, "load": 2}
    assert airflow.server.count("POST", TRIGGER) == 1


def test_the_re_execution_of_a_re_execution_finds_the_same_run(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    dag = airflow_v2.database.add_dag(DAG, polls=0, outcome="failed")
    job = DagsterJob(airflow_v2.client, [DAG], instance)
    first = job.execute()
    second = job.execute(first)
    dag.outcome = "success"
    third = job.execute(second)
    assert (first.success, second.success, third.success) == (False, False, True)
    assert third.metadata[DAG]["Run ID"].value == build_run_id(first.run_id)
    assert len(airflow_v2.database.runs) == 1


def test_a_run_that_failed_is_left_alone_while_its_dag_is_paused(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    dag = airflow_v2.database.add_dag(DAG, polls=0, outcome="failed")
    job = DagsterJob(airflow_v2.client, [DAG], instance)
    first = job.execute()
    dag.is_paused = True
    second = job.execute(first)
    assert f"has DAG '{DAG}' paused" in (second.failure or "")
    assert airflow_v2.database.runs[0].state == "failed"


def test_a_run_that_was_never_started_is_started(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    dag = airflow_v2.database.add_dag(DAG, is_paused=True, polls=0)
    job = DagsterJob(airflow_v2.client, [DAG], instance)
    first = job.execute()
    assert airflow_v2.database.runs == []
    dag.is_paused = False
    second = job.execute(first)
    assert second.materialized == [DAG]
    assert [run.run_id for run in airflow_v2.database.runs] == [build_run_id(first.run_id)]


def test_what_the_first_attempt_reported_is_neither_run_nor_reported_again(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag("order_metrics", polls=0)
    failing = airflow_v2.database.add_dag(DAG, polls=0, outcome="failed")
    job = DagsterJob(airflow_v2.client, [DAG, "order_metrics"], instance)
    first = job.execute()
    assert first.materialized == ["order_metrics"]
    failing.outcome = "success"
    second = job.execute(first)
    assert (second.success, second.materialized) == (True, [DAG])
    assert len(airflow_v2.database.runs) == 2


def test_a_new_run_of_the_same_asset_is_a_new_dag_run(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    job = DagsterJob(airflow_v2.client, [DAG], instance)
    both = [job.execute(), job.execute()]
    assert [executed.materialized for executed in both] == [[DAG], [DAG]]
    run_ids = [run.run_id for run in airflow_v2.database.runs]
    assert run_ids == [build_run_id(executed.run_id) for executed in both]


def test_a_run_that_failed_with_no_failed_task_is_run_again_whole(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    """So it is when the DAG's own time-out ended it: its tasks were skipped."""
    dag = airflow.database.add_dag(DAG, polls=0, outcome="failed")
    job = DagsterJob(airflow.client, [DAG], instance)
    first = job.execute()
    for task in airflow.database.runs[0].tasks:
        task.state = "skipped"
    dag.outcome = "success"
    second = job.execute(first)
    assert second.materialized == [DAG]
    assert len(airflow.database.runs) == 1


def test_dagsters_own_retry_leaves_a_failed_run_failed(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """It is there for workers that died; whether to run a DAG again is a person's decision."""
    airflow_v2.database.add_dag(DAG, polls=0, outcome="failed")
    job = DagsterJob(airflow_v2.client, [DAG], instance)
    first = instance.get_run_by_id(job.execute().run_id)
    assert first is not None
    retry = dg.DagsterRun(
        job_name=first.job_name,
        parent_run_id=first.run_id,
        root_run_id=first.run_id,
        tags={"dagster/retry_number": "1"},
    )
    current_run = CurrentRun(instance, retry, "metrics")
    context = build_context(airflow_v2.client, [DAG], current_run)
    run = Launcher(context).launch(Target(DAG), "a note")
    assert run.state == "failed"
    assert airflow_v2.server.count("POST", ".*clear.*") == 0
