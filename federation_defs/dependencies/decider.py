"""Decides which events start runs of the DAGs that the event sensor starts. Pure.

Events are ordered by their position in the event log, because the clocks of several machines give
no order.

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
from operator import itemgetter
from typing import Any, TypeAlias

import dagster as dg

from federation_defs.dagster_io.event_log import AssetEvent
from federation_defs.declaration import DagDeclaration, DependencyDeclaration, TriggerDeclaration
from federation_defs.naming import build_asset_key, build_dag_id
from federation_defs.partition_mapping import PartitionMapping, find_window

# An event may become visible after others with larger positions: PostgreSQL and MySQL number rows
# before they commit them. A tick therefore reads at most this many positions again, as Dagster does
# on Dagster+, and at most this many events, because each tick stores their positions in the cursor.
# After a tick that only had time to read again, the next one reads fewer positions again.
REREAD_POSITIONS = 20_000
REREAD_EVENTS = 2_000
REREAD_IN_BACKLOG = 200

VERSION = 1
_FINGERPRINT_LENGTH = 4
_INVALID = (AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError)
_OPPOSITE = {"success": "failure", "failure": "success"}

# A dependency in the cursor: the upstream's asset key as JSON, and the state that counts.
_Edge: TypeAlias = tuple[str, str]


@dataclass(frozen=True)
class Downstream:
    """A DAG that the event sensor starts.

    Attributes:
        mappings: How its partitions depend on each of its dependencies, in their order; empty if it
            has no partitions.
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
        """The dependencies, each with its partition mapping; None if the DAG has no partitions."""
        mappings = self.mappings or repeat(None, len(self.declaration.depends_on))
        return list(zip(self.declaration.depends_on, mappings, strict=True))

    @cached_property
    def edges_by_name(self) -> dict[_Edge, DependencyDeclaration]:
        return {_name(edge): edge for edge in self.declaration.depends_on}

    @cached_property
    def fingerprints(self) -> dict[dg.AssetKey, str]:
        """The fingerprints of the upstreams by asset key. The cursor has them in place of the keys.

        They don't depend on the states that count. They are short (16 million values), because
        Dagster stores the cursor at each tick. If a new upstream has the fingerprint of another
        one, its events count from the last tick on, and no observation reports it as new.
        """
        return {edge.key: self._build_fingerprint(edge.key) for edge in self.declaration.depends_on}

    def _build_fingerprint(self, upstream: dg.AssetKey) -> str:
        name = json.dumps([self.dag_id, upstream.path])
        digest = urlsafe_b64encode(hashlib.sha256(name.encode()).digest())
        return digest.decode()[:_FINGERPRINT_LENGTH]

    def has_partition(self, partition: str | None) -> bool:
        """Return whether a partition, which may begin in the future, is one of the DAG's. The
        partition of a DAG without partitions is None."""
        if not self.mappings or partition is None:
            return not self.mappings and partition is None
        return find_window(self.mappings[0].downstream, partition) is not None


@dataclass(frozen=True)
class Cause:
    """An event, and the dependency that it counts for.

    Attributes:
        position: The event's position in the event log.
        run_id: The id of the upstream run; empty if there is none.
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
        partition: The DAG's partition; None if the DAG has none.
        causes: The events that led to the run, the newest last.
    """

    partition: str | None
    causes: tuple[Cause, ...]


@dataclass
class Pending:
    """The events that wait to start a DAG, or a partition of it.

    Attributes:
        causes: The events by position. With `runs: latest`, the last event of each dependency since
            the last run. With `runs: each`, all events.
        failures: How many times in a row `only_if` gave no answer about the next event.
    """

    causes: dict[int, Cause] = field(default_factory=dict)
    failures: int = 0


# The events that wait to start a DAG, by its partitions, or by None if it has none. A partition for
# which no event waits is left out.
Waiting: TypeAlias = dict[str | None, Pending]


