"""Which Dagster runs are taken for dead. No Airflow is asked, so none is needed."""

# No `from __future__ import annotations` here: Dagster refuses a context annotated with text.

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import dagster as dg
import pytest

from federation_defs.dagster_io import heartbeat as recovery
from federation_defs.dagster_io.heartbeat import Heartbeat, fail_orphaned_runs
from federation_defs.naming import ALIVE_TAG, build_monitor_tags
from tests.waiting import wait_for

LOG = logging.getLogger(__name__)
RUN_ID = str(uuid4())


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def run_step(
    instance: dg.DagsterInstance, name: str, tags: dict[str, str]
) -> tuple[str, dg.DagsterRunStatus]:
    """A run that is at a step of this name while orphans are looked for, and what became of it."""
    seen: list[tuple[str, dg.DagsterRunStatus]] = []

    @dg.op(name=name)
    def step(context: dg.OpExecutionContext) -> None:
        fail_orphaned_runs(context.instance, "metrics", LOG)
        run = context.instance.get_run_by_id(context.run.run_id)
        assert run is not None
        seen.append((run.run_id, run.status))

    @dg.job(tags=tags)
    def waiting() -> None:
        step()

    waiting.execute_in_process(instance=instance, raise_on_error=False)
    return seen[0]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that began a moment ago has been silent for too long."""
    monkeypatch.setattr(recovery, "SILENT_S", -5.0)


@pytest.mark.usefixtures("impatient")
def test_a_run_that_is_silent_at_our_step_is_ended(instance: dg.DagsterInstance) -> None:
    for name in ("metrics__dags", "metrics__dags_2"):
        _, status = run_step(instance, name, build_monitor_tags("metrics"))
        assert status is dg.DagsterRunStatus.FAILURE


def test_a_run_that_began_its_step_just_now_is_left_alone(instance: dg.DagsterInstance) -> None:
    _, status = run_step(instance, "metrics__dags", build_monitor_tags("metrics"))
    assert status is dg.DagsterRunStatus.STARTED


@pytest.mark.usefixtures("impatient")
def test_a_run_that_left_a_sign_of_life_is_left_alone(instance: dg.DagsterInstance) -> None:
    alive = {ALIVE_TAG: f"{time.time() + 60:.0f}"}
    tags = build_monitor_tags("metrics") | alive
    _, status = run_step(instance, "metrics__dags", tags)
    assert status is dg.DagsterRunStatus.STARTED


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", ["python_asset", "warehouse__dags", "metrics__dags__dags"])
def test_a_run_at_somebody_elses_step_is_left_alone(
    instance: dg.DagsterInstance, name: str
) -> None:
    _, status = run_step(instance, name, build_monitor_tags("metrics"))
    assert status is dg.DagsterRunStatus.STARTED


@pytest.mark.usefixtures("impatient")
def test_a_run_that_does_not_wait_for_this_airflow_is_left_alone(
    instance: dg.DagsterInstance,
) -> None:
    _, status = run_step(instance, "metrics__dags", build_monitor_tags("warehouse"))
    assert status is dg.DagsterRunStatus.STARTED


def test_a_run_that_never_came_to_a_step_is_ended_in_the_end(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dg.job
    def waiting() -> None: ...

    run = instance.create_run_for_job(
        waiting, status=dg.DagsterRunStatus.STARTED, tags=build_monitor_tags("metrics")
    )
    fail_orphaned_runs(instance, "metrics", LOG)
    assert instance.get_run_by_id(run.run_id) == run
    monkeypatch.setattr(recovery, "SILENT_BEFORE_STEP_S", -5.0)
    fail_orphaned_runs(instance, "metrics", LOG)
    ended = instance.get_run_by_id(run.run_id)
    assert ended is not None
    assert ended.is_failure


def test_a_heartbeat_goes_on_and_survives_what_the_database_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recovery, "BEAT_S", 0.01)
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:

        @dg.job
        def waiting() -> None: ...

        def start() -> str:
            started = dg.DagsterRunStatus.STARTED
            return instance.create_run_for_job(waiting, run_id=RUN_ID, status=started).run_id

        with Heartbeat(instance, start(), "metrics"):
            instance.delete_run(RUN_ID)
            wait_for(lambda: "No sign of life" in caplog.text, "a beat has failed", 10, 0.01)
            start()
            wait_for(lambda: _is_tagged(instance), "a later beat has succeeded", 10, 0.01)


def _is_tagged(instance: dg.DagsterInstance) -> bool:
    run = instance.get_run_by_id(RUN_ID)
    return run is not None and ALIVE_TAG in run.tags
