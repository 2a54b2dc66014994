"""The check `max_duration`, and a signal for each run that takes longer."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TypeAlias

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun
from federation_defs.checks import find_slow_runs
from federation_defs.dagster_io.reports import fetch_signals
from federation_defs.errors import AirflowError
from federation_defs.events import build_max_duration_check, build_slow_observation
from federation_defs.naming import build_asset_key
from federation_defs.observation.cursor import EndedRuns
from federation_defs.observation.tick import Tick
from federation_defs.partitions import Partitioning, find_partition
from federation_defs.threads import run_in_threads
from federation_defs.timing import Timing

_log = logging.getLogger(__name__)

_Start: TypeAlias = tuple[str, str, float]  # DAG id, run id, and the start in seconds since 1970


@dataclass
class MaxDurationCheck:
    """The check of the DAGs of one instance that declare a `max_duration`.

    A run is signaled as slow while it runs. If it ends before the next list of running runs, it is
    signaled when its end is reported. A run that is cleared and runs again counts as another run,
    because it has another start.

    Attributes:
        limits_s: `max_duration` by DAG id.
        partitionings: The partitions of DAGs that have some, by DAG id.
    """

    client: AirflowClient
    limits_s: Mapping[str, float]
    partitionings: Mapping[str, Partitioning]
    timing: Timing

    def __post_init__(self) -> None:
        shortest_s = min(self.limits_s.values(), default=math.inf)
        self._interval_s = self.timing.list_running_runs.poll_pause_s(shortest_s)
        self._list_at, self._failures = -math.inf, 0
        self._running: set[_Start] = set()  # slow runs, as of the last list
        self._signaled: set[_Start] = set()  # as far as this process knows; the event log has all
        # Ended runs to evaluate, and whether they are new. They are kept if the database fails.
        self._ended: dict[_Start, tuple[DagRun, bool]] = {}

    def evaluate(
        self, tick: Tick, ended_runs: EndedRuns, begun_at: datetime | None, until: float
    ) -> bool:
        """Signal slow runs, and evaluate the check for runs that ended. Return whether anything
        was stored.

        Args:
            begun_at: As in `Cursor`. Runs that ended later are new, even if they were reported by a
                tick that crashed.
            until: The deadline of requests, by the monotonic clock.
        """
        now = ended_runs.now
        new_keys = {run.key for run in ended_runs.newly_reported}
        for run in ended_runs.settled:
            if run.dag_id in self.limits_s:
                _, was_new = self._ended.get(_identify(run), (run, False))
                self._ended[_identify(run)] = run, was_new or run.key in new_keys
        ended = [run for run, _ in self._ended.values()]
        slow = [
            run
            for run, is_new in self._ended.values()
            if run.measure_s(now) > self.limits_s[run.dag_id]
            and (
                is_new or begun_at is None or (run.end_date is not None and run.end_date > begun_at)
            )
        ]
        unsignaled = self._find_unsignaled(tick.instance, [*slow, *self._find_running(now, until)])
        # While a slow run is running, another one that ends in time does not pass the check.
        self._running -= set(map(_identify, ended))
        failing = {dag_id for dag_id, *_ in self._running}
        last = {run.dag_id: run for run in ended if run.dag_id not in failing}.values()
        checked = [*last, *(run for run in unsignaled if not run.is_finished)]
        if not (checked or unsignaled) or not tick.may_store():
            self._ended.clear()
            return False
        for run in checked:
            check = build_max_duration_check(self.client, run, self.limits_s[run.dag_id], now)
            tick.instance.report_runless_asset_event(check)
        for run in unsignaled:
            limit_s, partition = self.limits_s[run.dag_id], find_partition(self.partitionings, run)
            event = build_slow_observation(self.client, run, limit_s, now, partition)
            tick.instance.report_runless_asset_event(event)
        self._signaled.update(map(_identify, unsignaled))
        self._ended.clear()
        return True

    def _find_running(self, now: datetime, until: float) -> list[DagRun]:
        """Find the running runs that are slow, with one request from time to time. Return none
        between two requests, and if a request fails. Pauses get longer with each failure."""
        time_s = self.timing.monotonic()
        if not self.limits_s or time_s < self._list_at:
            return []
        self._failures += 1
        pause_s = self.timing.list_running_runs.pause_s(self._failures)
        self._list_at = time_s + max(self._interval_s, pause_s)
        find = partial(find_slow_runs, self.client, self.limits_s, now)
        try:
            (slow,) = run_in_threads([find], 1, until - time_s)
        except AirflowError as error:
            _log.warning(
                "%s Until running runs can be listed, slow runs are signaled when they end.",
                error,
            )
            return []
        if slow is None:
            return []
        self._list_at, self._failures = time_s + self._interval_s, 0
        self._running = set(map(_identify, slow))
        self._signaled &= self._running
        return slow

    def _find_unsignaled(
        self, instance: dg.DagsterInstance, runs: Iterable[DagRun]
    ) -> list[DagRun]:
        by_dag: defaultdict[str, list[DagRun]] = defaultdict(list)
        for run in runs:
            if _identify(run) not in self._signaled:
                by_dag[run.dag_id].append(run)
        for dag_id, unknown in by_dag.items():
            key = build_asset_key(self.client.instance, dag_id)
            since = min(run.start_date for run in unknown if run.start_date)
            signals = fetch_signals(instance, key, since)
            self._signaled |= {_identify(run) for run in unknown if _build_signal(run) in signals}
        unknown = (run for runs in by_dag.values() for run in runs)
        return [run for run in unknown if _identify(run) not in self._signaled]


def _identify(run: DagRun) -> _Start:
    return (run.dag_id, *_build_signal(run)[1:])


def _build_signal(run: DagRun) -> tuple[str, str, float]:
    return "slow", run.run_id, run.start_date.timestamp() if run.start_date else 0.0
