"""What starts a run of a DAG whose dependencies the event sensor decides. Pure.

All order is that of the event log. Clocks of several machines give none.

An event that counts for a dependency is kept until it has led to a run or was passed over: with
`runs: each` in a queue, with `runs: latest` as the latch of the dependency, which holds one event.
Each partition of a DAG has latches or a queue of its own.
"""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64encode
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import repeat
from operator import attrgetter
from typing import Any, TypeAlias

import dagster as dg

from federation_defs.dagster_io.event_log import AssetEvent
from federation_defs.declaration import (
    DagDeclaration,
    DependencyDeclaration,
    TriggerDeclaration,
)
from federation_defs.naming import build_asset_key
from federation_defs.partition_mapping import PartitionMapping, find_window

# An event may become visible after others with larger positions: PostgreSQL and MySQL number rows
# before they commit them. So many positions are read again.
WINDOW = 200

VERSION = 3
_MARK = 4  # characters
_UNREADABLE = (
    AttributeError,
    LookupError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)
_CONTRARY = {"success": "failure", "failure": "success"}

# A dependency in the cursor: the upstream's asset key as JSON, and the state that counts.
_Edge: TypeAlias = tuple[str, str]


@dataclass(frozen=True)
class Downstream:
    """A DAG that the event sensor starts.

    Attributes:
        mappings: How its partitions depend on each of its dependencies; empty if it has none.
    """

    instance: str
    dag_id: str
    declaration: DagDeclaration
    mappings: Sequence[PartitionMapping] = ()

    @property
    def name(self) -> str:
        """The DAG, as instance/dag_id."""
        return f"{self.instance}/{self.dag_id}"

    @cached_property
    def key(self) -> dg.AssetKey:
        return build_asset_key(self.instance, self.dag_id)

    @property
    def trigger(self) -> TriggerDeclaration:
        return self.declaration.trigger

    @cached_property
    def edges(self) -> list[tuple[DependencyDeclaration, PartitionMapping | None]]:
        """The dependencies, each with how the DAG's partitions depend on it, if it has some."""
        mappings = self.mappings or repeat(None, len(self.declaration.depends_on))
        return list(zip(self.declaration.depends_on, mappings, strict=True))

    @cached_property
    def edges_by_name(self) -> dict[_Edge, DependencyDeclaration]:
        return {_name(edge): edge for edge in self.declaration.depends_on}

    @cached_property
    def marks(self) -> dict[dg.AssetKey, str]:
        """The marks of the upstreams, which stand for them in the cursor, whatever states count.

        Dagster stores the cursor at each tick, so a mark is short: one of 16 million. An upstream
        that is new, and by chance has the mark of another one, counts from the last tick on and is
        not told.
        """
        return {edge.key: self._build_mark(edge.key) for edge in self.declaration.depends_on}

    def _build_mark(self, upstream: dg.AssetKey) -> str:
        name = json.dumps([self.dag_id, upstream.path])
        return urlsafe_b64encode(hashlib.sha256(name.encode()).digest()).decode()[:_MARK]

    def has_partition(self, partition: str | None) -> bool:
        """Whether a partition, which may be yet to come, is one of the DAG's; of a DAG without, it
        is None."""
        if not self.mappings or partition is None:
            return not self.mappings and partition is None
        return find_window(self.mappings[0].downstream, partition) is not None


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
class Due:
    """A run that is due.

    Attributes:
        partition: Of the DAG; None if it has none.
        causes: What led to it, the newest last.
    """

    partition: str | None
    causes: tuple[Cause, ...]


@dataclass(frozen=True)
class State:
    """What waits to start a DAG, or a partition of it.

    Attributes:
        causes: With `runs: latest`, the last event of each dependency since the last run. With
            `runs: each`, all events.
        failures: How often in a row `only_if` gave no answer about what is next.
    """

    causes: tuple[Cause, ...] = ()
    failures: int = 0


# What waits to start a DAG, by its partitions; of a DAG without, by None. Without empty states.
Waiting: TypeAlias = dict[str | None, State]


@dataclass(frozen=True)
class Cursor:
    """What the event sensor has read, and what waits.

    Attributes:
        position: In the event log, up to which it was read.
        seen: The positions of events that were read, of the last ones.
        dags: What waits, by DAG id.
        known: The marks of the upstreams whose events count. Those of others are history.
    """

    position: int
    seen: frozenset[int] = frozenset()
    dags: Mapping[str, Waiting] = field(default_factory=dict)
    known: frozenset[str] = frozenset()

    def advance(self, position: int, read: Collection[int]) -> Cursor:
        """Return the cursor after events at these positions were read, all up to one of them."""
        position = max(position, self.position)
        seen = {each for each in self.seen.union(read) if each > position - WINDOW}
        return replace(self, position=position, seen=frozenset(seen))


def match_dependencies(
    dag: Downstream, event: AssetEvent
) -> list[tuple[DependencyDeclaration, str | None]]:
    """Return which dependencies of a DAG an event is about, and of which partitions."""
    found: list[tuple[DependencyDeclaration, str | None]] = []
    for edge, mapping in dag.edges:
        if edge.key == event.key and mapping is not None:
            updated = mapping.find_updated(event.record.partition_key, event.moment)
            found += [(edge, partition) for partition in updated]
        elif edge.key == event.key:
            found.append((edge, None))
    return found


