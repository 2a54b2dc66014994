"""The sensor that reports the finished runs of an instance.

It stores the events itself, before the tick returns, so that what was reported can be read from
then on. Before it reports a run it asks the event log, so that a lost cursor, or a crash between
storing the events and the cursor, reports nothing twice.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from types import MappingProxyType
from uuid import uuid4

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun
from federation_defs.checks import build_absent_evaluation
from federation_defs.dagster_io.deployment import (
    fetch_sensor_cursor,
    find_same_sensor,
    has_sensor_threads,
)
from federation_defs.dagster_io.event_log import find_first_reported_end
from federation_defs.dagster_io.heartbeat import HeartbeatWatch, fail_orphaned_runs
from federation_defs.declaration import ObserveDeclaration
from federation_defs.errors import (
    AirflowError,
    DagNotFoundError,
    DeclaredTwiceError,
    UnreachableError,
)
from federation_defs.events import build_gap_observations
from federation_defs.naming import build_asset_key, build_sensor_name
from federation_defs.observation.cursor import Cursor, advance, build_fingerprint
from federation_defs.observation.deferred import DeferredRuns
from federation_defs.observation.outcomes import OutcomeFetcher, select_runs
from federation_defs.observation.poller import Poller
from federation_defs.observation.reporter import Reporter
from federation_defs.outcome import Rules, join_names
from federation_defs.partitions import Partitioning
from federation_defs.timing import Timing

# How many instances poll several times per tick. A code server evaluates sensors in about six
# threads.
_repeated_polls = threading.BoundedSemaphore(3)

_DAGS_PER_TICK = 20  # of which it is asked whether they are absent
_MIN_GAP = timedelta(hours=1)  # reporting a history may take this long


@dataclass(frozen=True)
class Limits:
    """How much one poll does at most. The next poll continues.

    Attributes:
        runs: Runs to read of a long history.
        reports: Runs to report, as far as `timing.report_s` allows.
    """

    runs: int = 2000
    reports: int = 1000


def build_observation_sensor(
    client: AirflowClient,
    rules: Rules,
    observe: ObserveDeclaration,
    *,
    partitionings: Mapping[str, Partitioning],
    absent: Mapping[str, str] = MappingProxyType({}),
    limits: Limits = Limits(),
    timing: Timing = Timing(),  # noqa: B008 - frozen
) -> dg.SensorDefinition:
    """Build the sensor that reports the finished runs of an instance.

    Args:
        rules: Of all DAGs that are assets. Runs of other DAGs are not reported.
        partitionings: Of DAGs that have partitions, by DAG id.
        absent: What is wrong with DAGs that the instance did not have at the last refresh, by id.
            Their checks fail once, unless the instance has them by now.
    """
    return dg.SensorDefinition(
        name=build_sensor_name(client.instance, "observation"),
        evaluation_fn=_Observer(client, rules, observe, partitionings, absent, limits, timing).tick,
        # One second less than the interval: the daemon loops every 5 s, and would evaluate a sensor
        # with an interval of 5 s in every other loop only (dagster 1.13).
        minimum_interval_seconds=max(1, round(observe.interval) - 1),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Reports the finished DAG runs of Airflow {client.instance}.",
    )


class Backoff:
    """Pauses polls after errors: not after the first, then longer and longer."""

    def __init__(self, timing: Timing, interval_s: float) -> None:
        self._timing = timing
        self._interval_s = interval_s
        self.record_success()

    def record_success(self) -> None:
        self._errors, self._paused_until, self._reason = 0, 0.0, ""

    def record_error(self, error: AirflowError) -> None:
        timing = self._timing
        is_unreachable = isinstance(error, UnreachableError)
        policy = timing.poll_unreachable if is_unreachable else timing.poll_refused
        if self._errors:
            policy = replace(policy, first_s=max(policy.first_s, self._interval_s))
            self._paused_until = timing.monotonic() + policy.pause_s(self._errors)
        else:
            self._since = timing.utc_now()
        self._errors += 1
        self._reason = f"{error} (Since {self._since:%F %T} UTC; asked again in"

    def describe_pause(self) -> str | None:
        """Return why polls are paused; None if they are not."""
        pause_s = self._paused_until - self._timing.monotonic()
        return f"{self._reason} {pause_s:.0f} s.)" if pause_s > 0 else None


@dataclass
class _Observer:
    """The state of one instance's sensor, as long as the process lasts.

    What must not be lost is in the cursor and in the event log.
    """

    client: AirflowClient
    rules: Rules
    observe: ObserveDeclaration
    partitionings: Mapping[str, Partitioning]
    absent: Mapping[str, str]
    limits: Limits
    timing: Timing

    def __post_init__(self) -> None:
        overlap = timedelta(seconds=self.observe.overlap)
        self._poller = Poller(self.client, self.rules, overlap, self.limits.runs, self.timing)
        self._outcomes = OutcomeFetcher(self.client, self.rules, self.timing)
        self._backoff = Backoff(self.timing, self.observe.interval)
        self._deferred = DeferredRuns(self.client, self.timing)
        self._watch = HeartbeatWatch(self.client.instance, self.timing, self.observe.interval)
        self._reporter = Reporter(self.client, self.partitionings, self._watch, self.timing)
        self._unchecked = list(self.absent)
        self._id = uuid4().hex
        self._lock = threading.Lock()

    def tick(self, context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        """Evaluate the sensor.

        Raises:
            AirflowError: The instance refuses us, or its answer makes no sense.
            DeclaredTwiceError: Another code location observes the instance.
        """
        with self._lock:
            fail_orphaned_runs(context.instance, self.client.instance, self._watch, context.log)
            if (pause := self._backoff.describe_pause()) is not None:
                return dg.SkipReason(pause)
            try:
                result = self._poll_repeatedly(context)
            except AirflowError as error:
                # The cursor stays: runs that end meanwhile are reported later.
                self._outcomes.forget_failures()
                self._deferred.forget_failures()
                self._backoff.record_error(error)
                if isinstance(error, UnreachableError):
                    return dg.SkipReason(self._backoff.describe_pause() or str(error))
                raise
            self._backoff.record_success()
            return result

    def _refuse_second_location(self, context: dg.SensorEvaluationContext) -> None:
        origin, airflow = context.code_location_origin, self.client.instance
        name = build_sensor_name(airflow, "observation")
        if origin and (other := find_same_sensor(context.instance, name, origin.location_name)):
            raise DeclaredTwiceError(airflow, origin.location_name, other)

    def _is_current(self, context: dg.SensorEvaluationContext) -> bool:
        """Whether no other process observes the instance by now: the code server may have been
        replaced while this tick goes on."""
        if (origin := context.code_location_origin) is None:
            return True
        name = build_sensor_name(self.client.instance, "observation")
        stored = fetch_sensor_cursor(context.instance, name, origin.location_name)
        cursor = Cursor.from_json(stored, self.timing.utc_now())
        return cursor is not None and cursor.observer == self._id

    def _poll_repeatedly(self, context: dg.SensorEvaluationContext) -> dg.SensorResult:
        """Poll until a run is reported. Dagster's daemon evaluates a sensor every 5 s at best."""
        timing, interval_s = self.timing, self.observe.interval
        poll_at = timing.monotonic()
        last_poll_at = poll_at + timing.last_poll_s
        result, has_news = self._poll(context)
        is_repeated = interval_s <= timing.last_poll_s and has_sensor_threads(context.instance)
        if has_news or not is_repeated or not _repeated_polls.acquire(blocking=False):
            return result
        try:
            while not has_news:
                now = timing.monotonic()
                poll_at = max(poll_at + interval_s, now)
                if poll_at > last_poll_at:
                    break
                timing.sleep(poll_at - now)
                result, has_news = self._poll(context)
            return result
        finally:
            _repeated_polls.release()

    def _poll(self, context: dg.SensorEvaluationContext) -> tuple[dg.SensorResult, bool]:
        """Poll once, and return whether there was news. A finished run passes each module once,
        from the poller to the cursor."""
        instance, log, monotonic = context.instance, context.log, self.timing.monotonic
        deadline = monotonic() + self.timing.tick_s
        cursor, gap = self._read_cursor(context)
        if context.code_location_origin and cursor.observer != self._id:
            return self._take_over(cursor, gap), True
        cursor = self._report_absent_dags(cursor, instance)
        batch = self._poller.poll(cursor.since, deadline)
        new = [run for run in batch.runs if build_fingerprint(run) not in cursor.seen]
        owned = self._reporter.find_owned(instance, new)
        deferred = {key for key in cursor.deferred if key[0] in self.rules}
        orphans = self._reporter.find_orphans(instance, deferred - {run.key for run in new})
        returned = self._deferred.fetch(orphans, monotonic() + self.timing.tick_s / 3, log)
        ready = [run for run in (*new, *returned.finished) if run.key not in owned]
        if ready:
            self._refuse_second_location(context)
        outcomes = self._outcomes.fetch(select_runs(ready, self.limits.reports), deadline)
        report_until = monotonic() + self.timing.report_s
        is_current = partial(self._is_current, context)
        settled, news = self._reporter.report(instance, outcomes, report_until, log, is_current)
        rows = [row for row in batch.unreadable if build_fingerprint(row) not in cursor.seen]
        unreadable = {row.key: row.reason for row in rows if row.key} | returned.unreadable
        odd = self._reporter.report_unreadable(instance, unreadable)
        deferred -= {*returned.gone, *returned.unreadable, *(run.key for run in settled)}
        summary = self._summarize(news, backlog=len(ready) - len(settled))
        result = dg.SensorResult(
            asset_events=gap,
            skip_reason=None if gap else summary,
            cursor=advance(cursor, batch, deferred | owned, settled).to_json(),
        )
        return result, bool(news or odd)

    def _take_over(self, cursor: Cursor, gap: Sequence[dg.AssetObservation]) -> dg.SensorResult:
        """Make this process the one that observes the instance, and report nothing yet.

        The process before it may still be in a tick, as when a code server is replaced. It sees in
        the stored cursor that it is not current any more, before this one's next tick begins.
        """
        reason = f"This code server observes Airflow '{self.client.instance}' from now on."
        return dg.SensorResult(
            asset_events=gap,
            skip_reason=None if gap else reason,
            cursor=replace(cursor, observer=self._id).to_json(),
        )

    def _report_absent_dags(self, cursor: Cursor, instance: dg.DagsterInstance) -> Cursor:
        """Fail the checks of DAGs that the instance does not have, and name them in the cursor."""
        absent = {dag_id for dag_id in cursor.absent if dag_id in self.absent}
        for _ in range(min(len(self._unchecked), _DAGS_PER_TICK)):
            if (dag_id := self._unchecked[-1]) not in absent:
                try:
                    self.client.fetch_dag(dag_id)
                except DagNotFoundError:
                    why = self.absent[dag_id]
                    event = build_absent_evaluation(self.client.instance, dag_id, why)
                    instance.report_runless_asset_event(event)
                    absent.add(dag_id)
            self._unchecked.pop()
        return replace(cursor, absent=tuple(sorted(absent)))

    def _summarize(self, news: Sequence[DagRun], backlog: int) -> str:
        airflow = self.client.instance
        names = join_names([f"{run.dag_id} {run.run_id}" for run in news])
        told = f"Reported {len(news)} runs of Airflow '{airflow}': {names}."
        summary = told if news else f"No run of Airflow '{airflow}' has ended since the last tick."
        return f"{summary} {backlog} more wait for the next tick." if backlog else summary

    def _read_cursor(
        self, context: dg.SensorEvaluationContext
    ) -> tuple[Cursor, list[dg.AssetObservation]]:
        """Return the cursor, and observations of the gap if an outage exceeded `lookback`."""
        airflow, now = self.client.instance, self.timing.utc_now()
        lookback = timedelta(seconds=self.observe.lookback)
        oldest = now - lookback
        cursor = Cursor.from_json(context.cursor, now)
        if cursor is None:
            keys = [build_asset_key(airflow, dag_id) for dag_id in self.rules]
            since = find_first_reported_end(context.instance, keys, oldest)
            since = since or now - timedelta(seconds=self.observe.lookback_on_first_start)
            context.log.info("There is no valid cursor. Looking back to %s.", since)
            return Cursor(since), []
        if cursor.since >= oldest - max(lookback / 7, _MIN_GAP):
            return cursor, []
        gap = build_gap_observations(airflow, self.rules, cursor.since, oldest)
        context.log.warning(
            "Airflow '%s' was not observed from %s to %s.", airflow, cursor.since, oldest
        )
        return replace(cursor, since=oldest), gap
