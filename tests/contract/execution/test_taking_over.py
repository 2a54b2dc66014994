"""Attempts that continue runs which were ended early, or which somebody else started."""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from uuid import uuid4

import dagster as dg
import pytest

from federation_defs.dagster_io.current_run import CurrentRun
from federation_defs.dagster_io.run_tags import Target, build_long_tags, read_detached
from federation_defs.naming import build_alive_tag, build_launching_tags, build_plan_tag
from tests.contract.conftest import Airflow
from tests.contract.execution.executing import (
    DagsterJob,
    ExecutedRun,
    materialize,
    meanwhile,
    wait_for_log,
)
from tests.contract.execution.partitioned import (
    DAG,
    DAILY,
    KEY,
    at,
    build_daemon,
    declare,
)
from tests.contract.execution.test_taken_dates import DAY, PERSON, RUN_ID, add_run, read_tries
from tests.contract.observation.daemon import (
    Daemon,
    fetch_reported_observations,
    fetch_reported_run_ids,
    fetch_reported_runs,
)
from tests.unit.build import build_run
from tests.waiting import wait_for

OTHER = "order_metrics"
CUT_SHORT = {"trigger": {"timeout": "1s", "on_timeout": "cancel"}}
CLEAR = f"/dags/{DAG}/(clearTaskInstances|dagRuns/[^/]+/clear)"


