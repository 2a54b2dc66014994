"""From a snapshot and a declaration to asset specs. Pure: no I/O, the same answer every time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from federation_defs.automation import build_condition
from federation_defs.declaration import DagDeclaration, InstanceDeclaration
from federation_defs.naming import build_asset_key, build_owner, build_tag_key
from federation_defs.partitions import Partitioning
from federation_defs.state import DagSnapshot, Snapshot

# What airlift gives each DAG asset, for those DAGs that no snapshot knows.
_KINDS = {"airflow", "dag"}


def build_specs(
    declaration: InstanceDeclaration, snapshot: Snapshot | None, referenced: set[str]
) -> dict[str, dg.AssetSpec]:
    """The asset specs of one instance, by DAG id: of the snapshot's DAGs and of the declared ones.

    Args:
        snapshot: The last known state, or None if the instance was never reached.
        referenced: DAG ids that other DAGs depend on. Like those declared they get an asset even
            if no snapshot holds them.
    """
    dags = snapshot.dags if snapshot else {}
    return {
        dag_id: _build_spec(declaration, dag_id, dags.get(dag_id), declaration.dags.get(dag_id))
        for dag_id in sorted({*dags, *declaration.dags, *referenced})
    }


def _build_spec(
    declaration: InstanceDeclaration,
    dag_id: str,
    dag: DagSnapshot | None,
    declared: DagDeclaration | None,
) -> dg.AssetSpec:
    upstreams = declared.upstreams if declared else []
    partitions = declared.partitions if declared else None
    waits = declared is None or declared.trigger.wait
    unwaited = {
        (declaration.name, one) for one, dag in declaration.dags.items() if not dag.trigger.wait
    }
    follows_unwaited = not unwaited.isdisjoint(upstreams)
    condition = build_condition(waits=waits, follows_unwaited=follows_unwaited)
    return dg.AssetSpec(
        key=build_asset_key(declaration.name, dag_id),
        deps=[build_asset_key(instance, upstream) for instance, upstream in upstreams],
        description=(dag.description if dag else None)
        or f"Materialized by each successful run of DAG {dag_id} in Airflow {declaration.name}.",
        group_name=declaration.name,
        owners=[build_owner(owner) for owner in dag.owners if owner] if dag else [],
        tags={build_tag_key(tag): "" for tag in dag.airflow_tags} | dict(dag.tags) if dag else {},
        kinds=_KINDS if dag is None else None,
        metadata=_build_metadata(dag) if dag else {"Dag ID": dag_id},
        automation_condition=condition if upstreams else None,
        partitions_def=Partitioning(partitions).definition if partitions else None,
    )


def _build_metadata(dag: DagSnapshot) -> Mapping[str, Any]:
    metadata = dg.deserialize_value(dag.metadata, dict)
    return {
        **metadata,
        "Link to DAG": dg.MetadataValue.url(dag.url),
        "Schedule": dag.schedule or "none",
        "Paused": dag.is_paused,
    }
