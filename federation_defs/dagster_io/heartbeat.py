"""Heartbeats of run workers, and the end of runs whose worker died.

Dagster's default run launcher does not watch its workers (dagster 1.13): a run whose worker was
killed stays "started" for ever, and its assets are never requested again. So a worker that waits
for Airflow writes heartbeats into its run's tags, and the observation sensor fails runs whose
heartbeats stopped. With run retries enabled, as in the shipped dagster.yaml, Dagster retries such a
run. The retry adopts the DAG run, because its run id is the same.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
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
        alive_at = f"{timing.utc_now().timestamp():.0f}"
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


def fail_orphaned_runs(
    instance: dg.DagsterInstance, airflow: str, log: logging.Logger, timing: Timing
) -> None:
    """Fail the started Dagster runs that wait for an Airflow instance and whose worker died."""
    message = (
        f"The worker of this run died while it waited for Airflow '{airflow}'. A retry adopts its "
        "DAG runs; without a retry, observation reports them."
    )
    for record in fetch_monitoring_runs(instance, airflow):
        is_started = record.dagster_run.status is dg.DagsterRunStatus.STARTED
        if is_started and _is_orphaned(instance, airflow, record, timing):
            run = instance.get_run_by_id(record.dagster_run.run_id)
            if run is not None and not run.is_finished:
                log.warning("Failing Dagster run %s. %s", run.run_id, message)
                instance.report_run_failed(run, message)


def _is_orphaned(
    instance: dg.DagsterInstance, airflow: str, record: dg.RunRecord, timing: Timing
) -> bool:
    """Whether heartbeats of the run are missing.

    Heartbeats are only written during our steps, not in other steps or between two steps.
    """
    now = timing.utc_now().timestamp()
    steps = instance.get_run_step_stats(record.dagster_run.run_id)
    if not steps:
        started_at = record.start_time or record.create_timestamp.timestamp()
        return started_at < now - timing.first_heartbeat_lost_s
    # Dagster splits a multi_asset into name, name_2, … where dependencies cross.
    own_step = re.compile(re.escape(build_op_name(airflow, "dags")) + r"(_\d+)?")
    # A retry starts with the tags of the run before it, so the heartbeat may be older.
    alive_at = float(record.dagster_run.tags.get(ALIVE_TAG, 0))
    return any(
        max(alive_at, step.start_time or now) < now - timing.heartbeat_lost_s
        for step in steps
        if step.end_time is None and own_step.fullmatch(step.step_key)
    )
