"""Dagster runs whose worker died: told by a heartbeat, and ended.

With Dagster's default run launcher nobody watches the workers (dagster 1.13): a run whose worker
was killed would stay "started" for ever, its assets in progress, never to be requested again. So
a worker that waits for Airflow leaves a sign of life in its run's tags, and the observation sensor
ends a run that left none for too long. With run retries on (the shipped dagster.yaml has them)
Dagster starts such a run again, which takes over the DAG run, for the run id is the same.
"""

from __future__ import annotations

import logging
import re
import threading
import time

import dagster as dg

from federation_defs.dagster_io.run_tags import add_run_tags
from federation_defs.naming import ALIVE_TAG, build_execution_name, build_monitor_tags

_log = logging.getLogger(__name__)

BEAT_S = 15.0

# Several beats: a database under load, or a machine that was asleep, may hold one up.
SILENT_S = 90.0

# From a run's start to its first step there is no beat, and a step may wait for its turn.
SILENT_BEFORE_STEP_S = 900.0


class Heartbeat:
    """The signs of life of a Dagster run, for as long as the context lasts.

    From a thread of its own, because a request to an Airflow that hangs takes longer than a beat.

    Args:
        airflow: The name of the Airflow instance that the run waits for.
    """

    def __init__(self, instance: dg.DagsterInstance, run_id: str, airflow: str) -> None:
        self._instance = instance
        self._run_id = run_id
        self._tags = build_monitor_tags(airflow)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._beat()
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _beat_on(self) -> None:
        while not self._is_over.wait(BEAT_S):
            try:
                self._beat()
            except Exception:  # noqa: BLE001 whatever the database says: the next beat may do
                _log.warning("No sign of life of run %s.", self._run_id, exc_info=True)

    def _beat(self) -> None:
        alive = {ALIVE_TAG: f"{time.time():.0f}"}
        add_run_tags(self._instance, self._run_id, {**self._tags, **alive})


def fail_orphaned_runs(instance: dg.DagsterInstance, airflow: str, log: logging.Logger) -> None:
    """Ends every started Dagster run that waits for this Airflow, but whose worker is dead.

    Args:
        airflow: The Airflow instance's name. It is not asked anything, so it may be away.
    """
    waiting = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.STARTED], tags=build_monitor_tags(airflow)
    )
    for record in instance.get_run_records(waiting):
        run_id = record.dagster_run.run_id
        if not _is_orphaned(instance, airflow, record):
            continue
        run = instance.get_run_by_id(run_id)
        if run is not None and not run.is_finished:
            message = (
                f"The worker of this run died while it waited for Airflow '{airflow}'. A retry "
                "takes over its DAG runs; without one, observation reports them."
            )
            log.warning("Ending Dagster run %s. %s", run_id, message)
            instance.report_run_failed(run, message)


def _is_orphaned(instance: dg.DagsterInstance, airflow: str, record: dg.RunRecord) -> bool:
    """Whether the run was silent for too long where it would have had to be heard.

    At a step of somebody else's, or between two steps, there is no heartbeat to miss.
    """
    now = time.time()
    steps = instance.get_run_step_stats(record.dagster_run.run_id)
    if not steps:
        started = record.start_time or record.create_timestamp.timestamp()
        return started < now - SILENT_BEFORE_STEP_S
    # Dagster splits a multi_asset into ours, ours_2, … where dependencies cross.
    ours = re.compile(re.escape(build_execution_name(airflow)) + r"(_\d+)?")
    # A retry has the tags of the run before it, which are older than its own step.
    alive_at = float(record.dagster_run.tags.get(ALIVE_TAG, 0))
    return any(
        max(alive_at, step.start_time or now) < now - SILENT_S
        for step in steps
        if step.end_time is None and ours.fullmatch(step.step_key)
    )
