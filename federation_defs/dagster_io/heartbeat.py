"""Heartbeats of Dagster runs that wait for Airflow. Runs whose heartbeats have stopped are failed.

Some run launchers have no health check (`DefaultRunLauncher`, dagster 1.13). There, a Dagster run
keeps the status STARTED forever if its worker was killed, or could not store how the run ended. The
observation sensor fails such runs. With run retries enabled, as in the shipped dagster.yaml,
Dagster retries a failed run. The retry adopts the DAG run, because it uses the same run id.

The clocks of two machines are never compared. The sensor measures with its own clock for how long
the tag `federation/alive_at.<instance>` has not changed.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Collection, Iterable

import dagster as dg

from federation_defs.dagster_io.deployment import is_dagster_plus
from federation_defs.dagster_io.run_tags import add_run_tags, fetch_launching_runs
from federation_defs.naming import build_alive_tag, build_launching_tags, build_op_name
from federation_defs.timing import Timing

_WAITS = " waits"
# The events that Dagster stores before a step begins, while its process starts or while the step
# waits for a slot of its pool.
_ANNOUNCING = {dg.DagsterEventType.ENGINE_EVENT, dg.DagsterEventType.STEP_WORKER_STARTING}
_INITIALIZING = dg.DagsterEventType.RESOURCE_INIT_STARTED
_INITIALIZED = dg.DagsterEventType.RESOURCE_INIT_SUCCESS

_log = logging.getLogger(__name__)


class Heartbeats:
    """Writes heartbeats of a Dagster run while it executes a step of an Airflow instance.

    A thread of its own writes them every `timing.heartbeat_s`, because a request that hangs may
    take longer than that.
    """

    def __init__(
        self, instance: dg.DagsterInstance, run_id: str, airflow: str, timing: Timing
    ) -> None:
        self._instance = instance
        self._run_id = run_id
        self._airflow = airflow
        self._timing = timing
        self._is_waiting = True
        self._is_abandoned = False
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeats:
        self._write()
        self._thread.start()
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is GeneratorExit:
            # The garbage collector closes an interrupted step in any thread: also in this one,
            # which may hold the lock of the event.
            self._is_abandoned = True
            return
        self._is_over.set()
        self._thread.join()

    def begin(self) -> None:
        """Write a heartbeat that shows that the step no longer waits for other attempts."""
        self._is_waiting = False
        self._write()

    def _write(self) -> None:
        heartbeat = f"{self._run_id} {self._timing.utc_now().timestamp():.0f}"
        with self._lock:  # so that no heartbeat overtakes `begin`
            tags = {build_alive_tag(self._airflow): heartbeat + _WAITS * self._is_waiting}
            tags |= build_launching_tags(self._airflow)
            add_run_tags(self._instance, self._run_id, tags)

    def _repeat(self) -> None:
        while not (self._is_over.wait(self._timing.heartbeat_s) or self._is_abandoned):
            try:
                self._write()
            except Exception:  # noqa: BLE001 - any database error; the next one may succeed
                _log.warning(
                    "A heartbeat of Dagster run %s for Airflow '%s' could not be stored.",
                    self._run_id,
                    self._airflow,
                    exc_info=True,
                )


class HeartbeatMonitor:
    """Measures for how long the heartbeats of Dagster runs have been missing.

    Args:
        airflow: The Airflow instance's name.
        interval_s: The usual time between two calls of `measure`, in seconds.
    """

    def __init__(self, airflow: str, timing: Timing, interval_s: float) -> None:
        self._tag = build_alive_tag(airflow)
        self._timing = timing
        self._interval_s = interval_s
        self._lost_s = (
            timing.heartbeat_lost_on_plus_s if is_dagster_plus() else timing.heartbeat_lost_s
        )
        self._measured_at = timing.monotonic()
        # By run id: the last heartbeat, and for how many seconds it has not changed.
        self._silences: dict[str, tuple[str, float]] = {}
        # By run id: how many events said that a step waits, and the silence at the last new one.
        self._waits: dict[str, tuple[int, float]] = {}

    def measure(self, runs: Iterable[dg.DagsterRun]) -> None:
        """Record the current heartbeats of runs, and forget all other runs."""
        # A process that slept, or waited for the database, could not see heartbeats in that time.
        # So each call adds a limited time, which alone never makes a run silent.
        at_most = max(self._lost_s / 4, min(2 * self._interval_s, self._lost_s / 2))
        now = self._timing.monotonic()
        elapsed_s, self._measured_at = min(now - self._measured_at, at_most), now
        before, self._silences = self._silences, {}
        for run in runs:
            heartbeat = run.tags.get(self._tag, "")
            last, silence_s = before.get(run.run_id, (None, 0.0))
            silence_s = silence_s + elapsed_s if heartbeat == last else 0.0
            self._silences[run.run_id] = heartbeat, silence_s
        self._waits = {each: self._waits[each] for each in self._silences if each in self._waits}

    def is_silent(self, run: dg.DagsterRun) -> bool:
        """Whether the heartbeat of a run has not changed for too long. Only steps that run DAGs
        write heartbeats, so a run between two steps may be silent, too."""
        return self._get_silence_s(run) > self._lost_s

    def is_in_step(self, run: dg.DagsterRun) -> bool:
        """Whether a living worker of a run executes a step that writes heartbeats."""
        return self._has_heartbeat(run) and not self.is_silent(run)

    def is_at_work(self, run: dg.DagsterRun) -> bool:
        """Whether a living worker of a run executes a step that writes heartbeats, and that does
        not wait for other attempts."""
        return self.is_in_step(run) and not self.is_waiting(run)

    def is_waiting(self, run: dg.DagsterRun) -> bool:
        """Whether the step of a run still waits for other attempts, and so has launched nothing."""
        return run.tags.get(self._tag, "").endswith(_WAITS)

    def is_overdue(self, run: dg.DagsterRun, *, waits: int) -> bool:
        """Whether a run that is between two steps has been silent for longer than is plausible.

        Args:
            waits: How many of its events say that a step waits for a slot, a process or resources,
                which may take longer. Each new one is a sign of life: while a step waits for a
                slot, Dagster adds one every five minutes (1.13).
        """
        silence_s = self._get_silence_s(run)
        known, since_s = self._waits.get(run.run_id, (waits, 0.0))
        if waits > known or silence_s < since_s:
            since_s = silence_s
        self._waits[run.run_id] = waits, since_s
        lost_s = self._timing.waiting_step_lost_s if waits else self._timing.next_step_lost_s
        return silence_s - since_s > lost_s

    def record_other_step(self, run: dg.DagsterRun) -> None:
        """Record that a run is in another step: until now, it was not between two steps."""
        self._waits[run.run_id] = 0, self._get_silence_s(run)

    def _get_silence_s(self, run: dg.DagsterRun) -> float:
        last, silence_s = self._silences.get(run.run_id, (None, 0.0))
        return silence_s if run.tags.get(self._tag, "") == last else 0.0

    def _has_heartbeat(self, run: dg.DagsterRun) -> bool:
        """Whether a run has a heartbeat of its own: a re-execution inherits that of its parent."""
        return run.tags.get(self._tag, "").startswith(run.run_id)


def fail_orphaned_runs(
    instance: dg.DagsterInstance,
    airflow: str,
    monitor: HeartbeatMonitor,
    log: Callable[[], logging.Logger],
) -> int:
    """Fail the started Dagster runs that wait for an Airflow instance and whose worker died.

    Returns:
        The number of Dagster runs that are at work, and so poll the instance themselves.
    """
    message = (
        f"The worker of this run died, or lost its connection to Dagster's database. A retry "
        f"adopts its DAG runs in Airflow '{airflow}'. Without a retry, observation reports them."
    )
    runs = fetch_launching_runs(instance, airflow)
    monitor.measure(runs)
    for run in runs:
        is_started = run.status is dg.DagsterRunStatus.STARTED
        if is_started and monitor.is_silent(run) and _is_orphaned(instance, airflow, monitor, run):
            current = instance.get_run_by_id(run.run_id)
            if current is not None and not current.is_finished:
                log().warning("Failing Dagster run %s. %s", run.run_id, message)
                instance.report_run_failed(current, message)
    return sum(map(monitor.is_at_work, runs))


def _is_orphaned(
    instance: dg.DagsterInstance, airflow: str, monitor: HeartbeatMonitor, run: dg.DagsterRun
) -> bool:
    """Whether the worker of a silent run died.

    It did if the run is in a step that writes heartbeats. It also did if the run is between two
    steps for too long. A run in another step is left alone.
    """
    begun = [step for step in instance.get_run_step_stats(run.run_id) if step.start_time]
    if at_work := [step.step_key for step in begun if step.end_time is None]:
        # Dagster splits a multi_asset into name, name_2, … where dependencies cross.
        own_step = re.compile(re.escape(build_op_name(airflow, "dags")) + r"(_\d+)?")
        if any(own_step.fullmatch(step_key) for step_key in at_work):
            return True
        monitor.record_other_step(run)
        return False
    waits = _count_waits(instance, run.run_id, {step.step_key for step in begun})
    return monitor.is_overdue(run, waits=waits)


def _count_waits(instance: dg.DagsterInstance, run_id: str, begun: Collection[str]) -> int:
    """Count the events which say that a run that executes no step waits for a slot, a process or
    resources.

    Args:
        begun: The keys of the steps that have begun.
    """
    kinds = {*_ANNOUNCING, _INITIALIZING, _INITIALIZED}
    events = instance.all_logs(run_id, of_type=kinds)
    if events and events[-1].get_dagster_event().event_type is _INITIALIZING:
        return len(events)
    return sum(bool(event.step_key) and event.step_key not in begun for event in events)
