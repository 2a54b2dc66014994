"""The sensor that starts DAGs by events that no automation condition sees: failures, slow and late
runs, each upstream run by itself, partitions, and what a function of the user decides.

It reads the event log in the order in which events were stored, all DAGs' at once, and keeps in
its cursor what waits. Each run is requested with a key made of the newest event that led to it, so
that Dagster creates it once, whatever crashes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
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
from federation_defs.declaration import DagDeclaration, suggest
from federation_defs.dependencies import decider
from federation_defs.dependencies.decider import WINDOW, Cursor, Waiting
from federation_defs.dependencies.starter import Memory, Starter
from federation_defs.events import build_drop_observation, build_start_observation
from federation_defs.naming import build_asset_key, build_job_name, build_sensor_name
from federation_defs.outcome import join_names
from federation_defs.partition_mapping import PartitionMapping
from federation_defs.timing import Timing

_EVENTS_PER_QUERY = 500
_READ_S = 15.0  # for reading a backlog in one tick; Dagster ends a tick after 60 s
_SETTLE_S = 10.0  # after an event, within which others with smaller positions may become visible


def build_event_sensor(
    client: AirflowClient,
    dags: Mapping[str, DagDeclaration],
    mappings: Mapping[str, Sequence[PartitionMapping]] = MappingProxyType({}),
    interval_s: int = 1,
    timing: Timing = Timing(),  # noqa: B008 - frozen
) -> dg.SensorDefinition:
    """Build the sensor that starts an instance's DAGs by events.

    Args:
        dags: The declarations of the DAGs that it decides on, by DAG id.
        mappings: Of those with partitions, how these depend on each of the dependencies.
        interval_s: Below five seconds, it ticks in every loop of the daemon: each 5 s (1.13).
    """
    keys = [build_asset_key(client.instance, dag_id) for dag_id in dags]
    return dg.SensorDefinition(
        name=build_sensor_name(client.instance, "events"),
        evaluation_fn=_EventSensor(client, dags, mappings, timing).tick,
        asset_selection=dg.AssetSelection.assets(*keys),
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
        _memory: What is known of partitions that wait.
    """

    client: AirflowClient
    dags: Mapping[str, DagDeclaration]
    mappings: Mapping[str, Sequence[PartitionMapping]]
    timing: Timing
    _last: str | None = None
    _reached: deque[tuple[float, int]] = field(default_factory=deque)
    _memory: Memory = field(default_factory=Memory)

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
            cursor = decider.load(stored) or Cursor(fetch_last_position(instance))
            joined = self._find_joined(cursor)
            cursor, events, is_whole = self._read(instance, cursor, self._find_start(cursor))
            if location and (events or cursor.dags):
                refuse_second_location(instance, airflow, location, self.timing)
            starter = Starter(self.client, instance, self._memory, self.timing)
            states: dict[str, Waiting] = {}
            for dag_id, dag in self.dags.items():
                key = build_asset_key(airflow, dag_id)
                mappings = self.mappings.get(dag_id, ())
                waiting = dict(cursor.dags.get(dag_id, {}))
                history = set(joined[dag_id].values())
                if may_repeat:
                    kept = decider.join(dag, mappings, waiting)
                    starter.note_dropped(dag_id, [each for each in waiting if each not in kept])
                    waiting = kept
                    if dag.trigger.only_if:  # it may have passed over what comes first
                        starter.settle_requested(dag_id, dag, waiting, set(waiting))
                for event in events.get(key, ()):
                    if event.state == "drop" and event.key == key:
                        waiting.clear()
                        continue
                    if event.key in history:
                        continue
                    concerned = decider.find_concerned(dag, mappings, event)
                    if may_repeat and dag.trigger.runs == "latest":
                        partitions = {partition for _, partition in concerned}
                        starter.settle_requested(dag_id, dag, waiting, partitions)
                    decider.take_in(dag, concerned, waiting, event)
                starter.start(dag_id, dag, mappings, waiting)
                states[dag_id] = waiting
            left = set[str]() if is_whole else set(chain.from_iterable(joined.values()))
            known = frozenset(chain.from_iterable(self._marks.values())) - left
            self._last = decider.dump(replace(cursor, dags=states, known=known))
            result = starter.build_result(self._last)
            return self._tell_joined(result, joined) if is_whole else result

    @cached_property
    def _marks(self) -> dict[str, dict[str, dg.AssetKey]]:
        """The upstreams of each DAG by their marks."""
        return {
            dag_id: {decider.build_mark(dag_id, edge.key): edge.key for edge in dag.depends_on}
            for dag_id, dag in self.dags.items()
        }

    def _find_joined(self, cursor: Cursor) -> dict[str, dict[str, dg.AssetKey]]:
        """Find the upstreams of each DAG that count when all that has happened is read."""
        return {
            dag_id: {
                mark: key
                for mark, key in marks.items()
                if not decider.is_known(self.dags[dag_id], mark, cursor)
            }
            for dag_id, marks in self._marks.items()
        }

    def _tell_joined(
        self, result: dg.SensorResult, joined: Mapping[str, Mapping[str, dg.AssetKey]]
    ) -> dg.SensorResult:
        """Tell, on the assets of DAGs and in the tick, which dependencies count from now on."""
        names = {
            dag_id: [
                f"{edge.name} ({edge.state})"
                for edge in self.dags[dag_id].depends_on
                if edge.key in keys.values()
            ]
            for dag_id, keys in joined.items()
            if keys
        }
        if not names:
            return result
        told = [build_start_observation(self.client.instance, *each) for each in names.items()]
        reason = dg.SkipReason(f"What happens from now on counts for {join_names(list(names))}.")
        return dg.SensorResult(
            run_requests=result.run_requests,
            asset_events=[*told, *result.asset_events],
            skip_reason=None if result.run_requests else reason,
            cursor=result.cursor,
        )

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

    def _read(
        self, instance: dg.DagsterInstance, cursor: Cursor, after: int
    ) -> tuple[Cursor, dict[dg.AssetKey, list[AssetEvent]], bool]:
        """Read what has happened, and return the cursor after that, the new events that matter to
        each DAG, in order, and whether these are all."""
        concerned: dict[dg.AssetKey, set[dg.AssetKey]] = {}
        for dag_id, dag in self.dags.items():
            own = build_asset_key(self.client.instance, dag_id)
            for key in {own, *(edge.key for edge in dag.depends_on)}:
                concerned.setdefault(key, set()).add(own)
        found: dict[dg.AssetKey, list[AssetEvent]] = {}
        until = self.timing.monotonic() + _READ_S
        while True:
            read, is_whole = fetch_events(instance, after, _EVENTS_PER_QUERY)
            for event in read:
                is_new = event.position not in cursor.seen
                for own in concerned.get(event.key, ()) if is_new else ():
                    found.setdefault(own, []).append(event)
            after = max([after, *(event.position for event in read)])
            cursor = cursor.advance(after, {event.position for event in read})
            if is_whole or self.timing.monotonic() > until:
                return cursor, found, is_whole