@dataclass(frozen=True)
class Cursor:
    """What the event sensor has read, and the events that wait.

    Attributes:
        position: The position up to which the event log was read.
        start: The position after which to read again.
        seen: The positions after `start` of the events that were read.
        dags: The events that wait, by DAG id.
        followed: The fingerprints of the upstreams whose events count. The past events of others
            do not count.
        dropped: The events that no longer wait because declarations have changed, by DAG id: for
            each event, its dependency in words. Not stored.
    """

    position: int
    start: int
    seen: frozenset[int] = frozenset()
    dags: Mapping[str, Waiting] = field(default_factory=dict)
    followed: frozenset[str] = frozenset()
    dropped: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def advance(
        self, position: int, read: Collection[int], reread: int = REREAD_POSITIONS
    ) -> Cursor:
        """Return the cursor after the event log was read up to a position.

        Args:
            read: The positions of the events that were read.
            reread: How many positions to read again at most.
        """
        position = max(position, self.position)
        start = max(self.start, position - reread)
        seen = sorted(each for each in self.seen.union(read) if each > start)
        if len(seen) > REREAD_EVENTS:
            start = seen[-REREAD_EVENTS - 1]
        seen = frozenset(seen[-REREAD_EVENTS:])
        return replace(self, position=position, start=start, seen=seen)


def match_dependencies(
    dag: Downstream, event: AssetEvent
) -> list[tuple[DependencyDeclaration, str | None]]:
    """Return the dependencies of a DAG that an event is about, each with a partition of the DAG."""
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
    matches: Iterable[tuple[DependencyDeclaration, str | None]],
    waiting: Waiting,
    event: AssetEvent,
) -> None:
    """Add an event to `waiting`, if it counts.

    Args:
        matches: The result of `match_dependencies`.
    """
    queued = set[str | None]()
    for edge, partition in matches:
        if partition in queued:  # one run, even if it counts for several dependencies
            continue
        # Moved to the end: the partitions of this event keep their order, the earliest first.
        pending = waiting.pop(partition, Pending())
        _add(dag, edge, pending, event)
        if pending.causes:
            waiting[partition] = pending
        if dag.trigger.runs == "each" and _counts(edge, event):
            queued.add(partition)


def _add(dag: Downstream, edge: DependencyDeclaration, pending: Pending, event: AssetEvent) -> None:
    if dag.trigger.runs == "latest" and any(
        cause.edge == edge and position > event.position
        for position, cause in pending.causes.items()
    ):
        return  # it is older than the event that waits, and became visible later
    counts = _counts(edge, event)
    # With `when: all`, an upstream's event no longer counts after an end with the other state.
    is_revoked = dag.trigger.when == "all" and _OPPOSITE.get(edge.state) == event.state
    if dag.trigger.runs == "latest" and (counts or is_revoked):
        pending.causes = {
            position: cause for position, cause in pending.causes.items() if cause.edge != edge
        }
    if counts:
        pending.causes[event.position] = Cause(edge, event.position, event.run_id)
    if counts and dag.trigger.runs == "latest":
        pending.failures = 0  # `only_if` is asked about another event


def find_due(dag: Downstream, waiting: Waiting) -> list[Due]:
    """Return the runs that are due, in the order of their newest causes."""
    found: list[Due] = []
    for partition, pending in waiting.items():
        if dag.trigger.runs == "each":
            found += [Due(partition, (cause,)) for cause in pending.causes.values()]
        elif dag.trigger.when == "any" or len(pending.causes) == len(dag.edges):
            found.append(Due(partition, _sort(pending)))
    return sorted(found, key=lambda due: due.causes[-1].position)


def _sort(pending: Pending) -> tuple[Cause, ...]:
    return tuple(pending.causes[position] for position in sorted(pending.causes))


def drop_before(waiting: Waiting, position: int) -> None:
    """Remove the events at or before a position in the event log."""
    for partition, pending in list(waiting.items()):
        later = {each: cause for each, cause in pending.causes.items() if each > position}
        if later:
            waiting[partition] = Pending(later)
        else:
            del waiting[partition]


def drop_causes(waiting: Waiting, due: Due) -> None:
    """Remove the causes of a run that was requested or passed over."""
    pending = waiting[due.partition]
    for cause in due.causes:
        del pending.causes[cause.position]
    pending.failures = 0
    if not pending.causes:
        del waiting[due.partition]


