"""Heartbeats, and the Dagster runs that are failed without them. No Airflow is needed."""

# No `from __future__ import annotations` here: Dagster refuses a context annotated with text.

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest
from dagster._core.definitions.dependency import NodeHandle
from dagster._core.events import DagsterEvent, EngineEventData
from dagster._core.execution.plan.handle import StepHandle
from dagster._core.execution.plan.objects import StepSuccessData

from federation_defs.dagster_io.heartbeat import (
    HeartbeatMonitor,
    Heartbeats,
    fail_orphaned_runs,
)
from federation_defs.naming import build_alive_tag, build_launching_tags
from federation_defs.timing import Timing
from tests.waiting import wait_for

LOG = logging.getLogger(__name__)
RUN_ID = str(uuid4())
FAILED = dg.DagsterRunStatus.FAILURE

ALIVE_TAG = build_alive_tag("metrics")
INTERVAL_S = 20.0  # of observations, less than half of what a silence may last


class Clock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.timing = Timing(monotonic=lambda: self.now_s)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@dataclass
class Observer:
    """Looks for orphaned runs of the instance `metrics`, as the observation sensor does."""

    instance: dg.DagsterInstance
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.monitor = HeartbeatMonitor("metrics", self.clock.timing, INTERVAL_S)

    def observe(self, seconds: float = 0.0) -> None:
        """Look now, and then each few seconds for so long."""
        until = self.clock.now_s + seconds
        while True:
            fail_orphaned_runs(self.instance, "metrics", self.monitor, lambda: LOG)
            if self.clock.now_s >= until:
                return
            self.clock.now_s += INTERVAL_S


def observe_step(
    instance: dg.DagsterInstance,
    step_name: str,
    tags: dict[str, str],
    act: Callable[[Observer, str], None],
) -> dg.DagsterRunStatus:
    """Act during a step of a run, and return that run's status then."""
    statuses: list[dg.DagsterRunStatus] = []

    @dg.op(name=step_name)
    def step(context: dg.OpExecutionContext) -> None:
        act(Observer(context.instance), context.run_id)
        run = context.instance.get_run_by_id(context.run.run_id)
        assert run is not None
        statuses.append(run.status)

    @dg.job(tags=tags)
    def waiting() -> None:
        step()

    waiting.execute_in_process(instance=instance, raise_on_error=False)
    return statuses[0]


def observe_for_a_minute(observer: Observer, _run_id: str) -> None:
    observer.observe(60)


@pytest.mark.parametrize("step_name", ["metrics__dags", "metrics__dags_2"])
@pytest.mark.parametrize("alive_at", [None, "", "1700000000", "nan", "inf", "\x00ü, edited"])
def test_a_run_whose_heartbeats_stop_during_our_step_is_failed(
    instance: dg.DagsterInstance, step_name: str, alive_at: str | None
) -> None:
    tags = build_launching_tags("metrics") | ({} if alive_at is None else {ALIVE_TAG: alive_at})
    status = observe_step(instance, step_name, tags, observe_for_a_minute)
    assert status is dg.DagsterRunStatus.FAILURE


def test_a_run_is_not_failed_before_its_heartbeats_are_overdue(
    instance: dg.DagsterInstance,
) -> None:
    tags = build_launching_tags("metrics")
    status = observe_step(instance, "metrics__dags", tags, lambda seen, _: seen.observe(40))
    assert status is dg.DagsterRunStatus.STARTED