def test_a_run_that_was_stopped_is_run_again_whole(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    """Airflow has set to skipped what had not begun, and would leave it so."""
    dag = airflow.database.add_dag(DAG, polls=math.inf, tasks=("extract", "load", "publish"))
    job = DagsterJob(airflow.client, [DAG], instance, CUT_SHORT)
    first = job.execute()
    (run,) = airflow.database.runs
    assert [task.state for task in run.tasks] == ["failed", "skipped", "skipped"]
    dag.polls = 1
    second = job.execute(first)
    assert second.materialized == [DAG]
    assert [task.state for task in run.tasks] == ["success"] * 3


def test_of_a_run_with_a_branch_that_was_not_taken_only_the_failed_tasks_run_again(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    dag = airflow_v2.database.add_dag(DAG, polls=0, outcome="failed", tasks=("a", "b", "load"))
    job = DagsterJob(airflow_v2.client, [DAG], instance)
    first = job.execute()
    (run,) = airflow_v2.database.runs
    run.tasks[1].state = "skipped"
    assert run.end_date is not None
    run.tasks[1].end_date = run.end_date.replace(year=run.end_date.year - 1)
    dag.outcome = "success"
    assert job.execute(first).materialized == [DAG]
    assert read_tries(run) == [1, 1, 2]


def test_a_re_execution_neither_clears_nor_reports_an_adopted_run_again(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    run = add_run(airflow_v2, "running")
    airflow_v2.database.finish_after(run, polls=1)
    other = airflow_v2.database.add_dag(OTHER, polls=0, outcome="failed")
    dags = {DAG: declare(), OTHER: declare()}
    job = DagsterJob.of(instance, (airflow_v2.client, dags))
    first = job.execute(tags=PERSON)
    assert (first.success, first.materialized) == (False, [DAG])
    other.outcome = "success"
    second = job.execute(first)
    assert (second.success, second.materialized) == (True, [OTHER])
    assert airflow_v2.server.count("POST", CLEAR) == 0
    assert read_tries(run) == [1, 1]


def test_observation_does_not_report_an_adopted_run_while_its_dagster_run_is_active(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    run = add_run(airflow_v2, "running", polls=None)
    daemon = build_daemon(airflow_v2, instance, **{DAG: DAILY})

    def end() -> None:
        wait_for_log(instance, f"{DAG} [{DAY}] is ")
        airflow_v2.database.finish_run(run)
        assert daemon.tick() == []

    with meanwhile(end):
        materialize(airflow_v2.client, {DAG: declare()}, instance, tags=PERSON)
    assert daemon.tick() == []
    assert fetch_reported_run_ids(instance, KEY) == [RUN_ID]


def test_a_partition_that_dagster_has_run_is_run_again(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    for _ in range(2):
        executed = materialize(airflow_v2.client, {DAG: declare()}, instance, tags=PERSON)
        assert executed.materialized == [DAG]
    (run,) = airflow_v2.database.runs
    assert read_tries(run) == [2, 2]


def test_of_two_attempts_at_once_the_later_waits_for_the_earlier(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """Dagster's own retry and a person's: both would report the run that ends."""
    airflow_v2.database.add_dag(DAG, polls=math.inf)
    job = DagsterJob(airflow_v2.client, [DAG], instance, {"trigger": {"timeout": "1s"}})
    first = job.execute()
    # Both announce themselves before one of them looks for others.
    job = DagsterJob(airflow_v2.client, [DAG], instance, run_group_s=0.5)
    (run,) = airflow_v2.database.runs
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(job.execute, first) for _ in range(2)]
        wait_for_log(instance, "another attempt at the same")
        airflow_v2.database.finish_run(run)
        executed = [one.result(60) for one in both]
    assert [executed.success for executed in executed] == [True, True]
    assert sorted(executed.materialized for executed in executed) == [[], [DAG]]
    assert fetch_reported_run_ids(instance, KEY) == [run.run_id]


def test_secrets_in_a_refused_conf_are_redacted(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    dag = airflow.database.add_dag(DAG)
    dag.refusal = "Invalid input for param api_token: 'hunter2' is too short"
    declared = {DAG: {"trigger": {"conf": {"api_token": "hunter2"}}}}
    executed = materialize(airflow.client, declared, instance)
    assert "param api_token: '***' is too short" in (executed.failure or "")
    assert not any("hunter2" in line for line in executed.log)
    assert airflow.server.count("POST", f"/dags/{DAG}/dagRuns") == 1


def test_a_partitioned_dag_in_a_run_without_a_partition_says_what_to_do(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG)
    executed = materialize(airflow_v2.client, {DAG: declare()}, instance)
    assert "has partitions, and this run names none: nothing was triggered" in (
        executed.failure or ""
    )
    assert airflow_v2.server.count("POST", ".*dagRuns") == 0


@pytest.mark.parametrize("state", ["success", "failed"])
def test_a_run_that_observation_is_about_to_report_is_not_reported_by_a_retry_too(
    airflow_v2: Airflow, instance: dg.DagsterInstance, state: str
) -> None:
    """Observation has found no owner, then the retry begins, then observation stores its events."""
    airflow_v2.database.add_dag(DAG, polls=math.inf)
    short = {"trigger": {"timeout": "1s"}}
    first = DagsterJob(airflow_v2.client, [DAG], instance, short).execute()
    (run,) = airflow_v2.database.runs
    airflow_v2.database.finish_run(run, state)
    retry = DagsterJob(airflow_v2.client, [DAG], instance, takeover_s=6)
    daemon = Daemon(airflow_v2.client, [DAG], instance)
    begun: list[Future[ExecutedRun]] = []
    with ThreadPoolExecutor(1) as threads:

        def begin_the_retry() -> None:
            begun.append(threads.submit(retry.execute, first, {"dagster/retry_number": "1"}))
            wait_for(lambda: fetch_waiting_runs(instance), "the retry waits", interval_s=0.01)

        daemon.before_storing = begin_the_retry
        daemon.tick()
    (retried,) = begun
    assert retried.result().materialized == []
    reports = [*fetch_reported_runs(instance, KEY), *fetch_reported_observations(instance, KEY)]
    assert [report["Run ID"].value for report in reports] == [run.run_id]


def fetch_waiting_runs(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    runs = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    return [
        run for run in runs if run.tags.get(build_alive_tag("metrics"), "").startswith(run.run_id)
    ]


@pytest.mark.parametrize("alive_at", ["{run_id} 1700000000", None], ids=["in a step", "in none"])
def test_a_re_execution_does_not_wait_for_ever_for_an_attempt_whose_worker_died(
    airflow_v2: Airflow, instance: dg.DagsterInstance, alive_at: str | None
) -> None:
    """It died during a step of somebody else's, so that no observation fails it."""
    airflow_v2.database.add_dag(DAG, polls=0)
    job = DagsterJob(airflow_v2.client, [DAG], instance, heartbeat_lost_s=0.3)
    first = job.execute()
    root = instance.get_run_by_id(first.run_id)
    assert root is not None

    @dg.job
    def died() -> None: ...

    run_id = str(uuid4())
    beat = {build_alive_tag("metrics"): alive_at.format(run_id=run_id)} if alive_at else {}
    tags = {"dagster/root_run_id": first.run_id, "dagster/parent_run_id": first.run_id, **beat}
    instance.create_run_for_job(
        died,
        run_id=run_id,
        status=dg.DagsterRunStatus.STARTED,
        parent_run_id=first.run_id,
        root_run_id=first.run_id,
        tags=tags,
    )
    again = job.execute(first)
    assert again.success
    waits = f"Waiting for {run_id}: another attempt at the same run." in again.log
    assert waits == (alive_at is not None)


def test_a_run_of_a_thousand_partitions_remembers_what_it_runs_again(
    instance: dg.DagsterInstance,
) -> None:
    """PostgreSQL refuses tags that are longer than its index takes."""
    days = [at("2025-01-01") + timedelta(days=number, seconds=math.e**7) for number in range(1000)]
    runs = [build_run(DAG, f"scheduled__{day.isoformat()}", end_date=day) for day in days]
    targets = [Target(DAG, f"{day:%Y-%m-%d}") for day in days]
    plans = {
        target.name: (run.run_id, f"failed {run.end_date}")
        for target, run in zip(targets, runs, strict=True)
    }
    tags = build_launching_tags("metrics") | build_long_tags(build_plan_tag("metrics"), plans)

    @dg.job
    def any_job() -> None: ...

    run = instance.create_run_for_job(any_job, tags=tags)
    current = CurrentRun(instance, run, "metrics")
    current.detach(*[run.key for run in runs[:900]])
    current.plan_clear(targets[0], runs[0])
    stored = instance.get_run_by_id(run.run_id)
    assert stored is not None
    again = CurrentRun(instance, stored, "metrics")
    assert [again.get_planned_run_id(target) for target in targets] == [
        each.run_id for each in runs
    ]
    assert read_detached(stored, "metrics") == {run.key for run in runs[:900]}
