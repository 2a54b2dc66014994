"""Heartbeats of Dagster runs that wait for Airflow, and what becomes of a run without them.

Some run launchers have no health check (`DefaultRunLauncher`, dagster 1.13). There, a Dagster run
whose worker was killed stays started for ever. The observation sensor fails such runs. With run
retries enabled, as in the shipped dagster.yaml, Dagster retries a failed run. The retry adopts the
DAG run, because its run id is the same.

No clocks of two machines are compared. The sensor judges by its own clock for how long the tag
`federation/alive_at` has not changed.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import dagster as dg

from federation_defs.dagster_io.run_tags import add_run_tags, fetch_monitoring_runs
from federation_defs.naming import ALIVE_TAG, build_monitor_tags, build_op_name
from federation_defs.timing import Timing

_log = logging.getLogger(__name__)


@contextmanager
def send_heartbeats(
    instance: dg.DagsterInstance, run_id: str, airflow: str, timing: Timing
) -> Iterator[None]:
    """Write heartbeats of a Dagster run that waits for an Airflow instance.

    They come from a thread, because a request that hangs takes longer than the interval.
    """
    is_over = threading.Event()

    def write() -> None:
        alive_at = f"{run_id} {timing.utc_now().timestamp():.0f}"
        add_run_tags(instance, run_id, {**build_monitor_tags(airflow), ALIVE_TAG: alive_at})

    def repeat() -> None:
        while not is_over.wait(timing.heartbeat_s):
            try:
                write()
            except Exception:  # noqa: BLE001 - any database error; the next one may succeed
                _log.warning("A heartbeat of run %s failed.", run_id, exc_info=True)

    write()
    thread = threading.Thread(target=repeat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


class HeartbeatWatch:
    """Measures for how long the heartbeats of Dagster runs have been missing."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._measured_at = timing.monotonic()
        # By run id, the last heartbeat and for how many seconds it has not changed.
        self._silences: dict[str, tuple[str, float]] = {}

    def measure(self, runs: Iterable[dg.DagsterRun]) -> None:
        """Take in the heartbeats of runs, and forget all other runs."""
        # Time in which this process slept, or waited for the database, is no silence.
        now, at_most = self._timing.monotonic(), self._timing.heartbeat_lost_s / 4
        elapsed_s, self._measured_at = min(now - self._measured_at, at_most), now
        before, self._silences = self._silences, {}
        for run in runs:
            heartbeat = run.tags.get(ALIVE_TAG, "")
            last, silence_s = before.get(run.run_id, (None, 0.0))
            silence_s = silence_s + elapsed_s if heartbeat == last else 0.0
            self._silences[run.run_id] = heartbeat, silence_s

    def is_silent(self, run: dg.DagsterRun) -> bool:
        """Whether heartbeats of a run are missing. They are only written during our steps."""
        return self._get_silence_s(run) > self._timing.heartbeat_lost_s

    def is_in_step(self, run: dg.DagsterRun) -> bool:
        """Whether a living worker executes one of our steps."""
        return _has_heartbeat(run) and not self.is_silent(run)

    def is_before_step(self, run: dg.DagsterRun) -> bool:
        """Whether none of our steps has begun, and one may still begin."""
        is_over = self._get_silence_s(run) > self._timing.first_heartbeat_lost_s
        return not _has_heartbeat(run) and not is_over

    def _get_silence_s(self, run: dg.DagsterRun) -> float:
        last, silence_s = self._silences.get(run.run_id, (None, 0.0))
        return silence_s if run.tags.get(ALIVE_TAG, "") == last else 0.0


def _has_heartbeat(run: dg.DagsterRun) -> bool:
    """Whether a heartbeat is the run's own. A re-execution inherits the tags of its parent."""
    return run.tags.get(ALIVE_TAG, "").startswith(run.run_id)


def fail_orphaned_runs(
    instance: dg.DagsterInstance,
    airflow: str,
    watch: HeartbeatWatch,
    log: logging.Logger,
    timing: Timing,
) -> None:
    """Fail the started Dagster runs that wait for an Airflow instance and whose worker died."""
    message = (
        f"The worker of this run died while it waited for Airflow '{airflow}'. A retry adopts its "
        "DAG runs; without a retry, observation reports them."
    )
    records = fetch_monitoring_runs(instance, airflow)
    watch.measure(record.dagster_run for record in records)
    for record in records:
        run = record.dagster_run
        is_started = run.status is dg.DagsterRunStatus.STARTED
        if is_started and watch.is_silent(run) and _is_orphaned(instance, airflow, record, timing):
            current = instance.get_run_by_id(run.run_id)
            if current is not None and not current.is_finished:
                log.warning("Failing Dagster run %s. %s", run.run_id, message)
                instance.report_run_failed(current, message)


def _is_orphaned(
    instance: dg.DagsterInstance, airflow: str, record: dg.RunRecord, timing: Timing
) -> bool:
    """Whether a silent run should write heartbeats: it is in one of our steps, or in none."""
    steps = instance.get_run_step_stats(record.dagster_run.run_id)
    if not steps:
        started_at = record.start_time or record.create_timestamp.timestamp()
        return timing.utc_now().timestamp() - started_at > timing.first_heartbeat_lost_s
    # Dagster splits a multi_asset into name, name_2, … where dependencies cross.
    own_step = re.compile(re.escape(build_op_name(airflow, "dags")) + r"(_\d+)?")
    return any(step.end_time is None and own_step.fullmatch(step.step_key) for step in steps)
