"""Tells which runs take longer than the `max_duration` of their DAG, each once."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
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
from federation_defs.observation.cursor import Ends
from federation_defs.partitions import Partitioning, find_partition
from federation_defs.threads import run_in_threads
from federation_defs.timing import Timing

_log = logging.getLogger(__name__)

_Start: TypeAlias = tuple[str, str, float]  # DAG id, run id, and the start in seconds since 1970


class Slowness:
    """Watches the runs of one instance.

    A run is reported as slow while it goes on. If it ends before that is seen, or while nobody
    looks, it is reported with its end. A run that is cleared and runs again is another one: it has
    another start.

    Args:
        limits_s: `max_duration` by DAG id, of the DAGs that declare it.
        partitionings: Of DAGs that have partitions, by DAG id.
    """

    def __init__(
        self,
        client: AirflowClient,
        limits_s: Mapping[str, float],
        partitionings: Mapping[str, Partitioning],
        timing: Timing,
    ) -> None:
        self._client = client
        self._limits_s = limits_s
        self._partitionings = partitionings
        self._timing = timing
        shortest_s = min(limits_s.values(), default=math.inf)
        self._interval_s = timing.list_running_runs.poll_pause_s(shortest_s)
        self._list_at, self._failures = -math.inf, 0
        self._running: set[_Start] = set()  # slow ones, when they were listed last
        self._told: set[_Start] = set()  # that this process knows of; the event log knows all

    def watch(
        self,
        instance: dg.DagsterInstance,
        ends: Ends,
        deadline: float,
        may_tell: Callable[[], bool],
    ) -> bool:
        """Tell about slow runs, and evaluate the check for runs that ended. Return whether anything
        was stored.

        Args:
            deadline: For requests, by the monotonic clock.
            may_tell: Whether no other process does.
        """
        now = ends.now
        ended = [run for run in ends.settled if run.dag_id in self._limits_s]
        new = {run.key for run in ends.news}
        slow = [run for run in ended if run.measure_s(now) > self._limits_s[run.dag_id]]
        slow = [run for run in slow if run.key in new]
        news = self._find_untold(instance, [*slow, *self._find_running(now, deadline)])
        # While a slow run goes on, another one that ends in time does not pass the check.
        self._running -= set(map(_identify, ended))
        failing = {dag_id for dag_id, *_ in self._running}
        last = {run.dag_id: run for run in ended if run.dag_id not in failing}.values()
        checked = [*last, *(run for run in news if not run.is_finished)]
        if not (checked or news) or not may_tell():
            return False
        for run in checked:
            check = build_max_duration_check(self._client, run, self._limits_s[run.dag_id], now)
            instance.report_runless_asset_event(dg.AssetCheckEvaluation(**check))
        for run in news:
            limit_s = self._limits_s[run.dag_id]
            partition = find_partition(self._partitionings, run)
            event = build_slow_observation(self._client, run, limit_s, now, partition)
            instance.report_runless_asset_event(event)
        self._told.update(map(_identify, news))
        return True

    def _find_running(self, now: datetime, deadline: float) -> list[DagRun]:
        """Find the running runs that are slow, with one request from time to time. If that
        fails, there are none until the next one, after a longer and longer pause."""
        time_s = self._timing.monotonic()
        if not self._limits_s or time_s < self._list_at:
            return []
        self._failures += 1
        pause_s = self._timing.list_running_runs.pause_s(self._failures)
        self._list_at = time_s + max(self._interval_s, pause_s)
        find = partial(find_slow_runs, self._client, self._limits_s, now)
        try:
            (slow,) = run_in_threads([find], 1, deadline - time_s)
        except AirflowError as error:
            _log.warning("%s Slow runs that go on are not told meanwhile.", error)
            return []
        if slow is None:
            return []
        self._list_at, self._failures = time_s + self._interval_s, 0
        self._running = set(map(_identify, slow))
        self._told &= self._running
        return slow

    def _find_untold(self, instance: dg.DagsterInstance, runs: Iterable[DagRun]) -> list[DagRun]:
        """Find those of the runs that nobody told about."""
        by_dag: defaultdict[str, list[DagRun]] = defaultdict(list)
        for run in runs:
            if _identify(run) not in self._told:
                by_dag[run.dag_id].append(run)
        for dag_id, unknown in by_dag.items():
            key = build_asset_key(self._client.instance, dag_id)
            since = min(run.start_date for run in unknown if run.start_date)
            signals = fetch_signals(instance, key, since)
            self._told |= {_identify(run) for run in unknown if _build_signal(run) in signals}
        unknown = (run for runs in by_dag.values() for run in runs)
        return [run for run in unknown if _identify(run) not in self._told]


def _identify(run: DagRun) -> _Start:
    return (run.dag_id, *_build_signal(run)[1:])


def _build_signal(run: DagRun) -> tuple[str, str, float]:
    return "slow", run.run_id, run.start_date.timestamp() if run.start_date else 0.0
