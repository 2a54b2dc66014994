"""Find what is wrong across the instances of a federation. Pure, but for the import of `only_if`
functions."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter

from federation_defs.declaration import (
    DagDeclaration,
    DependencyDeclaration,
    InstanceDeclaration,
    suggest,
)
from federation_defs.dependencies.only_if import check_function
from federation_defs.state import Snapshot, is_selected

_MAX_SUGGESTIONS = 10  # of names for absent DAGs; each takes 0.05 s in an instance with 500 DAGs
_MAX_CYCLES = 10
_MAX_CHAIN = 5  # in DAGs
# The largest allowed ratio of the lengths of two partitions of which one needs the other.
_MAX_LENGTH_RATIO = 10_000  # a year has fewer hours
_MAX_RATIO_FOR_EACH = 1.5  # with `runs: each`; days of 23 to 25 hours are within it
_CHECK_TOGETHER = "If another project declares it, check that project, too."
_DECLARE_THERE = "; add it to `dags` or `select` there"
_RESTORE = "Restore the DAG, or remove its id from the declarations."
_NEEDED_KEYS = {"late": "deadline", "slow": "max_duration"}  # of an upstream, by state


@dataclass(frozen=True)
class Member:
    """One instance of the federation.

    Attributes:
        source: The file that declares it, for messages.
        project: The project that declares it. Only `federation check` sets it. The `only_if`
            functions of such a member are not imported.
    """

    source: str
    declaration: InstanceDeclaration
    project: str = ""

    @property
    def name(self) -> str:
        return self.declaration.name

    def locate(self, dag_id: str) -> str:
        """Return where a DAG is declared."""
        return f"{self.source}: dags.{dag_id}"


def find_problems(members: Sequence[Member], *, is_whole: bool = False) -> list[str]:
    """Return everything that the declarations alone show to be wrong, one sentence each.

    Args:
        is_whole: Whether these are the instances of all code locations.
    """
    by_name = {member.name: member for member in members}
    return [
        *_find_shared_names(members),
        *_find_wrong_elsewhere(by_name, is_whole=is_whole),
        *(
            f"{member.locate(dag_id)}.depends_on: {problem}"
            for member, dag_id, dag in _iterate_dags(members)
            for dependency in dag.depends_on
            for problem in (
                *_find_wrong_dependency(dependency, member, by_name, is_whole=is_whole),
                *_find_wrong_windows(dag, dependency, member, by_name),
            )
        ),
        *_find_unselected(members),
        *_find_cycles(members),
        *_find_unusable_functions(member for member in members if not member.project),
    ]


def _iterate_dags(members: Iterable[Member]) -> Iterator[tuple[Member, str, DagDeclaration]]:
    for member in members:
        for dag_id, dag in member.declaration.dags.items():
            yield member, dag_id, dag


def find_wrong_windows(member: Member, members: Sequence[Member]) -> dict[str, list[str]]:
    """Return what is wrong with windows and partitions of dependencies, by DAG id of a member."""
    by_name = {member.name: member for member in members}
    found = {
        dag_id: [
            problem
            for dependency in dag.depends_on
            for problem in _find_wrong_windows(dag, dependency, member, by_name)
        ]
        for dag_id, dag in member.declaration.dags.items()
    }
    return {dag_id: problems for dag_id, problems in found.items() if problems}


def _find_shared_names(members: Sequence[Member]) -> Iterator[str]:
    by_name: dict[str, Member] = {}
    by_state: dict[str, Member] = {}
    for member in members:
        # As Dagster (1.13) names the folder of a local state. Some file systems ignore case.
        state = re.sub(r"[^A-Za-z0-9._-]", "__", member.declaration.state_key).casefold()
        if (other := by_name.setdefault(member.name.casefold(), member)) is not member:
            yield (
                f"{member.source}: name: '{member.name}' is the name of {other.source} too (upper "
                "and lower case are the same). Give each Airflow its own: asset keys begin with it."
            )
        elif (other := by_state.setdefault(state, member)) is not member:
            yield (
                f"{member.source}: defs_state.key: '{member.declaration.state_key}' is the key of "
                f"{other.source} too. Remove it, or give each Airflow its own: each would show the "
                "other's DAGs."
            )


def _find_wrong_elsewhere(by_name: Mapping[str, Member], *, is_whole: bool) -> Iterator[str]:
    for member in by_name.values():
        for name in member.declaration.elsewhere:
            other = by_name.get(name)
            if other is not None and other.project == member.project:
                yield (
                    f"{member.source}: elsewhere: '{name}' is declared in this code location, in "
                    f"{other.source}; remove it"
                )
            elif other is None and is_whole:
                hint = _suggest_or_list(name, by_name, _CHECK_TOGETHER)
                yield f"{member.source}: elsewhere: no project declares '{name}'{hint}"


def _find_wrong_dependency(
    dependency: DependencyDeclaration,
    member: Member,
    by_name: Mapping[str, Member],
    *,
    is_whole: bool,
) -> Iterator[str]:
    match dependency.asset:
        case [instance, "dag", dag_id] if instance in {*by_name, *member.declaration.elsewhere}:
            yield f"the asset {dependency.name} is a DAG; write {instance}/{dag_id}"
    if dependency.upstream is None:
        return
    instance, dag_id = dependency.upstream
    upstream, is_elsewhere = by_name.get(instance), instance in member.declaration.elsewhere
    if upstream is not None and upstream.project != member.project and not is_elsewhere:
        yield (
            f"'{instance}' is declared in another code location, in {upstream.source}; write "
            f"`elsewhere: [{instance}]` in {member.source}"
        )
    if upstream is None and not is_elsewhere:
        known = {*by_name, *member.declaration.elsewhere}
        remedy = (
            f"Declare it, or write `elsewhere: [{instance}]` if another code location declares it."
        )
        hint = _suggest_or_list(instance, known, _CHECK_TOGETHER if is_whole else remedy)
        yield f"there is no Airflow instance '{instance}'{hint}"
    if upstream is None:
        return
    own, other = member.declaration.environment, upstream.declaration.environment
    if own and other and own != other and not dependency.across_environments:
        yield (
            f"{dependency.name} belongs to the environment '{other}', and {member.name} to '{own}';"
            f" if that is meant, write `across_environments: true` beside `dag: {dependency.name}`"
        )
    key = _NEEDED_KEYS.get(dependency.state)
    if key and getattr(upstream.declaration.find_dag(dag_id), key) is None:
        dags = upstream.declaration.dags
        able = [other for other, dag in dags.items() if getattr(dag, key) is not None]
        yield (
            f"{dependency.name} has no `{key}`, and so is never {dependency.state}; declare "
            f"dags.{dag_id}.{key} in {upstream.source}{suggest(dag_id, able)}"
        )


def _find_unselected(members: Sequence[Member]) -> Iterator[str]:
    """Find DAGs that other projects depend on, and that are not assets of their own project,
    whatever tags they have in Airflow."""
    by_name = {member.name: member for member in members}
    edges = [
        (member, dag_id, *upstream)
        for member, dag_id, dag in _iterate_dags(members)
        for upstream in dag.upstreams
    ]
    depended_on = {(member.project, name, upstream) for member, _, name, upstream in edges}
    for member, dag_id, name, upstream in edges:
        if (other := by_name.get(name)) is None or (other.project, name, upstream) in depended_on:
            continue
        declaration = other.declaration
        if upstream not in declaration.dags and not is_selected(upstream, None, declaration.select):
            yield (
                f"{member.locate(dag_id)}.depends_on: {other.source} neither declares nor "
                f"selects '{upstream}'{suggest(upstream, declaration.dags) or _DECLARE_THERE}"
            )


def _find_wrong_windows(
    dag: DagDeclaration,
    dependency: DependencyDeclaration,
    member: Member,
    by_name: Mapping[str, Member],
) -> Iterator[str]:
    """Find what is wrong with the window of a dependency, and with the partitions of both sides, as
    far as they are known."""
    name, window = dependency.name, dependency.window
    instance, dag_id = dependency.upstream or ("", "")
    known, is_elsewhere = by_name.get(instance), instance in member.declaration.elsewhere
    if dag.partitions is None or (known is None and dependency.upstream and not is_elsewhere):
        return
    partitions = known.declaration.find_dag(dag_id).partitions if known else dependency.partitions
    if known and dependency.partitions and not is_elsewhere:
        yield f"{name} is declared in {known.source}; remove the `partitions` beside it"
    if partitions and partitions.is_auto:
        return
    if known and is_elsewhere and dependency.partitions != partitions:
        declared = (
            "none"
            if partitions is None
            else partitions.model_dump(mode="json", exclude_defaults=True)
        )
        yield (
            f"the partitions of {name} are declared otherwise in {known.source}; write those "
            f"beside `dag: {name}`: {declared}"
        )
        return
    if dag.partitions.is_auto:
        return
    if is_elsewhere and partitions is None and window not in ("last", "current"):
        yield (
            f"{name} is declared in another code location; write its `partitions` beside "
            f"`dag: {name}`, as declared there, or if it has none, `window: last` or current"
        )
    elif window in ("same", "previous") and not dependency.upstream:
        yield (
            f"updates of the asset {name} belong to the partitions that they name; write last or "
            f"current, for those without a partition, in place of `window: {window}`"
        )
    elif window in ("same", "previous") and partitions is None:
        yield (
            f"{name} has no partitions, and so no `window: {window}`; declare "
            f"dags.{dag_id}.partitions, or write last or current"
        )
    elif window in ("last", "current") and partitions is not None:
        yield f"{name} has partitions; write `window: same` or previous, in place of {window}"
    elif window == "current" and dag.partitions.date == "data_interval_end":
        yield (
            f"`window: current` of {name} would run partitions before the end of their windows, "
            "and with `date: data_interval_end` that end is the date of the run; write another date"
        )
    if partitions is not None:
        ratio = dag.partitions.cadence_s / partitions.cadence_s
        yield from _find_wrong_ratio(ratio, name, dag)


def _find_wrong_ratio(ratio: float, name: str, dag: DagDeclaration) -> Iterator[str]:
    """Find if a partition of the DAG or of its upstream has too many partitions of the other.

    Args:
        ratio: The length of the DAG's partitions, divided by that of the upstream's.
        name: The upstream.
    """
    if max(ratio, 1 / ratio) > _MAX_LENGTH_RATIO:
        longer, shorter = ("this DAG", name) if ratio > 1 else (name, "this DAG")
        yield (
            f"a partition of {longer} is as long as {max(ratio, 1 / ratio):.0f} partitions of "
            f"{shorter}; put a DAG between them whose partitions are days"
        )
    if dag.trigger.runs == "each" and ratio > _MAX_RATIO_FOR_EACH:
        yield (
            f"with `runs: each`, each of the {ratio:.0f} partitions of {name} that a partition of "
            "this DAG needs would run it; remove `runs`"
        )


def _find_unusable_functions(members: Iterable[Member]) -> Iterator[str]:
    check = cache(check_function)
    for member, dag_id, dag in _iterate_dags(members):
        name = dag.trigger.only_if
        if name is not None and (problem := check(name)):
            yield f"{member.locate(dag_id)}.trigger.only_if: {name} {problem}"


def find_named_dags(members: Iterable[Member]) -> dict[str, dict[str, list[str]]]:
    """Return the DAGs that are declared or depended on, and where, by instance and DAG id."""
    named: defaultdict[str, dict[str, list[str]]] = defaultdict(dict)
    for member, dag_id, dag in _iterate_dags(members):
        where = member.locate(dag_id)
        named[member.name].setdefault(dag_id, []).append(where)
        for name, upstream in dag.upstreams:
            named[name].setdefault(upstream, []).append(f"{where}.depends_on")
    return dict(named)


def find_absent_dags(
    instance: str, snapshot: Snapshot | None, named: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Return the named DAGs that the instance is known not to have. By id, a sentence with the
    places that name the DAG, and what may be meant."""
    # An instance that lists no DAG has just started, or the account may see none.
    if snapshot is None or not snapshot.present_dag_ids:
        return {}
    absent = named.keys() - snapshot.present_dag_ids
    problems = {}
    for dag_id in sorted(absent):
        what = f"Airflow '{instance}' has no DAG '{dag_id}'"
        if dag_id in snapshot.dags:
            what += f": its file has gone, or does not parse. {_RESTORE}"
        elif len(absent) <= _MAX_SUGGESTIONS:
            what += _suggest_or_list(dag_id, snapshot.present_dag_ids, _RESTORE)
        else:
            what += f". {_RESTORE}"
        problems[dag_id] = f"{', '.join(named[dag_id])}: {what}"
    return problems


