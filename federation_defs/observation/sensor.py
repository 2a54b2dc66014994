"""The sensor that reports the finished runs of an instance.

Before it reports a run it asks the event log, so that a lost cursor, or a crash between storing
the events and the cursor, reports nothing twice.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from types import MappingProxyType

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.checks import build_absent_evaluation
from federation_defs.dagster_io.event_log import find_first_reported_end
from federation_defs.dagster_io.heartbeat import fail_orphaned_runs
from federation_defs.declaration import ObserveDeclaration
from federation_defs.errors import AirflowError, UnreachableError
from federation_defs.events import build_gap_observations, build_missing_events
from federation_defs.naming import build_asset_key, build_sensor_name
from federation_defs.observation.cursor import Cursor, advance, build_fingerprint
from federation_defs.observation.outcomes import (
    OutcomeFetcher,
    find_deferred_runs,
    select_runs,
)
from federation_defs.observation.poller import Poller
from federation_defs.outcome import Outcome, Rules
from federation_defs.partitions import Partitioning
from federation_defs.timing import Timing

# How many instances poll several times per tick. A code server evaluates sensors in about six
# threads.
_repeated_polls = threading.BoundedSemaphore(3)

_MIN_GAP = timedelta(hours=1)  # reporting a history may take this long


@dataclass(frozen=True)
class Limits:
    """How much one poll does at most. The next poll continues.

    Attributes:
        runs: Runs to read of a long history.
        reports: Runs to report. Dagster's daemon stores about 50 per second (SQLite).
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
        absent: Why DAGs can't run in the instance, by DAG id. Their checks fail once per load.
    """
    unreported = [build_absent_evaluation(client.instance, *item) for item in absent.items()]
    return dg.SensorDefinition(
        name=build_sensor_name(client.instance, "observation"),
        evaluation_fn=_Observer(
            client, rules, observe, partitionings, unreported, limits, timing
        ).tick,
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
    unreported: list[dg.AssetCheckEvaluation]
    limits: Limits
    timing: Timing

    def __post_init__(self) -> None:
        overlap = timedelta(seconds=self.observe.overlap)
        self._poller = Poller(self.client, self.rules, overlap, self.limits.runs, self.timing)
        self._outcomes = OutcomeFetcher(self.client, self.rules, self.timing)
        self._backoff = Backoff(self.timing, self.observe.interval)
        self._lock = threading.Lock()
        # What the last tick returned and for which cursor. Dagster saves the new cursor after it
        # has stored the events.
        self._returned: list[Outcome] = []
        self._returned_for: str | None = None
        self._returned_at = 0.0

    def tick(self, context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        """Evaluate the sensor.

        Raises:
            AirflowError: The instance refuses us, or its answer makes no sense.
        """
        fail_orphaned_runs(context.instance, self.client.instance, context.log, self.timing)
        with self._lock:
            while self.unreported:
                context.instance.report_runless_asset_event(self.unreported[-1])
                self.unreported.pop()
            if (pause := self._backoff.describe_pause()) is not None:
                return dg.SkipReason(pause)
            if self._is_storing(context):
                return dg.SkipReason("The events of the tick before are still being stored.")
            try:
                result = self._poll_repeatedly(context)
            except AirflowError as error:
                # The cursor stays: runs that end meanwhile are reported later.
                self._backoff.record_error(error)
                if isinstance(error, UnreachableError):
                    return dg.SkipReason(self._backoff.describe_pause() or str(error))
                raise
            self._backoff.record_success()
            return result

    def _is_storing(self, context: dg.SensorEvaluationContext) -> bool:
        """Whether Dagster still stores the events of another tick that had the same cursor."""
        elapsed_s = self.timing.monotonic() - self._returned_at
        if context.cursor != self._returned_for or elapsed_s > self.timing.store_events_s:
            return False
        instance, outcomes = context.instance, self._returned
        return bool(build_missing_events(instance, self.client, outcomes, self.partitionings))

    def _poll_repeatedly(self, context: dg.SensorEvaluationContext) -> dg.SensorResult:
        """Poll until there are events. Dagster's daemon evaluates a sensor every 5 s at best."""
        timing, interval_s = self.timing, self.observe.interval
        poll_at = timing.monotonic()
        last_poll_at = poll_at + timing.last_poll_s
        result = self._poll(context)
        if interval_s > timing.last_poll_s or not _repeated_polls.acquire(blocking=False):
            return result
        try:
            while not result.asset_events:
                now = timing.monotonic()
                poll_at = max(poll_at + interval_s, now)
                if poll_at > last_poll_at:
                    break
                timing.sleep(poll_at - now)
                result = self._poll(context)
            return result
        finally:
            _repeated_polls.release()

    def _poll(self, context: dg.SensorEvaluationContext) -> dg.SensorResult:
        """Poll once. A finished run passes each module once, from the poller to the cursor."""
        instance, airflow = context.instance, self.client.instance
        deadline = self.timing.monotonic() + self.timing.tick_s
        cursor, gap = self._read_cursor(context)
        batch = self._poller.poll(cursor, deadline, context.log)
        new = [run for run in batch.runs if build_fingerprint(run) not in cursor.seen]
        deferred = find_deferred_runs(instance, airflow, new)
        ready = [run for run in new if run.key not in deferred]
        outcomes = self._outcomes.fetch(select_runs(ready, self.limits.reports), deadline)
        events = [*gap, *build_missing_events(instance, self.client, outcomes, self.partitionings)]
        following = advance(cursor, batch, deferred, [outcome.run for outcome in outcomes])
        self._returned, self._returned_for = outcomes, context.cursor
        self._returned_at = self.timing.monotonic()
        no_news = f"No run of Airflow '{airflow}' has ended since the last tick."
        if backlog := len(ready) - len(outcomes):
            more = f" {backlog} more wait for the next tick."
            context.log.info("%d runs were processed.%s", len(outcomes), more)
            no_news += more
        return dg.SensorResult(
            asset_events=events,
            skip_reason=None if events else no_news,
            cursor=following.to_json(),
        )

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
