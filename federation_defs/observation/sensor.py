"""The sensor that reports the finished runs of an instance.

The sensor stores the events itself, before the tick returns: other processes see at once what was
reported. Before it reports a run, it looks for the run's events in the event log. So no run is
reported twice after a lost cursor, or after a crash between storing the events and the cursor.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import TypeAlias
from uuid import uuid4

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun
from federation_defs.checks import build_absent_evaluation
from federation_defs.dagster_io.code_locations import find_moved_cursor
from federation_defs.dagster_io.deployment import share_instance
from federation_defs.dagster_io.event_log import find_known_assets
from federation_defs.dagster_io.heartbeat import HeartbeatMonitor, fail_orphaned_runs
from federation_defs.dagster_io.long_poll import long_poll
from federation_defs.dagster_io.reports import fetch_first_reported_end
from federation_defs.declaration import ObserveDeclaration
from federation_defs.errors import AirflowError, DagNotFoundError, UnreachableError
from federation_defs.events import build_gap_observations
from federation_defs.naming import build_asset_key, build_sensor_name
from federation_defs.observation.check_evaluator import CheckEvaluator
from federation_defs.observation.cursor import Cursor, EndedRuns, advance, build_fingerprint
from federation_defs.observation.outcome_fetcher import OutcomeFetcher, select_runs
from federation_defs.observation.periodic_check import ObservedDags
from federation_defs.observation.poll_interval import PollInterval
from federation_defs.observation.poller import DeferredRuns, Poller
from federation_defs.observation.reporter import Reporter
from federation_defs.observation.tick import Tick
from federation_defs.outcome import join_names
from federation_defs.timing import Timing

TickResult: TypeAlias = dg.SensorResult | dg.SkipReason

_DAGS_PER_TICK = 20  # that a poll looks up in Airflow, as they were absent at the last refresh
_MIN_GAP = timedelta(hours=1)  # a shorter gap is not reported, as reporting a history takes time


@dataclass(frozen=True)
class Limits:
    """The most that one poll does. The next poll continues.

    Attributes:
        runs: The number of runs to read of a long history.
        reports: The number of runs to report, if `timing.report_s` is enough for them.
    """

    runs: int = 2000
    reports: int = 1000


def build_observation_sensor(
    client: AirflowClient,
    dags: ObservedDags,
    observe: ObserveDeclaration,
    limits: Limits = Limits(),
    timing: Timing = Timing(),  # noqa: B008 - frozen
) -> dg.SensorDefinition:
    """Build the sensor that reports the finished runs of an instance."""
    fair_s = min(
        max(1, len(dags.instances)) * timing.interval_per_instance_s, timing.max_fair_interval_s
    )
    timing = replace(
        timing,
        max_tick_interval_s=max(fair_s, timing.max_tick_interval_s),
        check_interval_s=max(20 * fair_s, timing.check_interval_s),
    )
    observe = observe.model_copy(update={"interval": max(fair_s, observe.interval)})
    tick_interval_s = min(observe.interval, timing.max_tick_interval_s)
    observer = _Observer(client, dags, observe, limits, timing, tick_interval_s)
    return dg.SensorDefinition(
        name=build_sensor_name(client.instance, "observation"),
        evaluation_fn=observer.tick,
        # One second less than the interval: the daemon loops every 5 s, and would evaluate a sensor
        # with an interval of 5 s in every other loop only (dagster 1.13).
        minimum_interval_seconds=max(1, round(tick_interval_s) - 1),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Reports the finished DAG runs of Airflow {client.instance}.",
    )


@dataclass
class _Observer:
    """The state of one instance's sensor in this process.

    The state that has to outlast the process is in the cursor and in the event log.
    """

    client: AirflowClient
    dags: ObservedDags
    observe: ObserveDeclaration
    limits: Limits
    timing: Timing
    tick_interval_s: float

    def __post_init__(self) -> None:
        client, dags, timing = self.client, self.dags, self.timing
        overlap = timedelta(seconds=self.observe.overlap)
        self._poller = Poller(client, dags.rules, overlap, self.limits.runs, timing)
        self._outcomes = OutcomeFetcher(client, dags.rules, timing)
        self._interval = PollInterval(timing, self.observe.interval)
        self._deferred = DeferredRuns(client, timing)
        self._heartbeats = HeartbeatMonitor(
            client.instance, timing, max(self.tick_interval_s, timing.long_tick_s)
        )
        unknown = {dag_id for dag_id, dag in dags.declared.items() if dag.declares_partitions}
        unknown -= dags.partitionings.keys()
        self._reporter = Reporter(client, dags.partitionings, self._heartbeats, timing, unknown)
        self._checks = CheckEvaluator(client, dags, self.observe.lookback, timing)
        self._unchecked = list(dags.absent)
        # Found by this process. The cursor of a poll is dropped if the tick polls again.
        self._absent: set[str] = set()
        self._unread: list[dg.AssetKey] | None = None  # assets whose first report is not read yet
        self._first_end = math.inf
        self._id = uuid4().hex
        self._lock = threading.Lock()

    def tick(self, context: dg.SensorEvaluationContext) -> TickResult:
        """Evaluate the sensor.

        Raises:
            AirflowError: The instance refused a request, or gave an unexpected answer. If it is
                unreachable, the tick is skipped instead.
            DeclaredTwiceError: Another code location observes the instance.
            TickOutdatedError: The sensor was switched off, or its cursor was changed, during the
                tick.
        """
        # Dagster has ended a tick that hangs here, or a person evaluates the sensor in the UI.
        if not self._lock.acquire(blocking=False):
            return dg.SkipReason("Another tick of this sensor is still running.")
        try:
            with share_instance(context) as instance:
                origin = context.code_location_origin
                tick = Tick(
                    instance,
                    self.client.instance,
                    self.timing,
                    # `context.log` opens another Dagster instance (1.13): only for a message.
                    lambda: context.log,
                    self._id,
                    context.cursor,
                    origin and origin.location_name,
                )
                waiting = fail_orphaned_runs(instance, tick.airflow, self._heartbeats, tick.log)
                with self._interval.tick(waiting) as reason:
                    if reason:
                        return dg.SkipReason(reason)
                    poll = partial(self._poll_and_record, tick)
                    lead_s = self._interval.lead_s
                    return long_poll(context, instance, self.timing, poll, lead_s=lead_s)
        finally:
            self._lock.release()

    def _poll_and_record(self, tick: Tick, share: float) -> tuple[TickResult, float | None]:
        """Poll, and record for the interval whether that failed.

        Args:
            share: Of `timing.tick_s` and `timing.report_s`, for this poll.

        Returns:
            The result of the tick if it ends with this poll, and the seconds from the beginning of
            this poll to that of the next one. The seconds are None if the tick ends now: there is
            news, the instance is unreachable, or the tick is late.

        Raises:
            AirflowError: The instance refused a request, or gave an unexpected answer.
        """
        try:
            result, is_done = self._poll(tick, min(share, self._interval.time_share))
        except AirflowError as error:
            # The cursor stays as it is: runs that end meanwhile are reported later.
            self._outcomes.forget_failures()
            self._deferred.forget_failures()
            reason = self._interval.record_error(error)
            if isinstance(error, UnreachableError):
                return dg.SkipReason(reason), None
            raise
        self._interval.record_success()
        is_late = self._interval.time_share < 1
        return result, None if is_done or is_late else self._interval.seconds

    def _poll(self, tick: Tick, share: float) -> tuple[dg.SensorResult, bool]:
        """Poll once. Return the tick's result, and whether the tick ends now.

        A finished run passes through each module once, from the poller to the cursor.
        """
        instance, monotonic = tick.instance, self.timing.monotonic
        began_at = monotonic()
        deadline = began_at + share * self.timing.tick_s
        if (beginning := self._read_cursor(tick)) is None:
            reason = f"Looking in the event log for the first report of Airflow '{tick.airflow}'."
            return dg.SensorResult(skip_reason=f"{reason} The next tick continues."), True
        cursor, gap = beginning
        if tick.location and cursor.observer != self._id:
            return self._take_over(cursor, gap), True
        with self._interval.poll():
            batch = self._poller.poll(cursor.since, deadline)
            cursor = self._report_absent_dags(cursor, tick, deadline)
        found = {build_fingerprint(run): run for run in batch.runs}
        new = [run for fingerprint, run in found.items() if fingerprint not in cursor.seen]
        owned = self._reporter.find_owned(instance, new)
        deferred = {key for key in cursor.deferred if key[0] in self.dags.rules}
        orphans = self._reporter.find_orphans(instance, deferred - {run.key for run in new})
        returned = self._deferred.fetch(orphans, (monotonic() + deadline) / 2, tick.log)
        ready = [run for run in (*new, *returned.finished) if run.key not in owned]
        rows = [row for row in batch.unreadable if build_fingerprint(row) not in cursor.seen]
        unreadable = {row.key: row.reason for row in rows if row.key} | returned.unreadable
        if ready or unreadable:
            tick.refuse_second_location()
        if unreadable and not tick.is_current():
            reason = f"Another code server observes Airflow '{tick.airflow}' now."
            return dg.SensorResult(skip_reason=reason, cursor=tick.cursor), True
        selected = select_runs(ready, self.limits.reports)
        outcomes = self._outcomes.fetch(selected, deadline)
        report_until = monotonic() + share * self.timing.report_s
        settled, newly_reported = self._reporter.report(tick, outcomes, report_until)
        newly_unreadable = self._reporter.report_unreadable(instance, unreadable)
        if newly_reported:
            self._interval.record_reports(monotonic() - began_at)
        deferred -= {*returned.gone, *returned.unreadable, *(run.key for run in settled)}
        cursor = advance(cursor, batch, deferred | owned, settled)
        unsettled = dict.fromkeys(deferred | owned)
        unsettled |= {run.key: run.end_date for run in (*new, *ready)}
        for run in settled:
            unsettled.pop(run.key, None)
        ended_runs = EndedRuns(batch.next_since, settled, newly_reported, unsettled, batch.is_last)
        cursor, is_signaled = self._checks.evaluate(tick, ended_runs, cursor, report_until)
        summary = self._summarize(newly_reported, backlog=len(ready) - len(settled))
        is_done = bool(settled or newly_unreadable or is_signaled)
        return _build_result(cursor, gap, summary), is_done

    def _take_over(self, cursor: Cursor, gap: Sequence[dg.AssetObservation]) -> dg.SensorResult:
        """Make this process the one that observes the instance. It reports from its next tick on.

        The process before it may still be in a tick, as when a code server is replaced. It sees in
        the stored cursor that another process observes the instance, before that next tick begins.
        """
        reason = f"This code server observes Airflow '{self.client.instance}' from now on."
        return _build_result(replace(cursor, observer=self._id), gap, reason)

    def _report_absent_dags(self, cursor: Cursor, tick: Tick, deadline: float) -> Cursor:
        """Fail the check `dag_run` of DAGs that the instance does not have, and add them to the
        cursor."""
        if self._unchecked and not tick.may_store():
            return cursor
        absent = self._absent
        absent.update(dag_id for dag_id in cursor.absent if dag_id in self.dags.absent)
        until = (self.timing.monotonic() + deadline) / 2
        for _ in range(min(len(self._unchecked), _DAGS_PER_TICK)):
            if self.timing.monotonic() > until:
                break
            if (dag_id := self._unchecked[-1]) not in absent:
                try:
                    self.client.fetch_dag(dag_id)
                except DagNotFoundError:
                    why = self.dags.absent[dag_id]
                    event = build_absent_evaluation(self.client.instance, dag_id, why)
                    tick.instance.report_runless_asset_event(event)
                    absent.add(dag_id)
                except UnreachableError:
                    break  # the next poll tries again
                except AirflowError as error:
                    # Such as 403: an account that may not read a DAG is not told that it is absent.
                    tick.log().warning("It is not known whether a DAG is absent: %s", error)
            self._unchecked.pop()
        return replace(cursor, absent=tuple(sorted(absent)))

    def _summarize(self, newly_reported: Sequence[DagRun], backlog: int) -> str:
        airflow = self.client.instance
        names = join_names([f"{run.dag_id} {run.run_id}" for run in newly_reported])
        summary = f"Reported no runs of Airflow '{airflow}'."
        if newly_reported:
            count = "1 run" if len(newly_reported) == 1 else f"{len(newly_reported)} runs"
            summary = f"Reported {count} of Airflow '{airflow}': {names}."
        return f"{summary} Runs left for the next tick: {backlog}." if backlog else summary

    def _read_cursor(self, tick: Tick) -> tuple[Cursor, list[dg.AssetObservation]] | None:
        """Read the cursor, or build one if there is none, or an invalid one.

        Returns:
            The cursor, and observations of the gap if an outage was longer than `lookback` by a
            seventh, and by an hour at least. None if the next tick has to continue the search of
            the event log for where to begin.
        """
        airflow, now = self.client.instance, self.timing.utc_now()
        lookback = timedelta(seconds=self.observe.lookback)
        oldest = now - lookback
        cursor = Cursor.from_json(tick.cursor, now)
        if cursor is None and tick.location:
            name = build_sensor_name(airflow, "observation")
            moved = find_moved_cursor(tick.instance, name, tick.location, self.timing)
            cursor = Cursor.from_json(moved, now)
        if cursor is None:
            if (first := self._find_first_end(tick.instance, oldest.timestamp())) is None:
                return None
            since = now - timedelta(seconds=self.observe.lookback_on_first_start)
            if first < math.inf:
                since = max(oldest, datetime.fromtimestamp(first, timezone.utc))
            tick.log().info("Airflow '%s' has no valid cursor. Looking back to %s.", airflow, since)
            has_limits = any(dag.max_duration for dag in self.dags.declared.values())
            return Cursor(since, begun_at=now if has_limits else None), []
        self._unread = None
        if cursor.since >= oldest - max(lookback / 7, _MIN_GAP):
            return cursor, []
        gap = build_gap_observations(airflow, self.dags.rules, cursor.since, oldest)
        tick.log().warning(
            "Airflow '%s' was not observed from %s to %s.", airflow, cursor.since, oldest
        )
        return replace(cursor, since=oldest), gap

    def _find_first_end(self, instance: dg.DagsterInstance, oldest: float) -> float | None:
        """Find when the first reported run of any DAG ended, in seconds since 1970; infinity if
        none was reported. None if the time of this tick is not enough; the next tick continues.

        Args:
            oldest: In seconds since 1970. The search stops at the first end that is not later.
        """
        timing = self.timing
        until = timing.monotonic() + timing.find_first_end_s
        if self._unread is None:
            keys = [build_asset_key(self.client.instance, dag_id) for dag_id in self.dags.rules]
            self._unread, self._first_end = find_known_assets(instance, keys), math.inf
        while self._unread and self._first_end > oldest:
            if timing.monotonic() > until:
                return None
            end = fetch_first_reported_end(instance, self._unread[-1])
            self._first_end = min(self._first_end, end)
            self._unread.pop()
        self._unread = None
        return self._first_end


def _build_result(
    cursor: Cursor, gap: Sequence[dg.AssetObservation], summary: str
) -> dg.SensorResult:
    reason = None if gap else summary  # Dagster accepts either events or a reason
    return dg.SensorResult(asset_events=gap, skip_reason=reason, cursor=cursor.to_json())
