"""The sensor that reports an instance's finished runs.

Before it reports a run it asks the event log, so that a lost cursor, or a crash between "reported"
and "remembered", reports nothing twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from functools import partial
from types import MappingProxyType

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.records import DagRun
from federation_defs.declaration import ObserveDeclaration, SuccessDeclaration
from federation_defs.errors import AirflowError, UnreachableError
from federation_defs.naming import (
    build_asset_key,
    build_observation_sensor_name,
)
from federation_defs.observation.backoff import Backoff
from federation_defs.observation.choosing import choose, group_by_dag
from federation_defs.observation.cursor import Cursor, build_fingerprint, find_start
from federation_defs.observation.gaps import build_gap, describe_gap
from federation_defs.observation.handover import Handover
from federation_defs.observation.judging import Judging
from federation_defs.observation.looking import Look, Looking
from federation_defs.observation.ownership import find_held
from federation_defs.observation.timely import run_in_time
from federation_defs.observation.turn import look_for_news
from federation_defs.partitioning import Partitioning
from federation_defs.recovery import end_orphaned_runs
from federation_defs.reporting import (
    build_check_evaluation,
    build_materialization,
    fetch_reported,
)
from federation_defs.verdicts import Verdict


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
        self._looking = Looking(client, overlap, limits.runs, limits.seconds / 2)
        self._limits = limits
        self._backoff = Backoff(observe.interval)
        self._handover: Handover | None = None
        self._judging = Judging(client, dags)
        self._lock = threading.Lock()

    def tick(self, context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        """What one evaluation of the sensor gives.

        Raises:
            AirflowError: Something that a person has to mend. While it stays so, and while the
                instance is not reached, most ticks ask nothing and are skipped.
        """
        end_orphaned_runs(context.instance, self._client.instance, context.log)
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
        held = find_held(context.instance, self._client.instance, new)
        keys_held = {_key(run) for run in held}
        waiting |= {_key(run) for run in new}
        free = [run for run in new if _key(run) not in keys_held]

        verdicts = self._judging.judge(choose(free, self._limits.reports), deadline)
        missing = self._build_missing(context.instance, verdicts)
        if missing:
            self._handover = Handover(context.cursor, time.monotonic(), missing[-1][0])
        events = [event for _, of_run in missing for event in of_run]

        left = len(free) - len(verdicts)
        # What came by being held may have left the window: there it would not be found again.
        kept = (set(cursor.held) - {_key(verdict.run) for verdict in verdicts}) & waiting
        dealt = [verdict.run for verdict in verdicts]
        following = _follow(cursor, look, finished, dealt, is_done=not left)
        more = f" {left} more wait for the next tick." if left else ""
        if more:
            context.log.info("%d runs are dealt with.%s", len(verdicts), more)
        return dg.SensorResult(
            asset_events=[*gap, *events],
            skip_reason=None
            if events or gap
            else f"No run of Airflow '{self._client.instance}' ended since.{more}",
            cursor=replace(following, held=tuple(sorted(kept | keys_held))).to_json(),
        )

    def _look(self, since: datetime, deadline: float) -> Look:
        """What changed.

        Raises:
            UnreachableError: It could not be told in time, among others.
        """
        (look,) = run_in_time([lambda: self._looking.look(since)], 1, deadline)
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
        self, instance: dg.DagsterInstance, verdicts: list[Verdict]
    ) -> list[tuple[Verdict, list[AssetEvent]]]:
        """The verdicts of which events are not in the log yet, and those, in the same order."""
        missing: list[tuple[Verdict, list[AssetEvent]]] = []
        logs = {
            dag_id: fetch_reported(instance, self._build_key(dag_id), runs)
            for dag_id, runs in group_by_dag(one.run for one in verdicts).items()
        }
        for verdict in verdicts:
            log, events = logs[verdict.run.dag_id], []
            if log.lacks_materialization(verdict):
                partitioning = self._partitionings.get(verdict.run.dag_id)
                partition = partitioning.find_partition(verdict.run) if partitioning else None
                events.append(build_materialization(self._client, verdict, partition))
            if log.lacks_evaluation(verdict):
                events.append(build_check_evaluation(self._client, verdict))
            if events:
                missing.append((verdict, events))
        return missing

    def _build_key(self, dag_id: str) -> dg.AssetKey:
        return build_asset_key(self._client.instance, dag_id)


def _follow(
    cursor: Cursor, look: Look, finished: list[DagRun], dealt: list[DagRun], *, is_done: bool
) -> Cursor:
    """How far we are now. While something of the look is left, the next is from the same moment."""
    # Not what is no more: a state that was set by hand, and is set back, is news once more.
    present = {build_fingerprint(run) for run in finished}
    seen = (cursor.seen & present) | {build_fingerprint(run) for run in dealt}
    return Cursor(look.following if is_done else cursor.since, seen)


def _key(run: DagRun) -> tuple[str, str]:
    return run.dag_id, run.run_id
