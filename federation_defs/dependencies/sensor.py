"""The sensor that starts DAGs by events that no automation condition sees: failures, slow and late
runs, each upstream run by itself, partitions, and what a function of the user decides.

It reads the event log in the order in which events were stored, all DAGs' at once, and keeps in
its cursor what waits. Each run is requested with a key made of the newest event that led to it, so
that Dagster creates it once, whatever crashes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.dagster_io.code_locations import find_moved_cursor, refuse_second_location
from federation_defs.dagster_io.deployment import share_instance
from federation_defs.dagster_io.event_log import (
    AssetEvent,
    fetch_events,
    fetch_last_position,
)
from federation_defs.declaration import DagDeclaration, InstanceDeclaration, suggest
from federation_defs.dependencies import decider
from federation_defs.dependencies.decider import WINDOW, Cursor, Downstream, Waiting
from federation_defs.dependencies.runs import Memory
from federation_defs.dependencies.starter import Starter
from federation_defs.events import build_drop_observation
from federation_defs.naming import build_job_name, build_sensor_name
from federation_defs.partition_mapping import build_mappings
from federation_defs.timing import Timing

_EVENTS_PER_QUERY = 500
_READ_S = 15.0  # for reading a backlog in one tick; Dagster ends a tick after 60 s
_SETTLE_S = 10.0  # after an event, within which others with smaller positions may become visible


def build_event_sensor(
    client: AirflowClient,
    dags: Mapping[str, DagDeclaration],
    instances: Mapping[str, InstanceDeclaration] = MappingProxyType({}),
    interval_s: int = 1,
    timing: Timing = Timing(),  # noqa: B008 - frozen
) -> dg.SensorDefinition:
    """Build the sensor that starts an instance's DAGs by events.

    Args:
        dags: The declarations of the DAGs that it decides on, by DAG id.
        instances: The declarations of the instances that they depend on, by name.
        interval_s: Below five seconds, it ticks in every loop of the daemon: each 5 s (1.13).
    """
    downstreams = {
        dag_id: Downstream(client.instance, dag_id, dag, build_mappings(dag, instances))
        for dag_id, dag in dags.items()
    }
    return dg.SensorDefinition(
        name=build_sensor_name(client.instance, "events"),
        evaluation_fn=_EventSensor(client, downstreams, timing).tick,
        asset_selection=dg.AssetSelection.assets(*(dag.key for dag in downstreams.values())),
        minimum_interval_seconds=interval_s,
        default_status=dg.DefaultSensorStatus.RUNNING,
        # One line, which Dagster's UI does not break (1.13).
        description=f"Starts DAGs of Airflow {client.instance}. Click on a tick's result to see "
        f"what waits. The job {build_job_name(client.instance, 'drop_waiting')} drops that.",
    )


def build_drop_job(instance: str, dag_ids: Collection[str]) -> dg.JobDefinition:
    """Build the job with which a person drops what waits for runs of a DAG."""
    name = build_job_name(instance, "drop_waiting")

    # No annotation of the module's own: Dagster would look for it here.
    @dg.op(name=f"{name}_of_dag", config_schema={"dag_id": str}, out=dg.Out(dg.Nothing))
    def drop_waiting(context) -> None:
        dag_id = context.op_config["dag_id"]
        if dag_id not in dag_ids:
            raise dg.Failure(
                f"The sensor {build_sensor_name(instance, 'events')} decides on no DAG '{dag_id}'"
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
    """The state of one instance's sensor, as long as the process lasts. It only saves queries.

    Attributes:
        _last: The cursor that the last tick returned; None if it failed.
        _reached: Positions in the event log, and when they were reached.
        _lacking: What partitions that wait lack.
        _shared: The Dagster runs that run them together with their upstreams.
    """

    client: AirflowClient
    dags: Mapping[str, Downstream]
    timing: Timing
    _last: str | None = None
    _reached: deque[tuple[float, int]] = field(default_factory=deque)
    _lacking: Memory = field(default_factory=Memory)
    _shared: Memory = field(default_factory=Memory)

    def tick(self, context: dg.SensorEvaluationContext) -> dg.SensorResult:
        """Evaluate the sensor.

        Raises:
            DeclaredTwiceError: Another code location starts the DAGs of the instance.
        """
        origin = context.code_location_origin
        location = origin.location_name if origin else None
        with share_instance(context) as instance:
            stored, airflow = context.cursor, self.client.instance
            last, self._last = self._last, None
            if stored is None and location:
                refuse_second_location(instance, airflow, location, self.timing)
                name = build_sensor_name(airflow, "events")
                stored = find_moved_cursor(instance, name, location, self.timing)
            # The last tick failed, or was another process's: of this location, or of one that this
            # one was refused for.
            if may_repeat := stored != last:
                self._reached.clear()
            before = decider.load(stored, self.dags) or Cursor(fetch_last_position(instance))
            cursor, events, is_whole = self._read(instance, before)
            if location and (events or before.dags):
                refuse_second_location(instance, airflow, location, self.timing)
            starter = Starter(self.client, instance, self._lacking, self._shared, self.timing)
            states: dict[str, Waiting] = {}
            for dag_id, dag in self.dags.items():
                joined = {key for key, mark in dag.marks.items() if mark not in before.known}
                if joined and is_whole:
                    starter.announce(dag, joined)
                new = (event for event in events.get(dag_id, ()) if event.key not in joined)
                waiting = before.dags.get(dag_id, {})
                states[dag_id] = _add_events(starter, dag, waiting, new, may_repeat=may_repeat)
                starter.start(dag, states[dag_id])
            known = frozenset(mark for dag in self.dags.values() for mark in dag.marks.values())
            # Upstreams that are new count when all that has happened is read.
            known = known if is_whole else known & before.known
            self._last = decider.dump(replace(cursor, dags=states, known=known))
            return starter.build_result(self._last)

    def _read(
        self, instance: dg.DagsterInstance, cursor: Cursor
    ) -> tuple[Cursor, dict[str, list[AssetEvent]], bool]:
        """Read what has happened, and return the cursor after that, the new events that matter to
        each DAG, in order, and whether these are all."""
        concerned: dict[dg.AssetKey, list[str]] = {}
        for dag_id, dag in self.dags.items():
            for key in {dag.key, *dag.marks}:
                concerned.setdefault(key, []).append(dag_id)
        found: dict[str, list[AssetEvent]] = {}
        after = self._find_start(cursor)
        until = self.timing.monotonic() + _READ_S
        while True:
            read, is_whole = fetch_events(instance, after, _EVENTS_PER_QUERY)
            for event in read:
                is_new = event.position not in cursor.seen
                for dag_id in concerned.get(event.key, ()) if is_new else ():
                    found.setdefault(dag_id, []).append(event)
            after = max([after, *(event.position for event in read)])
            cursor = cursor.advance(after, {event.position for event in read})
            if is_whole or self.timing.monotonic() > until:
                return cursor, found, is_whole

    def _find_start(self, cursor: Cursor) -> int:
        """Find the position after which to read: that of some seconds ago, as events with smaller
        positions may have become visible since."""
        now = self.timing.monotonic()
        self._reached.append((now, cursor.position))
        while len(self._reached) > 1 and now - self._reached[1][0] >= _SETTLE_S:
            self._reached.popleft()
        reached_at, position = self._reached[0]
        start = position if now - reached_at >= _SETTLE_S else 0
        return max(start, cursor.position - WINDOW, 0)


def _add_events(
    starter: Starter,
    dag: Downstream,
    waiting: Waiting,
    events: Iterable[AssetEvent],
    *,
    may_repeat: bool,
) -> Waiting:
    """Return what waits after some events.

    Args:
        may_repeat: Runs may have been requested by a tick whose cursor was not stored, and the DAG
            may have been declared otherwise then.
    """
    if may_repeat:
        before, waiting = waiting, decider.join(dag, waiting)
        starter.note_gone(dag, [each for each in before if each not in waiting])
        if dag.trigger.only_if:  # it may have passed over what comes first
            starter.drop_requested(dag, waiting, set(waiting))
    for event in events:
        if event.state == "drop" and event.key == dag.key:
            waiting.clear()
            continue
        concerned = decider.match_dependencies(dag, event)
        if may_repeat and dag.trigger.runs == "latest":
            starter.drop_requested(dag, waiting, {partition for _, partition in concerned})
        decider.add_event(dag, concerned, waiting, event)
    return waiting
