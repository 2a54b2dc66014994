"""What starts a run of a DAG whose dependencies the event sensor decides. Pure.

All order is that of the event log. Clocks of several machines give none.

An event that counts for a dependency is kept until it has led to a run or was passed over: with
`runs: each` in a queue, with `runs: latest` as the latch of the dependency, which holds one event.
Each partition of a DAG has latches and a queue of its own.
"""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64encode
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import dagster as dg

from federation_defs.dagster_io.event_log import AssetEvent
from federation_defs.declaration import DagDeclaration, DependencyDeclaration
from federation_defs.partition_mapping import PartitionMapping, find_window

# An event may become visible after others with larger positions: PostgreSQL and MySQL number rows
# before they commit them. So many positions are read again.
WINDOW = 200

VERSION = 3  # 1 had no partitions, 2 did not tell which upstreams it knew
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
        latched: With `runs: latest`, position and run id of the last event of each dependency
            since the last run.
        queue: With `runs: each`, dependency, position and run id of each event, in order.
        failures: How often in a row `only_if` gave no answer about what is next.
    """

    latched: Mapping[Edge, tuple[int, str]] = field(default_factory=dict)
    queue: tuple[tuple[Edge, int, str], ...] = ()
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
        version: Of the package's cursors: the one of which this was read.
    """

    position: int
    seen: frozenset[int] = frozenset()
    dags: Mapping[str, Waiting] = field(default_factory=dict)
    known: frozenset[str] = frozenset()
    version: int = VERSION

    def advance(self, position: int, read: Collection[int]) -> Cursor:
        """Return the cursor after events at these positions were read, all up to one of them."""
        position = max(position, self.position)
        seen = {each for each in self.seen.union(read) if each > position - WINDOW}
        return replace(self, position=position, seen=frozenset(seen))


def build_mark(dag_id: str, upstream: dg.AssetKey) -> str:
    """Build what stands for an upstream of a DAG in the cursor, whatever states of it count.

    Dagster stores the cursor at each tick, so it is short: one of 16 million. An upstream that is
    new, and by chance has the mark of another one, counts from the last tick on and is not told.
    """
    name = json.dumps([dag_id, upstream.path])
    return urlsafe_b64encode(hashlib.sha256(name.encode()).digest()).decode()[:_MARK]


def is_known(dag: DagDeclaration, mark: str, cursor: Cursor) -> bool:
    """Whether events of an upstream of a DAG count. If not, those that a tick reads are history.

    Args:
        mark: Of the upstream.
    """
    if cursor.version == 1:  # conditions decided on partitions, and have handled what they saw
        return dag.partitions is None and dag.is_decided_by_events
    return cursor.version == 2 or mark in cursor.known


def find_concerned(
    dag: DagDeclaration, mappings: Sequence[PartitionMapping], event: AssetEvent
) -> list[tuple[DependencyDeclaration, str | None]]:
    """Return which dependencies of a DAG an event is about, and of which partitions.

    Args:
        mappings: How its partitions depend on each of its dependencies; empty if it has none.
    """
    found: list[tuple[DependencyDeclaration, str | None]] = []
    for number, edge in enumerate(dag.depends_on):
        if edge.key == event.key and mappings:
            updated = mappings[number].find_updated(event.record.partition_key, event.moment)
            found += [(edge, partition) for partition in updated]
        elif edge.key == event.key:
            found.append((edge, None))
    return found


