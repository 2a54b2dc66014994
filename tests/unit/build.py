"""Build declarations, runs and snapshots for tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from federation_defs.airflow.models import DagRun
from federation_defs.declaration import InstanceDeclaration
from federation_defs.state import DagSnapshot, Snapshot

CONNECTION = {"url": "http://127.0.0.1:1", "auth": {"type": "none"}}


def declare_instance(
    name: str = "metrics", dags: Mapping[str, Any] = MappingProxyType({}), **more: Any
) -> InstanceDeclaration:
    """Return an instance with these declarations of DAGs, and more keys."""
    values = {"name": name, **CONNECTION, "dags": dags, **more}
    return InstanceDeclaration.model_validate(values)


def build_declaration(name: str, **dags: list[str]) -> InstanceDeclaration:
    """Return an instance, whose DAGs depend on these upstreams (as instance/dag_id)."""
    return InstanceDeclaration.model_validate(
        {
            "name": name,
            "url": "http://127.0.0.1:1",
            "auth": {"type": "basic", "username": "me", "password": "s3cret"},
            "dags": {dag_id: {"depends_on": upstreams} for dag_id, upstreams in dags.items()},
        }
    )


def build_run(dag_id: str, run_id: str, state: str = "success", **values: Any) -> DagRun:
    """Return a DAG run; fields that are not given are None."""
    none: dict[str, Any] = {field.name: None for field in fields(DagRun)}
    named = {"dag_id": dag_id, "run_id": run_id, "state": state, "conf": {}}
    return DagRun(**{**none, **named, **values})


def build_dag_snapshot(dag_id: str, **values: Any) -> DagSnapshot:
    defaults: dict[str, Any] = {
        "dag_id": dag_id,
        "url": f"http://127.0.0.1:1/dags/{dag_id}",
        "is_paused": False,
        "description": None,
        "schedule": None,
        "owners": (),
        "airflow_tags": (),
    }
    return DagSnapshot(**defaults | values)


def build_snapshot(*dags: DagSnapshot | str, unselected: tuple[str, ...] = ()) -> Snapshot:
    built = [build_dag_snapshot(dag) if isinstance(dag, str) else dag for dag in dags]
    return Snapshot(
        taken_at="2026-01-01T00:00:00+00:00",
        dags={dag.dag_id: dag for dag in built},
        unselected=unselected,
    )