def test_on_dagster_plus_a_request_of_two_minutes_makes_no_run_silent(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_CLOUD_DEPLOYMENT_NAME", "prod")
    for silence_s, status in ((130, dg.DagsterRunStatus.STARTED), (160, FAILED)):

        def wait(observer: Observer, _run_id: str, silence_s: int = silence_s) -> None:
            observer.observe(silence_s)

        tags = build_launching_tags("metrics")
        assert observe_step(instance, "metrics__dags", tags, wait) is status


@pytest.mark.parametrize("skew_s", [-86_400, -600, 0, 600, 86_400])
def test_a_living_run_is_not_failed_however_wrong_its_clock_is(
    instance: dg.DagsterInstance, skew_s: float
) -> None:
    def live(observer: Observer, run_id: str) -> None:
        for beat in range(20):
            alive_at = f"{run_id} {time.time() + skew_s + 10 * beat:.0f}"
            instance.add_run_tags(run_id, {ALIVE_TAG: alive_at})
            observer.observe(10)

    tags = build_launching_tags("metrics")
    status = observe_step(instance, "metrics__dags", tags, live)
    assert status is dg.DagsterRunStatus.STARTED


def test_time_in_which_the_observer_slept_is_no_silence(instance: dg.DagsterInstance) -> None:
    """A laptop that was closed wakes up: the worker has not yet written its next heartbeat."""

    def sleep(observer: Observer, _run_id: str) -> None:
        observer.observe(20)
        observer.clock.now_s += 3600
        observer.observe()

    tags = build_launching_tags("metrics")
    assert observe_step(instance, "metrics__dags", tags, sleep) is dg.DagsterRunStatus.STARTED


@pytest.mark.parametrize("interval_s", [2, 10, 20, 23, 30, 60, 600])
def test_an_outage_of_the_database_makes_no_living_run_silent(interval_s: float) -> None:
    """A worker writes its next heartbeat some seconds after it."""
    clock, run = Clock(), dg.DagsterRun("waiting", run_id=RUN_ID)
    monitor = HeartbeatMonitor("metrics", clock.timing, interval_s)
    for beat in range(10):
        run = run.with_tags({ALIVE_TAG: f"{RUN_ID} {beat}"})
        monitor.measure([run])
        clock.now_s += interval_s
    clock.now_s += 60
    monitor.measure([run])
    assert monitor.is_in_step(run)


def test_only_runs_at_work_count_as_waiting(instance: dg.DagsterInstance) -> None:
    """The others are queued, start, wait for another attempt, or have ended: none polls Airflow."""

    @dg.job
    def waiting() -> None: ...

    def start(heartbeat: str) -> None:
        run_id, started = str(uuid4()), dg.DagsterRunStatus.STARTED
        tags = build_launching_tags("metrics") | {ALIVE_TAG: heartbeat.format(run_id)}
        instance.create_run_for_job(waiting, run_id=run_id, status=started, tags=tags)

    for heartbeat in ("", "another 1", "{} 1 waits", "{} 1", "{} 2"):
        start(heartbeat)
    monitor = HeartbeatMonitor("metrics", Timing(), INTERVAL_S)
    assert fail_orphaned_runs(instance, "metrics", monitor, lambda: LOG) == 2


@pytest.mark.parametrize("step_name", ["python_asset", "warehouse__dags", "metrics__dags__dags"])
def test_a_run_during_another_step_is_not_failed(
    instance: dg.DagsterInstance, step_name: str
) -> None:
    tags = build_launching_tags("metrics")
    status = observe_step(instance, step_name, tags, observe_for_a_minute)
    assert status is dg.DagsterRunStatus.STARTED


def test_a_run_is_in_a_step_from_its_first_heartbeat_on(instance: dg.DagsterInstance) -> None:
    """Its step began late, so that heartbeats had been missing when the observer measured last."""

    def begin_late(observer: Observer, run_id: str) -> None:
        observer.observe(60)
        before = fetch_run(instance, run_id)
        assert observer.monitor.is_silent(before)
        assert not observer.monitor.is_in_step(before)
        instance.add_run_tags(run_id, {ALIVE_TAG: f"{run_id} 1700000000"})
        assert observer.monitor.is_in_step(fetch_run(instance, run_id))

    tags = build_launching_tags("metrics") | {ALIVE_TAG: "of another attempt"}
    status = observe_step(instance, "python_asset", tags, begin_late)
    assert status is dg.DagsterRunStatus.STARTED


def fetch_run(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRun:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run


def test_a_run_that_waits_for_another_airflow_is_not_failed(instance: dg.DagsterInstance) -> None:
    tags = build_launching_tags("warehouse")
    status = observe_step(instance, "metrics__dags", tags, observe_for_a_minute)
    assert status is dg.DagsterRunStatus.STARTED


OWN, OTHER = "metrics__dags", "python_asset"
BEGUN = (None, dg.DagsterEventType.RUN_START, None)
BEGINS = dg.DagsterEventType.STEP_START
ENDED = dg.DagsterEventType.STEP_SUCCESS, StepSuccessData(10.0)
ENGINE = dg.DagsterEventType.ENGINE_EVENT, EngineEventData()
RESOURCES = dg.DagsterEventType.RESOURCE_INIT_STARTED, EngineEventData()
RESOURCES_READY = dg.DagsterEventType.RESOURCE_INIT_SUCCESS, EngineEventData()
STARTING = dg.DagsterEventType.STEP_WORKER_STARTING, EngineEventData(marker_start="step_process")


def launch_run(
    instance: dg.DagsterInstance, tags: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Add a Dagster run that starts, and that waits for Airflow."""

    @dg.job
    def waiting() -> None: ...

    status, tags = dg.DagsterRunStatus.STARTING, {**build_launching_tags("metrics"), **tags}
    instance.create_run_for_job(waiting, run_id=RUN_ID, status=status, tags=tags)


def report_event(
    instance: dg.DagsterInstance, step_key: str | None, kind: dg.DagsterEventType, data: Any
) -> None:
    handle = StepHandle(NodeHandle(step_key, None)) if step_key else None
    event = DagsterEvent(kind.value, "waiting", handle, event_specific_data=data)
    instance.report_dagster_event(event, RUN_ID)


@pytest.mark.parametrize(
    ("events", "failed_within_s"),
    [
        ([BEGUN], (240, 300)),
        ([BEGUN, (None, *RESOURCES), (None, *RESOURCES_READY)], (240, 300)),
        ([BEGUN, (None, *ENGINE), (OWN, BEGINS, None), (OWN, *ENDED), (None, *ENGINE)], (240, 300)),
        ([BEGUN, (None, *RESOURCES)], (1800, 1860)),
        ([BEGUN, (OWN, *STARTING)], (1800, 1860)),
        ([BEGUN, (OWN, *ENGINE), (OTHER, BEGINS, None), (OTHER, *ENDED)], (1800, 1860)),
        ([BEGUN, (OWN, BEGINS, None), (OWN, *ENDED), (OTHER, *STARTING)], (1800, 1860)),
        ([BEGUN, (OTHER, BEGINS, None)], None),
        ([BEGUN, (OWN, BEGINS, None), (OWN, *ENDED), (OTHER, BEGINS, None)], None),
    ],
    ids=[
        "before its steps",
        "after its resources",
        "after its steps",
        "resources start",
        "its process starts",
        "it waits for a slot",
        "the next process starts",
        "in another step",
        "in another step afterwards",
    ],
)
@pytest.mark.parametrize("had_heartbeats", [False, True])
def test_a_run_that_does_not_go_on_is_failed_in_the_end(
    instance: dg.DagsterInstance,
    events: list[tuple[str | None, dg.DagsterEventType, Any]],
    failed_within_s: tuple[int, int] | None,
    had_heartbeats: bool,
) -> None:
    launch_run(instance, {ALIVE_TAG: f"{RUN_ID} 1700000000"} if had_heartbeats else {})
    for event in events:
        report_event(instance, *event)
    observer = Observer(instance)
    first, last = failed_within_s or (3600, 3600)
    observer.observe(first)
    assert fetch_run(instance, RUN_ID).status is dg.DagsterRunStatus.STARTED
    observer.observe(last - first)
    assert fetch_run(instance, RUN_ID).is_failure == (failed_within_s is not None)


def test_heartbeats_continue_after_a_database_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:

        @dg.job
        def waiting() -> None: ...

        def start() -> str:
            started = dg.DagsterRunStatus.STARTED
            return instance.create_run_for_job(waiting, run_id=RUN_ID, status=started).run_id

        with Heartbeats(instance, start(), "metrics", Timing(heartbeat_s=0.01)):
            instance.delete_run(RUN_ID)
            wait_for(lambda: "A heartbeat" in caplog.text, "a heartbeat has failed", 60, 0.01)
            start()
            wait_for(lambda: _has_heartbeat(instance), "a later one has succeeded", 60, 0.01)


def _has_heartbeat(instance: dg.DagsterInstance) -> bool:
    run = instance.get_run_by_id(RUN_ID)
    return run is not None and ALIVE_TAG in run.tags


def test_a_run_is_not_failed_while_dagster_says_again_and_again_that_it_waits_for_a_slot(
    instance: dg.DagsterInstance,
) -> None:
    """Dagster says so every five minutes, as long as the worker lives."""
    launch_run(instance)
    observer = Observer(instance)
    report_event(instance, *BEGUN)
    for _ in range(12):
        report_event(instance, OTHER, *ENGINE)
        observer.observe(300)
    observer.observe(1400)
    assert fetch_run(instance, RUN_ID).status is dg.DagsterRunStatus.STARTED
    observer.observe(200)
    assert fetch_run(instance, RUN_ID).is_failure


def test_a_step_that_waits_for_a_slot_may_do_so_after_a_long_step_of_the_project(
    instance: dg.DagsterInstance,
) -> None:
    launch_run(instance)
    observer = Observer(instance)
    events = [BEGUN, (OTHER, BEGINS, None), (OTHER, *ENDED), (OWN, *ENGINE)]
    for event, seconds in zip(events, (0, 3600, 100, 1700), strict=True):
        report_event(instance, *event)
        observer.observe(seconds)
    assert fetch_run(instance, RUN_ID).status is dg.DagsterRunStatus.STARTED
    observer.observe(200)
    assert fetch_run(instance, RUN_ID).is_failure