def take_in(
    dag: DagDeclaration,
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
        state = _take_in(dag, edge, waiting.pop(partition, State()), event)
        if state != State():
            waiting[partition] = state
        if state.queue and state.queue[-1][1] == event.position:
            queued.add(partition)


def _take_in(
    dag: DagDeclaration, edge: DependencyDeclaration, state: State, event: AssetEvent
) -> State:
    """Return a state after an event of a dependency."""
    latched, queue = dict(state.latched), state.queue
    if not _counts(edge, event):
        if dag.trigger.when == "all" and _CONTRARY.get(edge.state) == event.state:
            latched.pop(_name(edge), None)  # the upstream has ended otherwise since
        return State(latched, queue, state.failures)
    if dag.trigger.runs == "each":
        return State(latched, (*queue, (_name(edge), event.position, event.run_id)), state.failures)
    latched[_name(edge)] = event.position, event.run_id
    return State(latched, queue)  # `only_if` is asked about another event


def find_latched(dag: DagDeclaration, state: State) -> list[Cause]:
    """Return what is latched, the newest last."""
    edges = {_name(edge): edge for edge in dag.depends_on}
    causes = [Cause(edges[name], *each) for name, each in state.latched.items()]
    return sorted(causes, key=lambda cause: cause.position)


def find_due(dag: DagDeclaration, waiting: Waiting) -> list[Due]:
    """Return the runs that are due, in the order to start them: that of their newest causes."""
    edges = {_name(edge): edge for edge in dag.depends_on}
    found: list[Due] = []
    for partition, state in waiting.items():
        found += [
            Due(partition, (Cause(edges[name], at, run_id),)) for name, at, run_id in state.queue
        ]
        latched = find_latched(dag, state)
        if latched and (dag.trigger.when == "any" or len(latched) == len(dag.depends_on)):
            found.append(Due(partition, tuple(latched)))
    return sorted(found, key=lambda due: due.causes[-1].position)


def settle(waiting: Waiting, due: Due) -> None:
    """Remove the causes of a run that was requested or passed over."""
    past = {(_name(cause.edge), cause.position) for cause in due.causes}
    state = waiting.pop(due.partition, State())
    latched = {name: each for name, each in state.latched.items() if (name, each[0]) not in past}
    queue = tuple(each for each in state.queue if (each[0], each[1]) not in past)
    if latched or queue:
        waiting[due.partition] = State(latched, queue)


def join(dag: DagDeclaration, mappings: Sequence[PartitionMapping], waiting: Waiting) -> Waiting:
    """Return what waits as the DAG is declared now: without what counted for dependencies and
    partitions that are gone, and with latches as a queue or the other way round."""
    edges = {_name(edge) for edge in dag.depends_on}
    states: Waiting = {}
    for partition, state in waiting.items():
        if not _has_partition(mappings, partition):
            continue
        events = [*((name, *each) for name, each in state.latched.items()), *state.queue]
        events = sorted((each for each in events if each[0] in edges), key=lambda each: each[1])
        if dag.trigger.runs == "each":
            states[partition] = State({}, tuple(events), state.failures)
        else:
            latched = {name: (at, run) for name, at, run in events}
            states[partition] = State(latched, (), state.failures)
        if not events:
            del states[partition]
    return states


def _has_partition(mappings: Sequence[PartitionMapping], partition: str | None) -> bool:
    if not mappings or partition is None:
        return not mappings and partition is None
    return find_window(mappings[0].downstream, partition) is not None


def _name(edge: DependencyDeclaration) -> Edge:
    return json.dumps(edge.key.path), edge.state


def _counts(edge: DependencyDeclaration, event: AssetEvent) -> bool:
    if edge.state == "finished":
        return event.state in ("success", "failure")
    return edge.state == event.state


def dump(cursor: Cursor) -> str:
    """Return the sensor's cursor as JSON. DAGs for which nothing waits are left out."""
    edges: dict[Edge, int] = {}  # by their numbers, as thousands of partitions may wait
    dags = {
        dag_id: [
            [
                partition,
                [
                    [edges.setdefault(edge, len(edges)), *each]
                    for edge, each in state.latched.items()
                ],
                [[edges.setdefault(edge, len(edges)), *each] for edge, *each in state.queue],
                state.failures,
            ]
            for partition, state in waiting.items()
        ]
        for dag_id, waiting in cursor.dags.items()
        if waiting
    }
    values = {"position": cursor.position, "seen": sorted(cursor.seen)}
    values["known"] = "".join(sorted(cursor.known))
    values |= {"edges": list(edges), "dags": dags}
    return json.dumps({"version": VERSION, **values}, separators=(",", ":"))


def load(text: str | None) -> Cursor | None:
    """Return the cursor; None if it can't be read, as after an edit by hand. Of a version to come,
    what has another form is left out."""
    try:
        values = json.loads(text or "")
        version = int(values["version"])
        position, seen = int(values["position"]), frozenset(map(int, values["seen"]))
        marks = str(values.get("known", ""))
        edges = [(str(key), str(state)) for key, state in values.get("edges", ())]
        dags = {
            str(dag_id): [states] if version == 1 else list(states)
            for dag_id, states in values["dags"].items()
        }
    except _UNREADABLE:
        return None
    waiting: dict[str, Waiting] = {}
    for dag_id, states in dags.items():
        for each in states:
            with suppress(*_UNREADABLE):
                partition, state = _load_state_1(each) if version == 1 else _load_state(each, edges)
                waiting.setdefault(dag_id, {})[partition] = state
    known = {marks[start : start + _MARK] for start in range(0, len(marks), _MARK)}
    return Cursor(position, seen, waiting, frozenset(known), version)


def _load_state(values: Sequence[Any], edges: Sequence[Edge]) -> tuple[str | None, State]:
    partition, latched, queue, failures = values
    return None if partition is None else str(partition), State(
        {edges[number]: (int(at), str(run)) for number, at, run in latched},
        tuple((edges[number], int(at), str(run)) for number, at, run in queue),
        int(failures),
    )


def _load_state_1(values: Mapping[str, Any]) -> tuple[None, State]:
    return None, State(
        {(str(key), str(state)): (int(at), str(run)) for key, state, at, run in values["latched"]},
        tuple(
            ((str(key), str(state)), int(at), str(run)) for key, state, at, run in values["queue"]
        ),
        int(values["failures"]),
    )
