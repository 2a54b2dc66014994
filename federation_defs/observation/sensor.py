"""The sensor that reports an instance's finished runs.

Before it reports a run it asks the event log, so that a lost cursor, or a crash between "reported"
and "remembered", reports nothing twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from functools import partial
from types import MappingProxyType

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun
from federation_defs.dagster_io.event_log import fetch_reported_runs
from federation_defs.dagster_io.heartbeat import fail_orphaned_runs
from federation_defs.declaration import ObserveDeclaration, SuccessDeclaration
from federation_defs.errors import AirflowError, UnreachableError
from federation_defs.events import build_check_evaluation, build_materialization
from federation_defs.naming import build_asset_key, build_observation_sensor_name
from federation_defs.observation.batch import (
    Handover,
    OutcomeFetcher,
    build_gap,
    choose,
    describe_gap,
    group_by_dag,
)
from federation_defs.observation.cursor import Cursor, build_fingerprint, find_start
from federation_defs.observation.ownership import find_deferred_runs
from federation_defs.observation.poller import Batch, Poller
from federation_defs.outcome import Outcome
from federation_defs.partitions import Partitioning
from federation_defs.threads import run_calls

# The daemon takes a turn every 5 s at best (1.13). A tick whose last look begins by then is over
# when the next turn comes. So late, for the asset daemon, which decides what follows, has turns of
# its own, often at the same moment as these: what is seen at their beginning waits for all of 5 s.
LAST_LOOK_S = 4.1

# Ticks of several instances that do so at a time, of the half a dozen threads of a code server.
_may_linger = threading.BoundedSemaphore(3)


def look_for_news(look: Callable[[], dg.SensorResult], interval_s: float) -> dg.SensorResult:
    """What one look gives; if that is no event, what the next ones of this turn do."""
    began = time.monotonic()
    result = look()
    if interval_s > LAST_LOOK_S or not _may_linger.acquire(blocking=False):
        return result
    try:
        offset_s = interval_s
        while not result.asset_events and offset_s <= LAST_LOOK_S:
            time.sleep(max(0.0, began + offset_s - time.monotonic()))
            result = look()
            offset_s += interval_s
        return result
    finally:
        _may_linger.release()


# Who is away is soon back; who refuses us waits for a person, and may lock the account.
MAX_WAIT_S = 60.0

MAX_WAIT_WHEN_REFUSED_S = 300.0


class Backoff:
    """When to ask again: at once after the first failure, then less and less often.

    Args:
        interval_s: Between two looks when all is well.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._failures = 0
        self._again_at = 0.0
        self._since = datetime.now(timezone.utc)
        self._error: AirflowError | None = None

    def begin(self, error: AirflowError) -> None:
        """Notes a failure."""
        if self._failures == 0:
            self._since = datetime.now(timezone.utc)
        self._failures += 1
        limit = MAX_WAIT_S if isinstance(error, UnreachableError) else MAX_WAIT_WHEN_REFUSED_S
        wait_s = min(limit, self._interval_s * (2 ** min(self._failures - 1, 20) - 1))
        self._again_at = time.monotonic() + wait_s
        self._error = error

    def end(self) -> None:
        self._failures, self._error = 0, None

    def explain(self) -> str | None:
        """Why nothing is asked now; None if something may be."""
        left_s = self._again_at - time.monotonic()
        if self._error is None or left_s <= 0:
            return None
        return f"{self._error} (Since {self._since:%F %T} UTC; asked again in {left_s:.0f} s.)"


@dataclass(frozen=True)
class Limits:
    """How much one tick does; the next goes on.

    Attributes:
        runs: That a look reads of a long history.
        reports: Runs that are reported. The daemon writes some 100 events a second (SQLite), two
            of them per run.
        seconds: Of the 60 that Dagster gives a sensor. Half of them are for the look, the rest for
            what is asked about single runs.
    """

    runs: int = 2000
    reports: int = 1000
    seconds: float = 40.0


AssetEvent = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation

# As long as catching up takes, at the least.
MIN_GAP = timedelta(hours=1)


