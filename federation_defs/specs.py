"""Build asset specs from a declaration and a snapshot. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
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
    referenced: AbstractSet[str],
    others: Mapping[str, InstanceDeclaration] = MappingProxyType({}),
    undecided: Collection[str] = (),
) -> dict[str, dg.AssetSpec]:
    """Return the asset specs of an instance by DAG id: one for each DAG that is in the snapshot,
    declared, or referenced.

    Args:
        snapshot: The last known state; None if the instance was never reached.
        referenced: Ids of this instance's DAGs that any DAG of the federation depends on.
        others: The declarations of other instances, by name. One that is missing here belongs to
            another code location.
        undecided: Ids of DAGs that nothing starts.
    """
    dags = snapshot.dags if snapshot else {}
    undescribed = snapshot.undescribed if snapshot else ()
    specs = {}
    instances = {**others, declaration.name: declaration}
    by_events = select_decided_by_events(declaration.dags, instances)
    for dag_id in sorted({*dags, *undescribed, *declaration.dags, *referenced}):
        declared = declaration.find_dag(dag_id)
        key = build_asset_key(declaration.name, dag_id)
        upstreams = _classify_upstreams(declared, declaration, others)
        condition = None
        if upstreams and dag_id not in by_events and dag_id not in undecided:
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
        if upstream is None:
            kind = "elsewhere"
        elif not upstream.depends_on:
            kind = "observed"
        elif is_own and not upstream.trigger.wait:
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
