"""DAG runs that Dagster triggered: the Dagster run reports them, or observation if it died."""

# No `from __future__ import annotations` here: Dagster refuses a context annotated with text.

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import dagster as dg
import pytest

from federation_defs.dagster_io.heartbeat import Heartbeats
from federation_defs.events import build_check_evaluation, build_materialization
from federation_defs.naming import build_asset_key, build_run_id
from federation_defs.outcome import Outcome
from federation_defs.partitions import RunPartition
from federation_defs.timing import Timing
from tests.contract.conftest import Airflow
from tests.contract.execution.executing import materialize
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.database import RunRow
from tests.contract.fakes.faults import edit
from tests.contract.observation.daemon import Daemon, fetch_reported_run_ids

DAG = "customer_metrics"
KEY = build_asset_key("metrics", DAG)


@pytest.fixture
def daemon(airflow_v2: Airflow, instance: dg.DagsterInstance) -> Daemon:
    airflow_v2.database.add_dag(DAG)
    return Daemon(airflow_v2.client, [DAG], instance)


def run_owner(
    instance: dg.DagsterInstance, act: Callable[[dg.OpExecutionContext], Any]
) -> dg.ExecuteInProcessResult:
    """Execute a Dagster run that is alive while it acts, and that yields what the action yields."""

    @dg.op
    def own(context: dg.OpExecutionContext) -> Iterator[Any]:
        with Heartbeats(instance, context.run_id, "metrics", Timing()):
            yield from act(context) or ()
        yield dg.Output(None)

    @dg.job
    def owner() -> None:
        own()

    return owner.execute_in_process(instance=instance, raise_on_error=False)


def finish_run_of(airflow: Airflow, dagster_run_id: str, state: str = "success") -> RunRow:
    run = airflow.database.start_run(DAG, build_run_id(dagster_run_id))
    return airflow.database.finish_run(run, state)


def report_as_the_owner(airflow: Airflow, dagster_run_id: str) -> Iterator[Any]:
    run = airflow.client.fetch_run(DAG, build_run_id(dagster_run_id))
    assert run is not None
    outcome = Outcome(run, run.is_success)
    yield build_check_evaluation(airflow.client, outcome)
    yield build_materialization(airflow.client, outcome, RunPartition())


def test_a_run_is_deferred_while_its_owner_lives_and_reported_when_the_owner_failed(
    airflow_v2: Airflow, daemon: Daemon
) -> None:
    def die_before_reporting(context: dg.OpExecutionContext) -> None:
        finish_run_of(airflow_v2, context.run_id)
        assert daemon.tick() == []
        assert daemon.tick() == []
        raise RuntimeError("killed before it could report")

    result = run_owner(daemon.instance, die_before_reporting)
    assert daemon.tick() == [build_run_id(result.run_id)]
    assert daemon.tick() == []


def test_a_run_that_its_owner_reported_is_not_reported_again(
    airflow_v2: Airflow, daemon: Daemon
) -> None:
    def report(context: dg.OpExecutionContext) -> Iterator[Any]:
        finish_run_of(airflow_v2, context.run_id)
        assert daemon.tick() == []
        yield from report_as_the_owner(airflow_v2, context.run_id)

    result = run_owner(daemon.instance, report)
    assert result.success
    assert daemon.tick() == []
    assert fetch_reported_run_ids(daemon.instance, KEY) == [build_run_id(result.run_id)]


def test_a_deferred_run_is_reported_though_it_left_the_overlap_long_ago(
    airflow_v2: Airflow, daemon: Daemon
) -> None:
    def die_late(context: dg.OpExecutionContext) -> None:
        run = finish_run_of(airflow_v2, context.run_id)
        for _ in range(3):
            assert daemon.tick() == []
            run.updated_at -= timedelta(minutes=5)
        raise RuntimeError("killed before it could report")

    result = run_owner(daemon.instance, die_late)
    assert daemon.tick() == [build_run_id(result.run_id)]
    assert daemon.tick() == []