def _name(edge: DependencyDeclaration) -> _Edge:
    return json.dumps(edge.key.path), edge.state


def _counts(edge: DependencyDeclaration, event: AssetEvent) -> bool:
    if edge.state == "finished":
        return event.state in ("success", "failure")
    return edge.state == event.state


def dump(cursor: Cursor) -> str:
    """Return the sensor's cursor as JSON. DAGs for which nothing waits are left out."""
    edges: dict[_Edge, int] = {}  # numbered, as thousands of partitions may wait

    def dump_pending(pending: Pending) -> list[Any]:
        causes = [
            [edges.setdefault(_name(each.edge), len(edges)), each.position, each.run_id]
            for each in pending.causes.values()
        ]
        return [causes, pending.failures]

    dags = {
        dag_id: [[partition, *dump_pending(each)] for partition, each in waiting.items()]
        for dag_id, waiting in cursor.dags.items()
        if waiting
    }
    values = {
        "version": VERSION,
        "position": cursor.position,
        "start": cursor.start,
        "seen": sorted(cursor.seen),
        "known": "".join(sorted(cursor.followed)),
        "edges": list(edges),
        "dags": dags,
    }
    return json.dumps(values, separators=(",", ":"))


def load(text: str | None, dags: Mapping[str, Downstream]) -> Cursor | None:
    """Return the cursor, adapted to the DAGs as they are declared now; None if it can't be read, as
    after an edit by hand. Parts that a later version wrote in another form are left out.

    Args:
        dags: The declared DAGs, by DAG id.
    """
    try:
        values = json.loads(text or "")
        int(values["version"])  # every cursor of the sensor has one
        position = int(values["position"])
        start = int(values.get("start", position))
        seen = frozenset(map(int, values["seen"]))
        known = str(values["known"])
    except _INVALID:
        return None
    waiting: dict[str, Waiting] = {}
    dropped: dict[str, list[str]] = {}
    with suppress(*_INVALID):
        edges = [(str(key), str(state)) for key, state in values["edges"]]
        for dag_id, rows in values["dags"].items():
            with suppress(*_INVALID):
                kept, gone = _load_waiting(dags.get(dag_id), rows, edges)
                waiting |= {dag_id: kept} if kept else {}
                dropped |= {dag_id: gone} if gone else {}
    starts = range(0, len(known), _FINGERPRINT_LENGTH)
    followed = frozenset(known[start : start + _FINGERPRINT_LENGTH] for start in starts)
    return Cursor(position, start, seen, waiting, followed, dropped)


def _load_waiting(
    dag: Downstream | None, rows: Iterable[Any], edges: Sequence[_Edge]
) -> tuple[Waiting, list[str]]:
    """Return the events that wait to start a DAG as it is declared now, and, in words, those that
    were left out because their dependency or partition is gone. Unless `runs: each`, only the last
    event of each dependency is kept."""
    waiting, gone = Waiting(), list[str]()
    is_latest = dag is not None and dag.trigger.runs == "latest"
    for row in rows:
        with suppress(*_INVALID):
            partition, stored_causes, failures = row
            partition = None if partition is None else str(partition)
            declared = dag.edges_by_name if dag and dag.has_partition(partition) else {}
            causes: dict[_Edge | int, Cause] = {}
            for number, position, run_id in sorted(stored_causes, key=itemgetter(1)):
                name = edges[number]
                if edge := declared.get(name):
                    causes[name if is_latest else position] = Cause(edge, position, str(run_id))
                else:
                    gone.append(_describe(name, partition))
            if causes:
                by_position = {cause.position: cause for cause in causes.values()}
                waiting[partition] = Pending(by_position, int(failures))
    return waiting, gone


def _describe(edge: _Edge, partition: str | None) -> str:
    key, state = dg.AssetKey(json.loads(edge[0])), edge[1]
    dag_id = build_dag_id(key.path[0], key)
    name = f"{key.path[0]}/{dag_id}" if dag_id else "/".join(key.path)
    return f"{name} ({state})" + ("" if partition is None else f" for {partition}")
