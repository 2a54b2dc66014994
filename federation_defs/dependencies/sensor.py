"""The sensor that starts DAGs by events that no automation condition sees: failures, slow and late
runs, each upstream run by itself, partitions, and what a function of the user decides.

It reads the event log in the order in which events were stored, for all DAGs at once, and keeps the
events that wait in its cursor. Each run is requested with a key made of the newest event that led
to it. By this key, Dagster creates the run only once, even after a crash.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.dagster_io.code_locations import find_moved_cursor, refuse_second_location
from federation_defs.dagster_io.deployment import share_instance
from federation_defs.dagster_io.event_log import AssetEvent, fetch_events, fetch_last_position
from federation_defs.dagster_io.long_poll import long_poll
from federation_defs.declaration import DagDeclaration, InstanceDeclaration, suggest
from federation_defs.dependencies import decider
from federation_defs.dependencies.decider import REREAD_IN_BACKLOG, Cursor, Downstream, Waiting
from federation_defs.dependencies.run_lookup import DueCache, Hang
from federation_defs.dependencies.starter import Starter, drop_requested
from federation_defs.events import build_drop_observation
from federation_defs.naming import build_job_name, build_sensor_name
from federation_defs.partition_mapping import build_mappings
from federation_defs.timing import Timing

_EVENTS_PER_QUERY = 500


def build_event_sensor(
    client: AirflowClient,
    dags: Mapping[str, DagDeclaration],
    instances: Mapping[str, InstanceDeclaration] = MappingProxyType({}),
    interval_s: int = 1,
    pause: str = "",
    timing: Timing = Timing(),  # noqa: B008 - frozen
) -> dg.SensorDefinition:
    """Build the sensor that starts an instance's DAGs by events.

    Args:
        dags: The declarations of the DAGs that it decides on, by DAG id.
        instances: The declarations of the instances that they depend on, by name.
        interval_s: Seconds between ticks. Below 5, the sensor ticks in each loop of Dagster's
            daemon, which takes 5 s (1.13).
        pause: Why the sensor does nothing and keeps its cursor; empty if it works.
    """
    downstreams = {
        dag_id: Downstream(client.instance, dag_id, dag, build_mappings(dag, instances))
        for dag_id, dag in dags.items()
    }
    sensor = _EventSensor(client, downstreams, timing, max(interval_s, timing.read_again_s))
    skip = dg.SkipReason(f"{pause} Reload the code location once it can be read.")
    return dg.SensorDefinition(
        name=build_sensor_name(client.instance, "events"),
        evaluation_fn=(lambda: skip) if pause else sensor.tick,
        asset_selection=dg.AssetSelection.assets(*(dag.key for dag in downstreams.values())),
        minimum_interval_seconds=interval_s,
        default_status=dg.DefaultSensorStatus.RUNNING,
        # One line, which Dagster's UI does not break (1.13).
        description=f"Starts DAGs of Airflow {client.instance}. Click on a tick's result to see "
        f"which events wait. The job {build_job_name(client.instance, 'drop_waiting')} drops them.",
    )


def build_drop_job(instance: str, dag_ids: Collection[str]) -> dg.JobDefinition:
    """Build the job with which a person drops the events that wait to start a DAG."""
    name = build_job_name(instance, "drop_waiting")

    # `context` has no annotation: in this module it would be text, which Dagster refuses.
    @dg.op(name=f"{name}_of_dag", config_schema={"dag_id": str}, out=dg.Out(dg.Nothing))
    def drop_waiting(context) -> None:
        dag_id = context.op_config["dag_id"]
        if dag_id not in dag_ids:
            raise dg.Failure(
                f"The sensor {build_sensor_name(instance, 'events')} starts no DAG '{dag_id}'"
                f"{suggest(dag_id, dag_ids)}; nothing was dropped.",
                allow_retries=False,
            )
        context.log_event(build_drop_observation(instance, dag_id))

    @dg.job(
        name=name,
        description=f"Drops the events that wait to start a DAG of Airflow {instance}.",
        executor_def=dg.in_process_executor,
    )
    def job() -> None:
        drop_waiting()

    return job


@dataclass
class _EventSensor:
    """One instance's sensor, with its state for as long as the process lasts. Losing the state only
    costs queries. Times are in seconds of the monotonic clock.

    Attributes:
        read_again_s: The seconds between two readings within a tick.
        _last: The cursor that the last tick returned; None if it failed or did not read all events.
        _reached: Positions in the event log, and when they were reached at the latest.
        _read_at: When the last tick began to read.
        _lacking: What the partitions that wait lack.
        _shared: The Dagster runs that run DAGs together with their upstreams.
        _hang: Whether the Airflow hangs.
        _begin: The DAG with which the next tick begins to start runs; None for the first one.
    """

    client: AirflowClient
    dags: Mapping[str, Downstream]
    timing: Timing
    read_again_s: float
    _last: str | None = None
    _reached: deque[tuple[float, int]] = field(default_factory=deque)
    _read_at: float = -math.inf
    _lacking: DueCache = field(default_factory=DueCache)
    _shared: DueCache = field(default_factory=DueCache)
    _hang: Hang = field(default_factory=Hang)
    _begin: str | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tick(self, context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        """Evaluate the sensor.

        Raises:
            DeclaredTwiceError: Another code location starts the DAGs of the instance.
        """
        with share_instance(context) as instance:
            read = partial(self._read_and_start, context, instance)
            return long_poll(context, instance, self.timing, read)

    def _read_and_start(
        self, context: dg.SensorEvaluationContext, instance: dg.DagsterInstance, share: float
    ) -> tuple[dg.SensorResult | dg.SkipReason, float | None]:
        """Return the tick's result so far, and the seconds until the next reading; None if the tick
        ends now: there is news, something waits to start, or another tick is active.

        Args:
            share: The share of the usual times that reading, and starting runs, may take.
        """
        # Dagster gave up a tick that hangs, or a person evaluates the sensor in the UI meanwhile.
        if not self._lock.acquire(blocking=False):
            return dg.SkipReason("Another tick of this sensor is still running."), None
        try:
            return self._evaluate(context, instance, share)
        finally:
            self._lock.release()

    def _evaluate(
        self, context: dg.SensorEvaluationContext, instance: dg.DagsterInstance, share: float
    ) -> tuple[dg.SensorResult, float | None]:
        origin = context.code_location_origin
        location = origin.location_name if origin else None
        stored, airflow = context.cursor, self.client.instance
        last, self._last = self._last, None
        if stored is None and location:
            refuse_second_location(instance, airflow, location, self.timing)
            name = build_sensor_name(airflow, "events")
            stored = find_moved_cursor(instance, name, location, self.timing)
        # The last tick failed, or ran in another process, of this code location or another one.
        if may_repeat := stored != last:
            self._reached.clear()
            self._lacking = DueCache()
        before = decider.load(stored, self.dags)
        if before is None:
            position = fetch_last_position(instance)
            before = Cursor(position, position)
        if before.dags or before.dropped:
            refuse_second_location(instance, airflow, location, self.timing)
        until = self.timing.monotonic() + share * self.timing.read_events_s
        cursor, is_whole = self._read(instance, location, before, until, may_repeat=may_repeat)
        caches = self._lacking, self._shared, self._hang
        until = self.timing.monotonic() + share * self.timing.start_dags_s
        starter = Starter(self.client, instance, *caches, self.timing, until)
        for dag_id, events in before.dropped.items():
            starter.report_dropped(dag_id, events)
        followed = {each for dag in self.dags.values() for each in dag.fingerprints.values()}
        if is_whole:
            for dag in self.dags.values():
                starter.report_new_upstreams(dag, before.followed)
            self._start(starter, cursor)
        else:
            # New upstreams count, and runs begin, only after all events are read: events that are
            # read later may have led to these runs, in a tick whose cursor was not stored.
            followed &= before.followed
            starter.report_unread()
        text = decider.dump(replace(cursor, followed=frozenset(followed)))
        self._last = text if is_whole else None
        is_news = text != context.cursor or not starter.is_idle
        return starter.build_result(text), None if is_news else self.read_again_s

    def _read(
        self,
        instance: dg.DagsterInstance,
        location: str | None,
        before: Cursor,
        deadline: float,
        *,
        may_repeat: bool,
    ) -> tuple[Cursor, bool]:
        """Read new events, and add them to those that wait. Return the cursor after that, and
        whether all events were read.

        Args:
            deadline: In seconds of the monotonic clock.
            may_repeat: Whether a tick whose cursor was not stored may have requested runs.
        """
        downstreams: dict[dg.AssetKey, list[Downstream]] = {}
        for dag in self.dags.values():
            followed = [key for key, each in dag.fingerprints.items() if each in before.followed]
            for key in {dag.key, *followed}:
                downstreams.setdefault(key, []).append(dag)
        waiting = {dag_id: before.dags.get(dag_id, {}) for dag_id in self.dags}
        after = self._find_start(before)
        cursor = replace(before, start=after, dags=waiting)
        is_whole = False
        while not is_whole:
            events, is_whole = fetch_events(instance, after, _EVENTS_PER_QUERY)
            if any(each.key in downstreams and each.position not in cursor.seen for each in events):
                refuse_second_location(instance, self.client.instance, location, self.timing)
            read: list[int] = []
            for event in events:
                read.append(event.position)
                if event.key not in downstreams or event.position in cursor.seen:
                    continue
                _add_event(instance, downstreams[event.key], waiting, event, may_repeat=may_repeat)
                if self.timing.find_rest_s(deadline) <= 0:
                    break
            is_whole = is_whole and len(read) == len(events)
            after = max([after, *read])
            cursor = cursor.advance(after, read)
            if self.timing.find_rest_s(deadline) <= 0:
                break
        if not is_whole and after <= before.position:  # there was only time to read again
            cursor = cursor.advance(after, (), REREAD_IN_BACKLOG)
        if may_repeat and is_whole:
            dags = [(dag, waiting[dag_id], waiting[dag_id]) for dag_id, dag in self.dags.items()]
            drop_requested(instance, dags)
        return cursor, is_whole

    def _start(self, starter: Starter, cursor: Cursor) -> None:
        """Start runs that are due. DAGs without `only_if` come first, as functions may take all the
        time. The next tick begins with the first DAG for which this one has no time."""
        dag_ids = sorted(self.dags, key=lambda each: bool(self.dags[each].trigger.only_if))
        begin, self._begin = self._begin, None
        if begin is not None:
            dag_ids = dag_ids[dag_ids.index(begin) :] + dag_ids[: dag_ids.index(begin)]
        for dag_id in dag_ids:
            if self._begin is None and starter.is_over:
                self._begin = dag_id
            starter.start(self.dags[dag_id], cursor.dags[dag_id])

    def _find_start(self, cursor: Cursor) -> int:
        """Return the position after which to read.

        Events up to a position become visible within `timing.late_event_s` after it was reached. So
        the last tick has read all events up to a position that was reached this long before it.
        """
        now, start = self.timing.monotonic(), cursor.start
        self._reached.append((now, cursor.position))
        reached_by, self._read_at = self._read_at - self.timing.late_event_s, now
        while self._reached[0][0] <= reached_by:
            start = max(start, self._reached.popleft()[1])
        return start


def _add_event(
    instance: dg.DagsterInstance,
    dags: Sequence[Downstream],
    waiting: Mapping[str, Waiting],
    event: AssetEvent,
    *,
    may_repeat: bool,
) -> None:
    """Add an event to those that wait. If it is a person's request to drop a DAG's, drop these."""
    matches = [(dag, decider.match_dependencies(dag, event)) for dag in dags]
    if may_repeat:
        latches = [
            (dag, waiting[dag.dag_id], {partition for _, partition in found})
            for dag, found in matches
            if dag.trigger.runs == "latest"
        ]
        drop_requested(instance, latches)
    for dag, found in matches:
        if event.key == dag.key and event.state == "drop":
            decider.drop_before(waiting[dag.dag_id], event.position)
        decider.add_event(dag, found, waiting[dag.dag_id], event)
