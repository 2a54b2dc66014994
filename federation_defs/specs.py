"""Build asset specs from a declaration and a snapshot. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import Any

import dagster as dg

from federation_defs.automation import Upstreams, build_condition
from federation_defs.declaration import DagDeclaration, InstanceDeclaration
from federation_defs.naming import build_asset_key, build_owner, build_tag_key
from federation_defs.partitions import Partitioning
from federation_defs.state import DagSnapshot, Snapshot


def build_specs(
    declaration: InstanceDeclaration,
    snapshot: Snapshot | None,
    referenced: AbstractSet[str],
    others: Mapping[str, InstanceDeclaration] = MappingProxyType({}),
) -> dict[str, dg.AssetSpec]:
    """Return the asset specs of an instance by DAG id: one for each DAG that is in the snapshot,
    declared, or referenced.

    Args:
        snapshot: The last known state; None if the instance was never reached.
        referenced: Ids of this instance's DAGs that any DAG of the federation depends on.
        others: The declarations of other instances, by name. Dagster is taken to run the DAGs of
            an instance that is missing here.
    """
    dags = snapshot.dags if snapshot else {}
    undescribed = snapshot.undescribed if snapshot else ()
    specs = {}
    for dag_id in sorted({*dags, *undescribed, *declaration.dags, *referenced}):
        declared = declaration.find_dag(dag_id)
        condition = None
        if declared.depends_on and not declared.is_decided_by_events:
            condition = build_condition(
                waits=declared.trigger.wait,
                upstreams=_classify_upstreams(declared, declaration, others),
                is_partitioned=declared.partitions is not None,
            )
        specs[dag_id] = dg.AssetSpec(
            key=build_asset_key(declaration.name, dag_id),
            group_name=declaration.name,
            deps=[
                *(build_asset_key(instance, upstream) for instance, upstream in declared.upstreams),
                *map(dg.AssetKey, declared.upstream_assets),
            ],
            automation_condition=condition,
            freshness_policy=declared.deadline and declared.deadline.build_policy(),  # for display
            partitions_def=declared.partitions and Partitioning(declared.partitions).definition,
            **_describe(declaration.name, dag_id, dags.get(dag_id)),
        )
    return specs


def _classify_upstreams(
    dag: DagDeclaration,
    declaration: InstanceDeclaration,
    others: Mapping[str, InstanceDeclaration],
) -> Upstreams:
    """Return whether Dagster runs upstreams of a DAG, and waits for those of its own instance."""
    kind: Upstreams = "observed"
    for instance, dag_id in dag.upstreams:
        is_own = instance == declaration.name
        known = declaration if is_own else others.get(instance)
        upstream = known and known.dags.get(dag_id)
        if known and not (upstream and upstream.depends_on):
            continue
        kind = "executed"
        if is_own and upstream and not upstream.trigger.wait:
            return "detached"
    return kind


def _describe(instance: str, dag_id: str, dag: DagSnapshot | None) -> dict[str, Any]:
    """Return the fields of a spec that tell what Airflow says about the DAG."""
    default = f"Materialized by each successful run of DAG {dag_id} in Airflow {instance}."
    fields: dict[str, Any] = {"kinds": {"airflow", "dag"}, "metadata": {"Dag ID": dag_id}}
    if dag is None:
        return fields | {"description": default}
    fields["metadata"] |= {
        "Link to DAG": dg.MetadataValue.url(dag.url),
        "Schedule": dag.schedule or "none",
        "Paused": dag.is_paused,
    }
    return fields | {
        "description": dag.description or default,
        "owners": [build_owner(owner) for owner in dag.owners if owner],
        "tags": {build_tag_key(tag): "" for tag in dag.airflow_tags if tag},
    }
