"""Find what is wrong across the instances of a federation. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from federation_defs.declaration import InstanceDeclaration, suggest
from federation_defs.state import Snapshot

_MANY = 10  # absent DAGs: to look for similar names takes 0.05 s each, in an instance with 500


@dataclass(frozen=True)
class Member:
    """One instance of the federation.

    Attributes:
        source: The file that declares it, for messages.
    """

    source: str
    declaration: InstanceDeclaration

    @property
    def name(self) -> str:
        return self.declaration.name


def find_problems(members: Sequence[Member]) -> list[str]:
    """Return everything that the declarations alone show to be wrong, one sentence each."""
    names = {member.name for member in members}
    return [
        *_find_shared_names(members),
        *(problem for member in members for problem in _find_unknown_instances(member, names)),
        *_find_cycle(members),
    ]


def _find_shared_names(members: Sequence[Member]) -> Iterator[str]:
    by_name: dict[str, Member] = {}
    by_state: dict[str, Member] = {}
    for member in members:
        # As Dagster (1.13) names the folder of a local state. Some file systems ignore case.
        state = re.sub(r"[^A-Za-z0-9._-]", "__", member.declaration.state_key).casefold()
        if (other := by_name.setdefault(member.name.casefold(), member)) is not member:
            yield (
                f"{member.source}: name: '{member.name}' is the name of {other.source} too, apart "
                "from case at most. Give each Airflow its own: asset keys begin with it."
            )
        elif (other := by_state.setdefault(state, member)) is not member:
            yield (
                f"{member.source}: defs_state.key: '{member.declaration.state_key}' is the key of "
                f"{other.source} too. Remove it, or give each Airflow its own: each would show the "
                "other's DAGs."
            )


def _find_unknown_instances(member: Member, names: Collection[str]) -> Iterator[str]:
    for dag_id, dag in member.declaration.dags.items():
        for name, _ in dag.upstreams:
            if name not in names:
                hint = _suggest_or_list(name, names)
                where = f"{member.source}: dags.{dag_id}.depends_on"
                yield f"{where}: there is no Airflow instance '{name}'{hint}"


def find_named_dags(members: Iterable[Member]) -> dict[str, dict[str, list[str]]]:
    """Return the DAGs that are declared or depended on, and where, by instance and DAG id."""
    named: defaultdict[str, dict[str, list[str]]] = defaultdict(dict)
    for member in members:
        for dag_id, dag in member.declaration.dags.items():
            where = f"{member.source}: dags.{dag_id}"
            named[member.name].setdefault(dag_id, []).append(where)
            for name, upstream in dag.upstreams:
                named[name].setdefault(upstream, []).append(f"{where}.depends_on")
    return dict(named)


def find_absent_dags(
    instance: str, snapshot: Snapshot | None, named: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Return those of the named DAGs that the instance is known not to have, each with a sentence
    that says where it is named and what may be meant."""
    # An instance that lists no DAG has just started, or the account may see none.
    if snapshot is None or not snapshot.present_dag_ids:
        return {}
    absent = named.keys() - snapshot.present_dag_ids
    problems = {}
    for dag_id in sorted(absent):
        what = f"Airflow '{instance}' has no DAG '{dag_id}'"
        if dag_id in snapshot.dags:
            what += ": its file has gone, or does not parse."
        elif len(absent) <= _MANY:
            what += _suggest_or_list(dag_id, snapshot.present_dag_ids)
        problems[dag_id] = f"{', '.join(named[dag_id])}: {what}"
    return problems


def find_dateless_triggers(member: Member, snapshot: Snapshot | None) -> Iterator[str]:
    """Find the DAGs whose runs shall have no logical date, in an instance known to be a 2.x."""
    for dag_id, dag in member.declaration.dags.items() if snapshot and snapshot.api == "v1" else ():
        if dag.trigger.logical_date == "none":
            yield (
                f"{member.source}: dags.{dag_id}.trigger.logical_date: Airflow '{member.name}' is "
                "a 2.x, where every run has a logical date; remove the key"
            )


def _suggest_or_list(name: str, known: Iterable[str]) -> str:
    """Return the most similar name, or the first known names, as the end of a sentence."""
    names = sorted(known)
    listed = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    return suggest(name, names) or f"; there is {listed}."


def _find_cycle(members: Sequence[Member]) -> Iterator[str]:
    edges = {
        f"{member.name}/{dag_id}": ["/".join(upstream) for upstream in dag.upstreams]
        for member in members
        for dag_id, dag in member.declaration.dags.items()
    }
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        path = " → ".join(error.args[1])
        yield f"depends_on has a cycle: {path}. Remove one of these dependencies."