def add_event(
    dag: Downstream,
    concerned: Iterable[tuple[DependencyDeclaration, str | None]],
    waiting: Waiting,
    event: AssetEvent,
) -> None:
    """Add an event to what waits.

    Args:
        concerned: What the event is about.
    """
    queued = set[str | None]()
    for edge, partition in concerned:
        if partition in queued:  # one run, whichever dependencies it counts for
            continue
        # Removed and added: of what this event updates, the earliest partition comes first.
        state = _add(dag, edge, waiting.pop(partition, State()), event)
        if state.causes:
            waiting[partition] = state
        if dag.trigger.runs == "each" and _counts(edge, event):
            queued.add(partition)


def _add(dag: Downstream, edge: DependencyDeclaration, state: State, event: AssetEvent) -> State:
    """Return a state after an event of a dependency."""
    counts = _counts(edge, event)
    cause = Cause(edge, event.position, event.run_id)
    if counts and dag.trigger.runs == "each":
        return replace(state, causes=(*state.causes, cause))
    others = tuple(each for each in state.causes if each.edge != edge)
    if counts:
        return State((*others, cause))  # `only_if` is asked about another event
    if dag.trigger.when == "all" and _CONTRARY.get(edge.state) == event.state:
        return replace(state, causes=others)  # the upstream has ended otherwise since
    return state


def find_due(dag: Downstream, waiting: Waiting) -> list[Due]:
    """Return the runs that are due, in the order to start them: that of their newest causes."""
    found: list[Due] = []
    for partition, state in waiting.items():
        if dag.trigger.runs == "each":
            found += [Due(partition, (cause,)) for cause in state.causes]
        elif dag.trigger.when == "any" or len(state.causes) == len(dag.edges):
            found.append(Due(partition, tuple(sorted(state.causes, key=attrgetter("position")))))
    return sorted(found, key=lambda due: due.causes[-1].position)


def drop_causes(waiting: Waiting, due: Due) -> None:
    """Remove the causes of a run that was requested or passed over."""
    state = waiting.pop(due.partition, State())
    if causes := tuple(each for each in state.causes if each not in due.causes):
        waiting[due.partition] = State(causes)


def join(dag: Downstream, waiting: Waiting) -> Waiting:
    """Return what waits as the DAG is declared now: without partitions that are gone, and with one
    event of each dependency unless `runs: each`."""
    states: Waiting = {}
    for partition, state in waiting.items():
        causes = sorted(state.causes, key=attrgetter("position"))
        if dag.trigger.runs == "latest":
            causes = {_name(cause.edge): cause for cause in causes}.values()
        if dag.has_partition(partition):
            states[partition] = replace(state, causes=tuple(causes))
    return states


def _name(edge: DependencyDeclaration) -> _Edge:
    return json.dumps(edge.key.path), edge.state


def _counts(edge: DependencyDeclaration, event: AssetEvent) -> bool:
    if edge.state == "finished":
        return event.state in ("success", "failure")
    return edge.state == event.state


def dump(cursor: Cursor) -> str:
    """Return the sensor's cursor as JSON. DAGs for which nothing waits are left out."""
    edges: dict[_Edge, int] = {}  # by their numbers, as thousands of partitions may wait

    def dump_state(state: State) -> list[Any]:
        causes = [
            [edges.setdefault(_name(each.edge), len(edges)), each.position, each.run_id]
            for each in state.causes
        ]
        return [[], causes, state.failures]

    dags = {
        dag_id: [[partition, *dump_state(state)] for partition, state in waiting.items()]
        for dag_id, waiting in cursor.dags.items()
        if waiting
    }
    values = {
        "version": VERSION,
        "position": cursor.position,
        "seen": sorted(cursor.seen),
        "known": "".join(sorted(cursor.known)),
        "edges": list(edges),
        "dags": dags,
    }
    return json.dumps(values, separators=(",", ":"))


def load(text: str | None, dags: Mapping[str, Downstream]) -> Cursor | None:
    """Return the cursor; None if it can't be read, as after an edit by hand. Of a version to come,
    what has another form is left out.

    Args:
        dags: By DAG id. What waits for others, or for other dependencies, is left out.
    """
    try:
        values = json.loads(text or "")
        int(values["version"])  # every cursor of the sensor has one
        position, seen = int(values["position"]), frozenset(map(int, values["seen"]))
        marks = str(values.get("known", ""))
    except _UNREADABLE:
        return None
    waiting: dict[str, Waiting] = {}
    for dag_id, dag in dags.items():
        with suppress(*_UNREADABLE):
            edges = [(str(key), str(state)) for key, state in values["edges"]]
            for each in values["dags"].get(dag_id, ()):
                with suppress(*_UNREADABLE):
                    partition, state = _load_state(dag, each, edges)
                    if state.causes:
                        waiting.setdefault(dag_id, {})[partition] = state
    known = {marks[start : start + _MARK] for start in range(0, len(marks), _MARK)}
    return Cursor(position, seen, waiting, frozenset(known))


def _load_state(
    dag: Downstream, values: Sequence[Any], edges: Sequence[_Edge]
) -> tuple[str | None, State]:
    # Latches and queues were apart once.
    partition, latched, queue, failures = values
    causes = tuple(
        Cause(edge, int(position), str(run_id))
        for number, position, run_id in (*latched, *queue)
        if (edge := dag.edges_by_name.get(edges[number])) is not None
    )
    return None if partition is None else str(partition), State(causes, int(failures))