def test_a_deferred_run_that_is_deleted_is_forgotten(airflow_v2: Airflow, daemon: Daemon) -> None:
    def lose(context: dg.OpExecutionContext) -> None:
        run = finish_run_of(airflow_v2, context.run_id)
        assert daemon.tick() == []
        airflow_v2.database.delete_run(run)
        raise RuntimeError("killed before it could report")

    run_owner(daemon.instance, lose)
    assert daemon.tick() == []
    assert daemon.cursor is not None
    assert DAG not in daemon.cursor


def test_runs_without_an_owner_are_not_deferred(airflow_v2: Airflow, daemon: Daemon) -> None:
    def finish_runs(context: dg.OpExecutionContext) -> None:
        finish_run_of(airflow_v2, context.run_id)
        others = airflow_v2.database.start_run(DAG, "manual__by_a_person")
        airflow_v2.database.finish_run(others)
        assert daemon.tick() == ["manual__by_a_person"]

    assert run_owner(daemon.instance, finish_runs).success


@pytest.mark.parametrize(
    "status",
    [
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.CANCELING,
    ],
)
def test_a_run_is_not_deferred_to_a_retry_whose_step_has_not_begun(
    airflow_v2: Airflow, daemon: Daemon, status: dg.DagsterRunStatus
) -> None:
    """It may never begin, and if it does, it finds the report."""

    def die(_: dg.OpExecutionContext) -> None:
        raise RuntimeError("killed")

    first = run_owner(daemon.instance, die)
    finish_run_of(airflow_v2, first.run_id)
    ended = daemon.instance.get_run_by_id(first.run_id)
    tags = ended.tags if ended else {}

    @dg.job
    def retry() -> None:
        pass

    daemon.instance.create_run_for_job(
        retry,
        status=status,
        parent_run_id=first.run_id,
        root_run_id=first.run_id,
        tags={**tags, "dagster/root_run_id": first.run_id, "dagster/parent_run_id": first.run_id},
    )
    assert daemon.tick() == [build_run_id(first.run_id)]


def test_a_run_of_an_unknown_owner_is_reported(airflow_v2: Airflow, daemon: Daemon) -> None:
    """Another Dagster triggered it, or the Dagster run was deleted."""
    finish_run_of(airflow_v2, "11111111-2222-3333-4444-555555555555")
    assert len(daemon.tick()) == 1


def test_a_failed_run_of_a_failed_owner_is_no_materialization(
    airflow_v2: Airflow, daemon: Daemon
) -> None:
    def fail(context: dg.OpExecutionContext) -> None:
        finish_run_of(airflow_v2, context.run_id, "failed")
        assert daemon.tick() == []
        raise RuntimeError("its DAG failed")

    run_owner(daemon.instance, fail)
    assert daemon.tick() == []


def test_a_run_that_its_living_owner_reported_is_not_fetched_again(
    airflow_v2: Airflow, daemon: Daemon
) -> None:
    """While one DAG of a step is slow, the finished ones are not fetched at every tick."""

    def report_and_go_on(context: dg.OpExecutionContext) -> Iterator[Any]:
        finish_run_of(airflow_v2, context.run_id)
        yield from report_as_the_owner(airflow_v2, context.run_id)
        daemon.tick()
        before = airflow_v2.server.count("GET", ".*/dagRuns/[^/]+")
        for _ in range(3):
            daemon.tick()
        assert airflow_v2.server.count("GET", ".*/dagRuns/[^/]+") == before

    assert run_owner(daemon.instance, report_and_go_on).success


def test_a_report_by_the_owner_is_found_whatever_airflows_clock_says(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    airflow_v2.database.skew = timedelta(minutes=20)
    materialize(airflow_v2.client, [DAG], instance)
    Daemon(airflow_v2.client, [DAG], instance).tick()
    assert len(fetch_reported_run_ids(instance, KEY)) == 1


def test_a_success_without_an_end_is_reported_once(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)

    def forget_the_end(content: dict[str, Any]) -> None:
        for run in content.get("dag_runs", [content]):
            run["end_date"] = None

    for method in ("GET", "POST"):
        fault = edit(forget_the_end)
        airflow_v2.server.fail_next(asks(method, ".*dagRuns.*"), fault, times=9)
    materialize(airflow_v2.client, [DAG], instance)
    Daemon(airflow_v2.client, [DAG], instance).tick()
    assert len(fetch_reported_run_ids(instance, KEY)) == 1
