"""Build asset specs from a declaration and a snapshot. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import dagster as dg

from federation_defs.automation import Upstream, build_condition
from federation_defs.declaration import DagDeclaration, InstanceDeclaration
from federation_defs.declaration.wording import describe_trigger
from federation_defs.naming import build_asset_key, build_owner, build_tag_key
from federation_defs.partition_mapping import build_mappings, select_decided_by_events
from federation_defs.state import DagSnapshot, Snapshot


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
        snapshot: The last known state; None if the instance was never reached.
        referenced: Ids of this instance's DAGs that any DAG of the federation depends on.
        others: The declarations of other instances, by name. Dagster is taken to run the DAGs of
            an instance that is missing here.
        undecided: Ids of DAGs that nothing starts.
        is_for_run: Return those of `referenced` only, and without conditions.
    """
    dags = snapshot.dags if snapshot else {}
    undescribed = snapshot.undescribed if snapshot else ()
    specs = {}
    instances = {**others, declaration.name: declaration}
    unconditional, chosen = {*declaration.dags}, {*referenced}
    if not is_for_run:
        unconditional = {*select_decided_by_events(declaration.dags, instances), *undecided}
        chosen |= {*dags, *undescribed, *declaration.dags}
    for dag_id in sorted(chosen):
        declared = declaration.find_dag(dag_id)
        key = build_asset_key(declaration.name, dag_id)
        condition = None
        if declared.depends_on and dag_id not in unconditional:
            upstreams = _classify_upstreams(declared, declaration, others)
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
    """Return what a DAG depends on. Dagster draws the lineage by it, and selects partitions of
    upstreams by it when a person materializes several assets at once."""
    keys = dict.fromkeys(edge.key for edge in dag.depends_on)
    mappings = zip(dag.depends_on, build_mappings(dag, instances), strict=False)
    for edge, mapping in mappings:
        keys[edge.key] = mapping.build_dagster_mapping()
    return [dg.AssetDep(key, partition_mapping=mapping) for key, mapping in keys.items()]


def _classify_upstreams(
    dag: DagDeclaration,
    declaration: InstanceDeclaration,
    others: Mapping[str, InstanceDeclaration],
) -> dict[dg.AssetKey, Upstream]:
    """Return what a DAG depends on, and whether Dagster runs it and waits for it."""
    upstreams: dict[dg.AssetKey, Upstream] = {}
    for instance, dag_id in dag.upstreams:
        is_own = instance == declaration.name
        known = declaration if is_own else others.get(instance)
        upstream = known.find_dag(dag_id) if known else None
        kind: Upstream = "executed"
        if upstream and not upstream.depends_on:
            kind = "observed"
        elif upstream and is_own and not upstream.trigger.wait:
            kind = "detached"
        upstreams[build_asset_key(instance, dag_id)] = kind
    return {**upstreams, **{dg.AssetKey(key): "asset" for key in dag.upstream_assets}}


def _describe(
    instance: str, dag_id: str, declared: DagDeclaration, dag: DagSnapshot | None
) -> dict[str, Any]:
    """Return the fields of a spec that tell what Airflow says about the DAG, and when it runs."""
    default = f"Materialized by each successful run of DAG {dag_id} in Airflow {instance}."
    said = [(dag and dag.description) or default, describe_trigger(declared)]
    fields: dict[str, Any] = {
        "kinds": {"airflow", "dag"},
        "metadata": {"Dag ID": dag_id},
        "description": "\n\n".join(filter(None, said)),
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