def build_observation_sensor(
    client: AirflowClient,
    dags: Mapping[str, SuccessDeclaration | None],
    observe: ObserveDeclaration,
    limits: Limits = Limits(),
    partitionings: Mapping[str, Partitioning] = MappingProxyType({}),
) -> dg.SensorDefinition:
    """The sensor that reports an instance's finished runs.

    Args:
        dags: The DAGs that are assets, by id, and what decides on the success of their runs. Runs
            of others are passed over.
        partitionings: Of those DAGs that have partitions.
    """
    observer = _Observer(client, dags, observe, limits, partitionings)

    @dg.sensor(
        name=build_observation_sensor_name(client.instance),
        # One less: the daemon would pass over every other turn of a sensor that is due in exactly
        # its 5 s.
        minimum_interval_seconds=max(1, round(observe.interval) - 1),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Reports the finished DAG runs of Airflow {client.instance}.",
    )
    def observation(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        return observer.tick(context)

    return observation


class _Observer:
    """One instance, as its sensor sees it.

    What is kept here is for the good of this process only; all that matters is in the cursor and
    in the event log.
    """

    def __init__(
        self,
        client: AirflowClient,
        dags: Mapping[str, SuccessDeclaration | None],
        observe: ObserveDeclaration,
        limits: Limits,
        partitionings: Mapping[str, Partitioning],
    ) -> None:
        self._client = client
        self._dags = dags
        self._partitionings = partitionings
        self._interval_s = observe.interval
        self._lookback = timedelta(seconds=observe.lookback)
        self._lookback_on_first_start = timedelta(seconds=observe.lookback_on_first_start)
        overlap = timedelta(seconds=observe.overlap)
        self._poller = Poller(client, overlap, limits.runs, limits.seconds / 2)
        self._limits = limits
        self._backoff = Backoff(observe.interval)
        self._handover: Handover | None = None
        self._outcome_fetcher = OutcomeFetcher(client, dags)
        self._lock = threading.Lock()

    def tick(self, context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        """What one evaluation of the sensor gives.

        Raises:
            AirflowError: Something that a person has to mend. While it stays so, and while the
                instance is not reached, most ticks ask nothing and are skipped.
        """
        fail_orphaned_runs(context.instance, self._client.instance, context.log)
        with self._lock:
            return self._look_if_due(context)

    def _look_if_due(self, context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        if (waiting := self._backoff.explain()) is not None:
            return dg.SkipReason(waiting)
        if self._is_being_stored(context):
            return dg.SkipReason("The events of the tick before are still being stored.")
        try:
            result = look_for_news(partial(self._observe, context), self._interval_s)
        except AirflowError as error:
            # The cursor stays where it is: what ends meanwhile is reported when it is back.
            self._backoff.begin(error)
            if isinstance(error, UnreachableError):
                return dg.SkipReason(self._backoff.explain() or str(error))
            raise
        self._backoff.end()
        return result

    def _is_being_stored(self, context: dg.SensorEvaluationContext) -> bool:
        """Whether another tick, which overlaps this one, found what this one would find."""
        handover = self._handover
        if handover is None or not handover.may_go_on(context.cursor):
            return False
        return bool(self._build_missing(context.instance, [handover.last]))

    def _observe(self, context: dg.SensorEvaluationContext) -> dg.SensorResult:
        deadline = time.monotonic() + self._limits.seconds
        cursor, gap = self._read_cursor(context)
        look = self._look(cursor.since, deadline)
        runs, waiting = self._add_held(look.runs, cursor.held, context)
        finished = [run for run in runs if run.is_finished and run.dag_id in self._dags]
        new = [run for run in finished if build_fingerprint(run) not in cursor.seen]
        held = find_deferred_runs(context.instance, self._client.instance, new)
        keys_held = {_key(run) for run in held}
        waiting |= {_key(run) for run in new}
        free = [run for run in new if _key(run) not in keys_held]

        outcomes = self._outcome_fetcher.judge(choose(free, self._limits.reports), deadline)
        missing = self._build_missing(context.instance, outcomes)
        if missing:
            self._handover = Handover(context.cursor, time.monotonic(), missing[-1][0])
        events = [event for _, of_run in missing for event in of_run]

        left = len(free) - len(outcomes)
        # What came by being held may have left the window: there it would not be found again.
        kept = (set(cursor.held) - {_key(outcome.run) for outcome in outcomes}) & waiting
        dealt = [outcome.run for outcome in outcomes]
        following = _follow(cursor, look, finished, dealt, is_done=not left)
        more = f" {left} more wait for the next tick." if left else ""
        if more:
            context.log.info("%d runs are dealt with.%s", len(outcomes), more)
        return dg.SensorResult(
            asset_events=[*gap, *events],
            skip_reason=None
            if events or gap
            else f"No run of Airflow '{self._client.instance}' ended since.{more}",
            cursor=replace(following, held=tuple(sorted(kept | keys_held))).to_json(),
        )

    def _look(self, since: datetime, deadline: float) -> Batch:
        """What changed.

        Raises:
            UnreachableError: It could not be told in time, among others.
        """
        (look,) = run_calls([lambda: self._poller.look(since)], 1, deadline)
        if look is None:
            reason = f"no whole answer within {self._limits.seconds:.0f} s"
            raise UnreachableError(self._client.instance, self._client.url, reason, is_late=True)
        return look

    def _read_cursor(
        self, context: dg.SensorEvaluationContext
    ) -> tuple[Cursor, list[dg.AssetObservation]]:
        """Where to begin, and what tells of the gap before it if the outage was too long."""
        cursor = Cursor.from_json(context.cursor)
        if cursor is None:
            keys = [self._build_key(dag_id) for dag_id in self._dags]
            since = find_start(
                context.instance, keys, self._lookback, self._lookback_on_first_start
            )
            context.log.info("There is no cursor to go on from. Looking back to %s.", since)
            return Cursor(since), []
        oldest = datetime.now(timezone.utc) - self._lookback
        # Time goes on while we catch up: that is no gap.
        if cursor.since >= oldest - max(self._lookback / 7, MIN_GAP):
            return cursor, []
        gap = describe_gap(self._client.instance, cursor.since, oldest)
        context.log.warning(gap)
        keys = [self._build_key(dag_id) for dag_id in self._dags]
        return replace(cursor, since=oldest), build_gap(gap, keys, cursor.since, oldest)

    def _add_held(
        self,
        runs: list[DagRun],
        held: Collection[tuple[str, str]],
        context: dg.SensorEvaluationContext,
    ) -> tuple[list[DagRun], set[tuple[str, str]]]:
        """The changed runs, and those held that have left the window meanwhile; and which of these
        can't be asked for now."""
        changed = {_key(run): run for run in runs}
        gone = [key for key in held if key not in changed and key[0] in self._dags]
        try:
            fetched = self._client.fetch_runs(gone)
        except UnreachableError:
            raise
        except AirflowError as error:
            context.log.warning("Runs that are held can't be looked at: %s", error)
            return [*changed.values()], set(gone)
        return [*changed.values(), *fetched.values()], set()

    def _build_missing(
        self, instance: dg.DagsterInstance, outcomes: list[Outcome]
    ) -> list[tuple[Outcome, list[AssetEvent]]]:
        """The verdicts of which events are not in the log yet, and those, in the same order."""
        missing: list[tuple[Outcome, list[AssetEvent]]] = []
        logs = {
            dag_id: fetch_reported_runs(instance, self._build_key(dag_id), runs)
            for dag_id, runs in group_by_dag(one.run for one in outcomes).items()
        }
        for outcome in outcomes:
            log, events = logs[outcome.run.dag_id], []
            if log.lacks_materialization_of(outcome):
                partitioning = self._partitionings.get(outcome.run.dag_id)
                partition = partitioning.find_partition(outcome.run) if partitioning else None
                events.append(build_materialization(self._client, outcome, partition))
            if log.lacks_evaluation_of(outcome):
                events.append(build_check_evaluation(self._client, outcome))
            if events:
                missing.append((outcome, events))
        return missing

    def _build_key(self, dag_id: str) -> dg.AssetKey:
        return build_asset_key(self._client.instance, dag_id)


def _follow(
    cursor: Cursor, look: Batch, finished: list[DagRun], dealt: list[DagRun], *, is_done: bool
) -> Cursor:
    """How far we are now. While something of the look is left, the next is from the same moment."""
    # Not what is no more: a state that was set by hand, and is set back, is news once more.
    present = {build_fingerprint(run) for run in finished}
    seen = (cursor.seen & present) | {build_fingerprint(run) for run in dealt}
    return Cursor(look.following if is_done else cursor.since, seen)


def _key(run: DagRun) -> tuple[str, str]:
    return run.dag_id, run.run_id
