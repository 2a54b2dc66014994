"""Build asset specs from a declaration and a snapshot. Pure."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any

import dagster as dg

from federation_defs.automation import build_condition
from federation_defs.declaration import InstanceDeclaration
from federation_defs.naming import build_asset_key, build_owner, build_tag_key
from federation_defs.partitions import Partitioning
from federation_defs.state import DagSnapshot, Snapshot


def build_specs(
    declaration: InstanceDeclaration, snapshot: Snapshot | None, referenced: AbstractSet[str]
) -> dict[str, dg.AssetSpec]:
    """Return the asset specs of an instance by DAG id: one for each DAG that is in the snapshot,
    declared, or referenced.

    Args:
        snapshot: The last known state; None if the instance was never reached.
        referenced: Ids of this instance's DAGs that any DAG of the federation depends on.
    """
    dags = snapshot.dags if snapshot else {}
    undescribed = snapshot.undescribed if snapshot else ()
    waits = {dag_id: dag.trigger.wait for dag_id, dag in declaration.dags.items()}
    detached = {(declaration.name, dag_id) for dag_id in waits if not waits[dag_id]}
    specs = {}
    for dag_id in sorted({*dags, *undescribed, *declaration.dags, *referenced}):
        declared = declaration.find_dag(dag_id)
        condition = None
        if declared.depends_on:
            follows_detached = not detached.isdisjoint(declared.upstreams)
            condition = build_condition(waits=waits[dag_id], follows_detached=follows_detached)
        specs[dag_id] = dg.AssetSpec(
            key=build_asset_key(declaration.name, dag_id),
            group_name=declaration.name,
            deps=[build_asset_key(instance, upstream) for instance, upstream in declared.upstreams],
            automation_condition=condition,
            partitions_def=declared.partitions and Partitioning(declared.partitions).definition,
            **_describe(declaration.name, dag_id, dags.get(dag_id)),
        )
    return specs


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
