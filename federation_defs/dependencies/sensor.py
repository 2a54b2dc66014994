"""The sensor that starts DAGs by events that no automation condition sees: failures, slow and late
runs, each upstream run by itself, and what a function of the user decides.

It reads the event log in the order in which events were stored, and keeps in its cursor which of
them are past. Each run is requested with a key made of the newest event that led to it, so that
Dagster creates it once, whatever crashes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.dagster_io.deployment import share_instance
from federation_defs.dagster_io.event_log import (
    AssetEvent,
    fetch_last_materializations,
    fetch_last_observation,
    fetch_materialized,
    fetch_observed,
)
from federation_defs.declaration import DagDeclaration, suggest
from federation_defs.dependencies import decider
from federation_defs.dependencies.decider import DagState
from federation_defs.dependencies.starter import Starter
from federation_defs.events import build_drop_observation
from federation_defs.naming import build_asset_key, build_job_name, build_sensor_name
from federation_defs.outcome import join_names
from federation_defs.timing import Timing

_EVENTS_PER_QUERY = 100
_SETTLE_S = 60.0  # after an event, within which others with smaller positions may become visible

_Positions = Mapping[dg.AssetKey, int]


def build_event_sensor(
    client: AirflowClient,
    dags: Mapping[str, DagDeclaration],
    interval_s: int = 1,
    timing: Timing = Timing(),  # noqa: B008 - frozen
) -> dg.SensorDefinition:
    """Build the sensor that starts an instance's DAGs by events.

    Args:
        dags: The declarations of the DAGs that it decides on, by DAG id.
        interval_s: Below five seconds, it ticks in every loop of the daemon: each 5 s (1.13).
    """
    keys = [build_asset_key(client.instance, dag_id) for dag_id in dags]
    return dg.SensorDefinition(
        name=build_sensor_name(client.instance, "events"),
        evaluation_fn=_EventSensor(client, dags, timing).tick,
        asset_selection=dg.AssetSelection.assets(*keys),
        minimum_interval_seconds=interval_s,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Starts DAGs of Airflow {client.instance} by events that automation "
        f"conditions don't see: {join_names(sorted(dags))}.",
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
        _changed: By asset, the position of its last materialization, and until when it is read.
        _backlogs: DAGs for which more waits than was started.
        _cursor: That the last tick returned.
    """

    client: AirflowClient
    dags: Mapping[str, DagDeclaration]
    timing: Timing
    _changed: dict[dg.AssetKey, tuple[int, float]] = field(default_factory=dict)
    _backlogs: set[str] = field(default_factory=set)
    _cursor: str | None = None

    def tick(self, context: dg.SensorEvaluationContext) -> dg.SensorResult:
        """Evaluate the sensor."""
        with share_instance(context) as instance:
            states = decider.load(context.cursor)
            if context.cursor != self._cursor:  # the last tick failed, or was another process's
                self._changed.clear()
            keys = {edge.key for dag in self.dags.values() for edge in dag.depends_on}
            last = fetch_last_materializations(instance, keys)
            recent = self._find_recent(last)
            starter = Starter(self.client, instance, self.timing)
            decided: dict[str, DagState] = {}
            for dag_id, dag in self.dags.items():
                state = _join(instance, dag, states.get(dag_id, DagState()), last)
                is_whole = dag_id in self._backlogs
                events = _read(instance, dag, state, last, last.keys() if is_whole else recent)
                if dag.trigger.runs == "latest":
                    for event in events:
                        state = starter.settle_requested(dag_id, dag, state)
                        state = decider.take_in(dag, state, event)
                due = decider.find_due(dag, state, events)
                decided[dag_id] = starter.start(dag_id, dag, state, due) if due else state
                is_settled = not decider.find_due(dag, decided[dag_id], events)
                (self._backlogs.discard if is_settled else self._backlogs.add)(dag_id)
            self._cursor = decider.dump(decided)
            return starter.build_result(self._cursor)

    def _find_recent(self, last: _Positions) -> set[dg.AssetKey]:
        """Find the assets that were materialized lately, or since this process has started."""
        now = self.timing.monotonic()
        for key, position in last.items():
            if self._changed.get(key, (None, 0.0))[0] != position:
                self._changed[key] = position, now + _SETTLE_S
        return {key for key in last if now < self._changed[key][1]}


def _join(
    instance: dg.DagsterInstance, dag: DagDeclaration, state: DagState, last: _Positions
) -> DagState:
    """Return the state with the dependencies that are declared now. Of a new one, what was before
    does not count."""
    since = {}
    for edge in dag.depends_on:
        name = decider.name_key(edge.key)
        if (known := state.since.get(name, since.get(name))) is None:
            known = max(last.get(edge.key, 0), fetch_last_observation(instance, edge.key))
        since[name] = known
    return state if since == state.since else replace(state, since=since)


def _read(
    instance: dg.DagsterInstance,
    dag: DagDeclaration,
    state: DagState,
    last: _Positions,
    to_read: Collection[dg.AssetKey],
) -> list[AssetEvent]:
    """Read what has happened to a DAG's upstreams since its state, in order.

    Args:
        to_read: Assets whose materializations are read. Of the others, none is new.
    """
    found: dict[int, AssetEvent] = {}
    end = math.inf
    for key, states in decider.find_states(dag).items():
        fetches = []
        if "success" in states and key in to_read and last[key] > state.get_start(key):
            fetches.append(fetch_materialized)
        if states - {"success"}:
            fetches.append(fetch_observed)
        for fetch in fetches:
            events, until = _read_on(fetch, instance, key, state)
            found |= {event.position: event for event in events}
            end = min(end, until)
    return [found[position] for position in sorted(found) if position <= end]


def _read_on(
    fetch: Callable[..., tuple[list[AssetEvent], int | None]],
    instance: dg.DagsterInstance,
    key: dg.AssetKey,
    state: DagState,
) -> tuple[list[AssetEvent], float]:
    """Read the first events of an asset that are not past, and the position up to which these are
    all that there are."""
    after = state.get_start(key)
    while True:
        events, until = fetch(instance, key, after, _EVENTS_PER_QUERY)
        new = [event for event in events if not state.is_past(event)]
        if until is None:
            return new, math.inf
        if new:
            return new, until
        after = until
