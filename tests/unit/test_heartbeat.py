"""Heartbeats, and the Dagster runs that are failed without them. No Airflow is needed."""

# No `from __future__ import annotations` here: Dagster refuses a context annotated with text.

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import dagster as dg
import pytest

from federation_defs.dagster_io.heartbeat import fail_orphaned_runs, send_heartbeats
from federation_defs.naming import ALIVE_TAG, build_monitor_tags
from federation_defs.timing import Timing
from tests.waiting import wait_for

LOG = logging.getLogger(__name__)
RUN_ID = str(uuid4())

# With these, a step or a run that started just now is overdue.
STEP_OVERDUE = Timing(heartbeat_lost_s=-5)
START_OVERDUE = Timing(first_heartbeat_lost_s=-5)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def fail_orphans_during_step(
    instance: dg.DagsterInstance, step_name: str, tags: dict[str, str], timing: Timing
) -> dg.DagsterRunStatus:
    """Look for orphaned runs during a step of a run, and return that run's status."""
    statuses: list[dg.DagsterRunStatus] = []

    @dg.op(name=step_name)
    def step(context: dg.OpExecutionContext) -> None:
        fail_orphaned_runs(context.instance, "metrics", LOG, timing)
        run = context.instance.get_run_by_id(context.run.run_id)
        assert run is not None
        statuses.append(run.status)

    @dg.job(tags=tags)
    def waiting() -> None:
        step()

    waiting.execute_in_process(instance=instance, raise_on_error=False)
    return statuses[0]


@pytest.mark.parametrize("step_name", ["metrics__dags", "metrics__dags_2"])
def test_a_run_without_heartbeats_during_our_step_is_failed(
    instance: dg.DagsterInstance, step_name: str
) -> None:
    tags = build_monitor_tags("metrics")
    status = fail_orphans_during_step(instance, step_name, tags, STEP_OVERDUE)
    assert status is dg.DagsterRunStatus.FAILURE


def test_a_run_whose_step_started_just_now_is_not_failed(instance: dg.DagsterInstance) -> None:
    tags = build_monitor_tags("metrics")
    status = fail_orphans_during_step(instance, "metrics__dags", tags, Timing())
    assert status is dg.DagsterRunStatus.STARTED


def test_a_run_with_a_recent_heartbeat_is_not_failed(instance: dg.DagsterInstance) -> None:
    tags = build_monitor_tags("metrics") | {ALIVE_TAG: f"{time.time() + 60:.0f}"}
    status = fail_orphans_during_step(instance, "metrics__dags", tags, STEP_OVERDUE)
    assert status is dg.DagsterRunStatus.STARTED


@pytest.mark.parametrize("step_name", ["python_asset", "warehouse__dags", "metrics__dags__dags"])
def test_a_run_during_another_step_is_not_failed(
    instance: dg.DagsterInstance, step_name: str
) -> None:
    tags = build_monitor_tags("metrics")
    status = fail_orphans_during_step(instance, step_name, tags, STEP_OVERDUE)
    assert status is dg.DagsterRunStatus.STARTED


def test_a_run_that_waits_for_another_airflow_is_not_failed(instance: dg.DagsterInstance) -> None:
    tags = build_monitor_tags("warehouse")
    status = fail_orphans_during_step(instance, "metrics__dags", tags, STEP_OVERDUE)
    assert status is dg.DagsterRunStatus.STARTED


def test_a_run_that_never_reaches_a_step_is_failed_in_the_end(
    instance: dg.DagsterInstance,
) -> None:
    @dg.job
    def waiting() -> None: ...

    run = instance.create_run_for_job(
        waiting, status=dg.DagsterRunStatus.STARTED, tags=build_monitor_tags("metrics")
    )
    fail_orphaned_runs(instance, "metrics", LOG, Timing())
    assert instance.get_run_by_id(run.run_id) == run
    fail_orphaned_runs(instance, "metrics", LOG, START_OVERDUE)
    ended = instance.get_run_by_id(run.run_id)
    assert ended is not None
    assert ended.is_failure


def test_heartbeats_continue_after_a_database_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:

        @dg.job
        def waiting() -> None: ...

        def start() -> str:
            started = dg.DagsterRunStatus.STARTED
            return instance.create_run_for_job(waiting, run_id=RUN_ID, status=started).run_id

        with send_heartbeats(instance, start(), "metrics", Timing(heartbeat_s=0.01)):
            instance.delete_run(RUN_ID)
            wait_for(lambda: "A heartbeat" in caplog.text, "a heartbeat has failed", 60, 0.01)
            start()
            wait_for(lambda: _has_heartbeat(instance), "a later one has succeeded", 60, 0.01)


def _has_heartbeat(instance: dg.DagsterInstance) -> bool:
    run = instance.get_run_by_id(RUN_ID)
    return run is not None and ALIVE_TAG in run.tags
