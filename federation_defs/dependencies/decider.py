"""What starts a run of a DAG whose dependencies the event sensor decides. Pure.

All order is that of the event log. Clocks of several machines give none.

An event that counts for a dependency is kept until it has led to a run or was passed over: with
`runs: each` in a queue, with `runs: latest` as the latch of the dependency, which holds one event.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import dagster as dg

from federation_defs.dagster_io.event_log import AssetEvent
from federation_defs.declaration import DagDeclaration, DependencyDeclaration

# An event may become visible after others with larger positions: PostgreSQL and MySQL number rows
# before they commit them. So many positions are read again.
WINDOW = 200

_VERSION = 1
_UNREADABLE = (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError)
_CONTRARY = {"success": "failure", "failure": "success"}

Edge = tuple[str, str]  # the upstream's asset key as JSON, and the state that counts


@dataclass(frozen=True)
class Cause:
    """An event, and the dependency that it counts for.

    Attributes:
        position: In the event log.
        run_id: Of the upstream run; empty if there is none.
    """

    edge: DependencyDeclaration
    position: int
    run_id: str

    @property
    def label(self) -> str:
        """The value of the tag by which the Dagster run for an upstream run is found."""
        return f"{self.edge.name} {self.edge.state} {self.run_id}"


@dataclass(frozen=True)
class DagState:
    """What waits to start a DAG.

    Attributes:
        latched: With `runs: latest`, position and run id of the last event of each dependency
            since the last run.
        queue: With `runs: each`, dependency, position and run id of each event, in order.
        failures: How often in a row `only_if` gave no answer about what is next.
    """

    latched: Mapping[Edge, tuple[int, str]] = field(default_factory=dict)
    queue: tuple[tuple[Edge, int, str], ...] = ()
    failures: int = 0


@dataclass(frozen=True)
class Cursor:
    """What the event sensor has read, and what waits.

    Attributes:
        position: In the event log, up to which it was read.
        seen: The positions of events that were read, of the last ones.
        dags: What waits, by DAG id.
    """

    position: int
    seen: frozenset[int] = frozenset()
    dags: Mapping[str, DagState] = field(default_factory=dict)

    def advance(self, position: int, read: Collection[int]) -> Cursor:
        """Return the cursor after events at these positions were read, all up to one of them."""
        position = max(position, self.position)
        seen = {each for each in self.seen.union(read) if each > position - WINDOW}
        return replace(self, position=position, seen=frozenset(seen))


def take_in(dag: DagDeclaration, key: dg.AssetKey, state: DagState, event: AssetEvent) -> DagState:
    """Return the state of a DAG after an event.

    Args:
        key: The DAG's own asset.
    """
    if event.state == "drop":
        return DagState() if event.key == key else state
    latched, queue, failures = dict(state.latched), state.queue, state.failures
    for edge in dag.depends_on:
        if edge.key != event.key:
            continue
        if not _counts(edge, event):
            if dag.trigger.when == "all" and _CONTRARY.get(edge.state) == event.state:
                latched.pop(_name(edge), None)  # the upstream has ended otherwise since
        elif dag.trigger.runs == "latest":
            latched[_name(edge)] = event.position, event.run_id
            failures = 0  # `only_if` is asked about another event
        else:
            queue = (*queue, (_name(edge), event.position, event.run_id))
            break  # one run, whichever dependencies it counts for
    return DagState(latched, queue, failures)


def find_latched(dag: DagDeclaration, state: DagState) -> list[Cause]:
    """Return what is latched, the newest last."""
    edges = {_name(edge): edge for edge in dag.depends_on}
    causes = [Cause(edges[name], *each) for name, each in state.latched.items()]
    return sorted(causes, key=lambda cause: cause.position)


def find_due(dag: DagDeclaration, state: DagState) -> list[tuple[Cause, ...]]:
    """Return the causes of each run that is due, the newest last, in the order to start them."""
    if dag.trigger.runs == "each":
        edges = {_name(edge): edge for edge in dag.depends_on}
        return [(Cause(edges[name], at, run_id),) for name, at, run_id in state.queue]
    latched = find_latched(dag, state)
    is_due = len(latched) == len(dag.depends_on) if dag.trigger.when == "all" else latched
    return [tuple(latched)] if is_due else []


def settle(state: DagState, causes: Iterable[Cause]) -> DagState:
    """Return the state in which a run was requested for these causes, or they were passed over."""
    past = {(_name(cause.edge), cause.position) for cause in causes}
    latched = {name: each for name, each in state.latched.items() if (name, each[0]) not in past}
    queue = tuple(each for each in state.queue if (each[0], each[1]) not in past)
    return DagState(latched, queue)


def join(dag: DagDeclaration, state: DagState) -> DagState:
    """Return the state as the DAG is declared now: without what counted for dependencies that are
    gone, and with latches as a queue or the other way round."""
    edges = {_name(edge) for edge in dag.depends_on}
    waiting = [*((name, *each) for name, each in state.latched.items()), *state.queue]
    waiting = sorted((each for each in waiting if each[0] in edges), key=lambda each: each[1])
    if dag.trigger.runs == "each":
        return DagState({}, tuple(waiting), state.failures)
    return DagState({name: (at, run) for name, at, run in waiting}, (), state.failures)


def _name(edge: DependencyDeclaration) -> Edge:
    return json.dumps(edge.key.path), edge.state


def _counts(edge: DependencyDeclaration, event: AssetEvent) -> bool:
    if edge.state == "finished":
        return event.state in ("success", "failure")
    return edge.state == event.state


def dump(cursor: Cursor) -> str:
    """Return the sensor's cursor as JSON. DAGs for which nothing waits are left out."""
    dags = {
        dag_id: {
            "latched": [[*edge, *each] for edge, each in state.latched.items()],
            "queue": [[*edge, *each] for edge, *each in state.queue],
            "failures": state.failures,
        }
        for dag_id, state in cursor.dags.items()
        if state != DagState()
    }
    values = {"position": cursor.position, "seen": sorted(cursor.seen), "dags": dags}
    return json.dumps({"version": _VERSION, **values}, separators=(",", ":"))


def load(text: str | None) -> Cursor | None:
    """Return the cursor; None if it can't be read, as after an edit by hand."""
    try:
        values = json.loads(text or "")
        position, seen = int(values["position"]), frozenset(map(int, values["seen"]))
        dags = values["dags"].items()
    except _UNREADABLE:
        return None
    states: dict[str, DagState] = {}
    for dag_id, each in dags:
        with suppress(*_UNREADABLE):
            states[str(dag_id)] = _load_state(each)
    return Cursor(position, seen, states)


def _load_state(values: Mapping[str, Any]) -> DagState:
    return DagState(
        {(str(key), str(state)): (int(at), str(run)) for key, state, at, run in values["latched"]},
        tuple(
            ((str(key), str(state)), int(at), str(run)) for key, state, at, run in values["queue"]
        ),
        int(values["failures"]),
    )
