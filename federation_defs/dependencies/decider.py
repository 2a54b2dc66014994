"""What starts a run of a DAG whose dependencies the event sensor decides. Pure.

All order is that of the event log. Clocks of several machines give none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import dagster as dg

from federation_defs.dagster_io.event_log import AssetEvent
from federation_defs.declaration import DagDeclaration, DependencyDeclaration

# An event may become visible after others with larger positions: PostgreSQL and MySQL number rows
# before they commit them. So many positions are read again.
WINDOW = 1000

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
    """What the event sensor remembers of one DAG.

    Attributes:
        since: By upstream, the position after which it counts. A dependency that is declared later
            does not count what was before.
        floor: Events of any upstream up to this position are past.
        taken: Positions above it that are past, too.
        latched: With `runs: latest`, position and run id of the last event of each dependency
            since the last run.
        failures: How often in a row `only_if` gave no answer about what is next.
    """

    since: Mapping[str, int] = field(default_factory=dict)
    floor: int = 0
    taken: frozenset[int] = frozenset()
    latched: Mapping[Edge, tuple[int, str]] = field(default_factory=dict)
    failures: int = 0

    def get_start(self, upstream: dg.AssetKey) -> int:
        """The position up to which all events of an upstream are past."""
        return max(self.floor, self.since.get(name_key(upstream), 0))

    def is_past(self, event: AssetEvent) -> bool:
        start = self.get_start(event.key)
        return event.position <= start or event.position in self.taken

    def take(self, positions: Iterable[int]) -> DagState:
        """Return the state in which the events at these positions are past."""
        taken = self.taken.union(positions)
        floor = max(self.floor, max(taken, default=0) - WINDOW)
        return replace(self, floor=floor, taken=frozenset(each for each in taken if each > floor))


def take_in(dag: DagDeclaration, state: DagState, event: AssetEvent) -> DagState:
    """With `runs: latest`, return the state after an event."""
    if state.is_past(event):
        return state
    latched = dict(state.latched)
    for edge in dag.depends_on:
        if edge.key != event.key:
            continue
        if _counts(edge, event):
            latched[_name(edge)] = event.position, event.run_id
        elif dag.trigger.when == "all" and _CONTRARY.get(edge.state) == event.state:
            latched.pop(_name(edge), None)  # the upstream has ended otherwise since
    return replace(state.take([event.position]), latched=latched)


def find_due(
    dag: DagDeclaration, state: DagState, events: Sequence[AssetEvent]
) -> list[tuple[Cause, ...]]:
    """Return the causes of each run that is due, in the order to start them.

    Args:
        events: With `runs: each`, what has happened, in order.
    """
    latched = [
        Cause(edge, *state.latched[_name(edge)])
        for edge in dag.depends_on
        if _name(edge) in state.latched
    ]
    latched.sort(key=lambda cause: cause.position)
    if dag.trigger.runs == "latest":
        is_due = len(latched) == len(dag.depends_on) if dag.trigger.when == "all" else latched
        return [tuple(latched)] if is_due else []
    due = [(cause,) for cause in latched]  # when the DAG was declared with `runs: latest`
    for event in events:
        edges = (edge for edge in dag.depends_on if edge.key == event.key and _counts(edge, event))
        if not state.is_past(event) and (edge := next(edges, None)) is not None:
            due.append((Cause(edge, event.position, event.run_id),))
    return due


def settle(state: DagState, causes: Iterable[Cause]) -> DagState:
    """Return the state in which a run was requested for these causes, or they were passed over."""
    past = {(_name(cause.edge), cause.position) for cause in causes}
    latched = {
        edge: (position, run_id)
        for edge, (position, run_id) in state.latched.items()
        if (edge, position) not in past
    }
    state = state.take(position for _, position in past)
    return replace(state, latched=latched, failures=0)


def drop(state: DagState, position: int) -> DagState:
    """Return the state in which nothing waits that happened before a position."""
    latched = {edge: each for edge, each in state.latched.items() if each[0] > position}
    return replace(state, floor=max(state.floor, position), latched=latched, failures=0)


def find_states(dag: DagDeclaration) -> dict[dg.AssetKey, set[str]]:
    """Return the states of each upstream that matter to a DAG."""
    found: dict[dg.AssetKey, set[str]] = {}
    for edge in dag.depends_on:
        states = found.setdefault(edge.key, set())
        states |= {"success", "failure"} if edge.state == "finished" else {edge.state}
        if dag.trigger.when == "all" and edge.state in _CONTRARY:
            states.add(_CONTRARY[edge.state])
    return found


def name_key(key: dg.AssetKey) -> str:
    """Return an asset key as JSON, for the cursor."""
    return json.dumps(key.path)


def _name(edge: DependencyDeclaration) -> Edge:
    return name_key(edge.key), edge.state


def _counts(edge: DependencyDeclaration, event: AssetEvent) -> bool:
    if edge.state == "finished":
        return event.state in ("success", "failure")
    return edge.state == event.state


def dump(states: Mapping[str, DagState]) -> str:
    """Return the sensor's cursor."""
    dags = {
        dag_id: {
            "since": state.since,
            "floor": state.floor,
            "taken": sorted(state.taken),
            "latched": [[*edge, *each] for edge, each in state.latched.items()],
            "failures": state.failures,
        }
        for dag_id, state in states.items()
    }
    return json.dumps({"version": _VERSION, "dags": dags}, separators=(",", ":"))


def load(cursor: str | None) -> dict[str, DagState]:
    """Return the states in a cursor; none of what can't be read, as after an edit by hand."""
    states: dict[str, DagState] = {}
    with suppress(*_UNREADABLE):
        for dag_id, values in json.loads(cursor or "{}")["dags"].items():
            with suppress(*_UNREADABLE):
                states[str(dag_id)] = _load_state(values)
    return states


def _load_state(values: Mapping[str, Any]) -> DagState:
    return DagState(
        {str(upstream): int(position) for upstream, position in values["since"].items()},
        int(values["floor"]),
        frozenset(map(int, values["taken"])),
        {
            (str(upstream), str(state)): (int(position), str(run_id))
            for upstream, state, position, run_id in values["latched"]
        },
        int(values["failures"]),
    )
