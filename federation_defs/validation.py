"""What must hold across instances. Pure: declarations and snapshots in, sentences out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from federation_defs.declaration import InstanceDeclaration, suggest
from federation_defs.state import Snapshot


@dataclass(frozen=True)
class Member:
    """One instance of the federation.

    Attributes:
        source: The file that declares it, for messages.
        snapshot: Its last known state; None if it was never reached, so that nothing can be said
            of its DAGs.
    """

    source: str
    declaration: InstanceDeclaration
    snapshot: Snapshot | None

    @property
    def name(self) -> str:
        return self.declaration.name


def find_problems(members: Sequence[Member]) -> list[str]:
    """Everything that is wrong, one sentence each; empty if all is well."""
    by_name = {member.name: member for member in members}
    return [
        *_find_shared_names(members),
        *(problem for member in members for problem in _find_unknown_dags(member)),
        *(problem for member in members for problem in _find_broken_edges(member, by_name)),
        *_find_cycle(members),
    ]


def _find_shared_names(members: Sequence[Member]) -> Iterable[str]:
    first: dict[str, Member] = {}
    for member in members:
        other = first.setdefault(member.name, member)
        if other is not member:
            yield (
                f"{member.source}: name: '{member.name}' is the name of {other.source} too. Give "
                "each Airflow its own: asset keys begin with it."
            )


def _find_unknown_dags(member: Member) -> Iterable[str]:
    for dag_id in member.declaration.dags:
        if problem := _describe_missing(member, dag_id):
            yield f"{member.source}: dags.{dag_id}: {problem}"


def _find_broken_edges(member: Member, members: Mapping[str, Member]) -> Iterable[str]:
    for dag_id, dag in member.declaration.dags.items():
        where = f"{member.source}: dags.{dag_id}.depends_on"
        for name, upstream in dag.upstreams:
            if name not in members:
                yield f"{where}: there is no Airflow instance '{name}'{_or_list(name, members)}"
            elif problem := _describe_missing(members[name], upstream):
                yield f"{where}: {problem}"


def _describe_missing(member: Member, dag_id: str) -> str | None:
    """What is wrong with naming this DAG; None if nothing, or nothing that we can know."""
    snapshot = member.snapshot
    # An instance that lists no DAG at all has just started, or shows this account none.
    if snapshot is None or not snapshot.present_dag_ids or dag_id in snapshot.known_dag_ids:
        return None
    names = snapshot.present_dag_ids
    return f"Airflow '{member.name}' has no DAG '{dag_id}'{_or_list(dag_id, names)}"


def _or_list(name: str, known: Iterable[str]) -> str:
    """The nearest right name, or some of those that there are."""
    names = sorted(known)
    if near := suggest(name, names):
        return near
    shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    return f"; there is {shown}." if names else "; it has none."


def _find_cycle(members: Sequence[Member]) -> Iterable[str]:
    edges = {
        f"{member.name}/{dag_id}": [f"{name}/{upstream}" for name, upstream in dag.upstreams]
        for member in members
        for dag_id, dag in member.declaration.dags.items()
    }
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        path = " → ".join(error.args[1])
        yield f"depends_on goes round in a circle: {path}. Take one of these dependencies out."
