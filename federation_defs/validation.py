"""Find what is wrong across the instances of a federation. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from federation_defs.declaration import InstanceDeclaration, suggest
from federation_defs.state import Snapshot


@dataclass(frozen=True)
class Member:
    """One instance of the federation.

    Attributes:
        source: The file that declares it, for messages.
        snapshot: Its last known state; None if it was never reached.
    """

    source: str
    declaration: InstanceDeclaration
    snapshot: Snapshot | None

    @property
    def name(self) -> str:
        return self.declaration.name


def find_problems(members: Sequence[Member]) -> list[str]:
    """Return everything that is wrong, one sentence each."""
    by_name = {member.name: member for member in members}
    return [
        *_find_shared_names(members),
        *(problem for member in members for problem in _find_unknown_names(member, by_name)),
        *_find_cycle(members),
    ]


def _find_shared_names(members: Sequence[Member]) -> Iterator[str]:
    first: dict[str, Member] = {}
    for member in members:
        other = first.setdefault(member.name, member)
        if other is not member:
            yield (
                f"{member.source}: name: '{member.name}' is the name of {other.source} too. Give "
                "each Airflow its own: asset keys begin with it."
            )


def _find_unknown_names(member: Member, members: Mapping[str, Member]) -> Iterator[str]:
    for dag_id, dag in member.declaration.dags.items():
        where = f"{member.source}: dags.{dag_id}"
        if problem := _describe_missing_dag(member, dag_id):
            yield f"{where}: {problem}"
        for name, upstream in dag.upstreams:
            if name not in members:
                hint = _suggest_or_list(name, members)
                yield f"{where}.depends_on: there is no Airflow instance '{name}'{hint}"
            elif problem := _describe_missing_dag(members[name], upstream):
                yield f"{where}.depends_on: {problem}"


def _describe_missing_dag(member: Member, dag_id: str) -> str | None:
    """Return a problem if the instance is known to have no such DAG, and never to have had one."""
    snapshot = member.snapshot
    # An instance that lists no DAG has just started, or the account may see none.
    if snapshot is None or not snapshot.present_dag_ids or dag_id in snapshot.known_dag_ids:
        return None
    hint = _suggest_or_list(dag_id, snapshot.present_dag_ids)
    return f"Airflow '{member.name}' has no DAG '{dag_id}'{hint}"


def _suggest_or_list(name: str, known: Iterable[str]) -> str:
    """Return the most similar name, or the first known names, as the end of a sentence."""
    names = sorted(known)
    listed = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    return suggest(name, names) or f"; there is {listed}."


def _find_cycle(members: Sequence[Member]) -> Iterator[str]:
    edges = {
        f"{member.name}/{dag_id}": dag.depends_on
        for member in members
        for dag_id, dag in member.declaration.dags.items()
    }
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        path = " → ".join(error.args[1])
        yield f"depends_on has a cycle: {path}. Remove one of these dependencies."