def find_dateless_triggers(member: Member, snapshot: Snapshot | None) -> Iterator[str]:
    """Find the DAGs with `logical_date: none` in an instance that is known to be a 2.x."""
    for dag_id, dag in member.declaration.dags.items() if snapshot and snapshot.api == "v1" else ():
        if dag.trigger.logical_date == "none":
            yield (
                f"{member.locate(dag_id)}.trigger.logical_date: Airflow '{member.name}' is "
                "a 2.x, where every run has a logical date; remove the key"
            )


def _suggest_or_list(name: str, known: Iterable[str], remedy: str) -> str:
    """Return the most similar name, or the first known names and what else may help, as the end of
    a sentence."""
    names = sorted(known)
    listed = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    return suggest(name, names) or f"; there is {listed}. {remedy}"


def _find_cycles(members: Sequence[Member]) -> Iterator[str]:
    edges = _build_edges(members)
    for _ in range(_MAX_CYCLES):
        try:
            TopologicalSorter(edges).prepare()
        except CycleError as error:
            path: list[str] = error.args[1]
            yield (
                f"{_locate(path[0], members)}.depends_on: there is a cycle: {' → '.join(path)}; "
                "remove one of these dependencies"
            )
            edges[path[1]].remove(path[0])
        else:
            return


def find_deep_chains(members: Sequence[Member]) -> Iterator[str]:
    """Find chains of more than five DAGs that depend on each other. If chains share a DAG, only
    the longest is found.

    Args:
        members: Without cycles.
    """
    edges = _build_edges(members)
    depths: dict[str, int] = {}
    for dag in TopologicalSorter(edges).static_order():
        depths[dag] = 1 + max((depths[upstream] for upstream in edges.get(dag, ())), default=0)
    seen: set[str] = set()
    for dag in sorted(depths, key=lambda dag: (-depths[dag], dag)):
        if depths[dag] <= _MAX_CHAIN:
            return
        chain = [dag]
        while chain[-1] not in seen and (upstreams := edges.get(chain[-1])):
            chain.append(max(upstreams, key=depths.__getitem__))
        if chain[-1] not in seen:
            yield (
                f"{_locate(dag, members)}.depends_on: a chain of {len(chain)} DAGs, in which a "
                f"delay is hard to trace: {' → '.join(reversed(chain))}. Where a DAG needs only "
                "an earlier one, let it depend on that."
            )
        seen.update(chain)


def _build_edges(members: Iterable[Member]) -> dict[str, list[str]]:
    """Return the upstream DAGs of each declared DAG, all as instance/dag_id."""
    return {
        f"{member.name}/{dag_id}": ["/".join(upstream) for upstream in dag.upstreams]
        for member, dag_id, dag in _iterate_dags(members)
    }


def _locate(dag: str, members: Iterable[Member]) -> str:
    """Return where a DAG, as instance/dag_id, is declared."""
    instance, dag_id = dag.split("/", 1)
    return next(member.locate(dag_id) for member in members if member.name == instance)
