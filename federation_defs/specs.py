"""Build asset specs from a declaration and a snapshot. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import dagster as dg

from federation_defs.automation import Upstream, build_condition
from federation_defs.declaration import (
    DagDeclaration,
    DependencyDeclaration,
    InstanceDeclaration,
    find_upstream,
)
from federation_defs.naming import build_asset_key, build_owner, build_tag_key
from federation_defs.partition_mapping import build_mappings, select_decided_by_events
from federation_defs.state import DagSnapshot, Snapshot

_NAMED = 10  # upstreams in a description
_STATES = {
    "success": "succeeded",
    "failure": "failed",
    "finished": "ended",
    "late": "missed its deadline",
    "slow": "exceeded its max_duration",
}
_RERUNS = {
    "follow": "",
    "ignore": " An upstream run that is cleared and ends again starts no other run.",
    "rerun": " When an upstream run is cleared and ends again, the run that it led to is cleared "
    "and run again.",
}


def build_specs(
    declaration: InstanceDeclaration,
    snapshot: Snapshot | None,
    referenced: Collection[str],
    others: Mapping[str, InstanceDeclaration] = MappingProxyType({}),
    undecided: Collection[str] = (),
    *,
    is_for_run: bool = False,
) -> dict[str, dg.AssetSpec]:
    """Return the asset specs of an instance by DAG id: one for each DAG that is in the snapshot,
    declared, or referenced.

    Args:
        snapshot: The last state; None if there is none.
        referenced: Ids of further DAGs of this instance, such as those that other DAGs depend on.
        others: The declarations of other instances, by name. An instance that is missing here
            belongs to another code location.
        undecided: Ids of DAGs that nothing starts, because of their partitions.
        is_for_run: Whether to return only the DAGs of `referenced`, without conditions.
    """
    dags = snapshot.dags if snapshot else {}
    specs = {}
    instances = {**others, declaration.name: declaration}
    unconditional, chosen = {*declaration.dags}, {*referenced}
    if not is_for_run:
        unconditional = {*select_decided_by_events(declaration.dags, instances), *undecided}
        chosen |= {*(snapshot.selected_dag_ids if snapshot else ()), *declaration.dags}
    for dag_id in sorted(chosen):
        declared = declaration.find_dag(dag_id)
        key = build_asset_key(declaration.name, dag_id)
        condition = None
        if declared.depends_on and dag_id not in unconditional:
            upstreams = _classify_upstreams(declared, declaration.name, instances)
            detached = None if declared.trigger.wait else key
            condition = build_condition(upstreams, when=declared.trigger.when, detached=detached)
        specs[dag_id] = dg.AssetSpec(
            key=key,
            group_name=declaration.name,
            deps=_build_deps(declared, instances),
            automation_condition=condition,
            freshness_policy=declared.deadline and declared.deadline.build_policy(),  # for display
            partitions_def=declared.partitions and declared.partitions.build_definition(),
            **_describe(declaration.name, dag_id, declared, dags.get(dag_id)),
        )
    return specs


def _build_deps(
    dag: DagDeclaration, instances: Mapping[str, InstanceDeclaration]
) -> list[dg.AssetDep]:
    """Return the dependencies of a DAG's asset. Dagster uses them for the lineage, and to select
    partitions of upstreams when a person materializes several assets at once."""
    keys = dict.fromkeys(edge.key for edge in dag.depends_on)
    mappings = zip(dag.depends_on, build_mappings(dag, instances), strict=False)
    for edge, mapping in mappings:
        keys[edge.key] = mapping.build_dagster_mapping()
    return [dg.AssetDep(key, partition_mapping=mapping) for key, mapping in keys.items()]


def _classify_upstreams(
    dag: DagDeclaration, own: str, instances: Mapping[str, InstanceDeclaration]
) -> dict[dg.AssetKey, Upstream]:
    """Return what a DAG of an instance depends on, and whether Dagster runs it and waits for it."""

    def classify(upstream: tuple[str, str]) -> Upstream:
        declared = find_upstream(instances, upstream)
        if declared is None:
            return "elsewhere"
        if not declared.depends_on:
            return "observed"
        return "detached" if upstream[0] == own and not declared.trigger.wait else "executed"

    found: dict[dg.AssetKey, Upstream] = {}
    for upstream in dag.upstreams:
        found[build_asset_key(*upstream)] = classify(upstream)
    for key in dag.upstream_assets:
        found[dg.AssetKey(key)] = "asset"
    return found


def _describe(
    instance: str, dag_id: str, declared: DagDeclaration, dag: DagSnapshot | None
) -> dict[str, Any]:
    """Return the fields of a spec that describe the DAG as Airflow does, and when it runs."""
    default = f"Materialized by each successful run of DAG {dag_id} in Airflow {instance}."
    paragraphs = [(dag and dag.description) or default, describe_trigger(declared)]
    fields: dict[str, Any] = {
        "kinds": {"airflow", "dag"},
        "metadata": {"Dag ID": dag_id},
        "description": "\n\n".join(filter(None, paragraphs)),
    }
    if dag is None:
        return fields
    fields["metadata"] |= {
        "Link to DAG": dg.MetadataValue.url(dag.url),
        "Schedule": dag.schedule or "none",
        "Paused": dag.is_paused,
    }
    return fields | {
        "owners": [build_owner(owner) for owner in dag.owners if owner],
        "tags": {build_tag_key(tag): "" for tag in dag.airflow_tags if tag},
    }


def describe_trigger(dag: DagDeclaration) -> str:
    """Return when Dagster runs a DAG, as sentences; empty if it does not."""
    if not dag.depends_on:
        return ""
    trigger = dag.trigger
    what = _describe_dependencies(dag.depends_on, "and" if trigger.when == "all" else "or")
    runs, several = "Runs", f", {trigger.at_once if trigger.at_once > 1 else 'one'} at a time"
    if dag.partitions is not None:
        runs, what = "Runs a partition", f"{what} for it"
    if trigger.runs == "each":
        sentence = f"{runs} once for each time that {what}, in that order{several}"
    elif trigger.when == "all" and len(dag.depends_on) > 1:
        sentence = f"{runs} when {what}, all since its last run"
    else:
        sentence = f"{runs} when {what}"
    if dag.partitions is not None and trigger.runs == "latest":
        sentence += several
    condition = f", if {trigger.only_if} returns Run" if trigger.only_if else ""
    return f"{sentence}{condition}.{_describe_granularity(dag)}{_RERUNS[trigger.reruns]}"


def _describe_granularity(dag: DagDeclaration) -> str:
    if dag.granularity == "all":
        return ""
    needed = {"last": "the last one", "any": "any one"}.get(str(dag.granularity), dag.granularity)
    return f" It needs {needed} of the partitions that an upstream has in its time."


def _describe_dependencies(dependencies: Sequence[DependencyDeclaration], link: str) -> str:
    """Return clauses such as "a/x or b/y has succeeded or c/z has failed"."""
    by_state: dict[str, list[str]] = {}
    for each in dependencies:
        verb = "was materialized" if each.dag is None else f"has {_STATES[each.state]}"
        by_state.setdefault(verb, []).append(each.name)
    clauses = []
    for verb, names in by_state.items():
        shown = names[:_NAMED]
        if len(names) > _NAMED:
            shown.append(f"{len(names) - _NAMED} more")
        is_plural = link == "and" and len(names) > 1
        plural = verb.replace("has ", "have ", 1).replace("was ", "were ", 1)
        clauses.append(f"{f' {link} '.join(shown)} {plural if is_plural else verb}")
    return f" {link} ".join(clauses)
