"""Snapshots of an instance: the DAGs that it has, and dagster-airlift's metadata of their assets.

A snapshot is the state of a component: fetched when Dagster refreshes the state, kept on disk or in
Dagster's state storage, and read at every load. So a code location loads with every Airflow down,
and a run worker needs no import of dagster-airlift, which takes longer than the rest of its start.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import dagster as dg
from pydantic import TypeAdapter, ValidationError

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import Dag
from federation_defs.declaration import SelectDeclaration

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DagSnapshot:
    """One selected DAG.

    Attributes:
        metadata: dagster-airlift's metadata of the asset, from `dagster.serialize_value`.
        tags: dagster-airlift's tags of the asset (its kinds).
        airflow_tags: The DAG's own tags.
    """

    dag_id: str
    url: str
    is_paused: bool
    description: str | None
    schedule: str | None
    owners: tuple[str, ...]
    airflow_tags: tuple[str, ...]
    metadata: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Snapshot:
    """The DAGs of an instance at one time.

    Attributes:
        taken_at: ISO 8601, UTC.
        dags: The selected DAGs by id.
        unselected: The ids of the other DAGs.
        vanished: The ids of DAGs that an earlier snapshot had and the instance no longer has. A
            dependency on one of them is no typing error.
    """

    taken_at: str
    dags: Mapping[str, DagSnapshot]
    unselected: tuple[str, ...]
    vanished: tuple[str, ...]
    format: Literal[1] = 1  # of the file

    @property
    def present_dag_ids(self) -> set[str]:
        """Every DAG that the instance has."""
        return {*self.dags, *self.unselected}

    @property
    def known_dag_ids(self) -> set[str]:
        """Every DAG that the instance has or had."""
        return {*self.present_dag_ids, *self.vanished}


_ADAPTER = TypeAdapter(Snapshot)


def write_snapshot(snapshot: Snapshot, path: Path) -> None:
    """Write a snapshot to a file, which is replaced in one step."""
    new = path.with_suffix(".new")
    # ASCII only: a text of Airflow's may hold half of a surrogate pair, which is no UTF-8.
    new.write_text(json.dumps(asdict(snapshot), indent=1))
    new.replace(path)


def read_snapshot(path: Path | None) -> Snapshot | None:
    """Return the snapshot in a file; None without a file, or (with a warning) an unreadable one."""
    if path is None or not path.exists():
        return None
    try:
        return _ADAPTER.validate_python(json.loads(path.read_bytes()))
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        reason = f"{problem['loc']} {problem['msg']}"
    except (ValueError, RecursionError) as error:
        reason = str(error)
    _log.warning("Ignoring a state that can't be read: %s", reason)
    return None


def fetch_snapshot(
    client: AirflowClient, select: SelectDeclaration, previous: Snapshot | None
) -> Snapshot:
    """Fetch the DAGs of an instance.

    Args:
        previous: The last snapshot, to tell deleted DAGs from those that never existed.

    Raises:
        AirflowError: The instance could not be read completely.
    """
    dags = client.fetch_dags(with_raw=True)
    selected = [dag for dag in dags if _is_selected(dag, select)]
    dag_ids = {dag.dag_id for dag in dags}
    return Snapshot(
        taken_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        dags=_build_dag_snapshots(client, selected),
        unselected=tuple(sorted(dag_ids - {dag.dag_id for dag in selected})),
        vanished=tuple(sorted((previous.known_dag_ids if previous else set()) - dag_ids)),
    )


def _is_selected(dag: Dag, select: SelectDeclaration) -> bool:
    def matches(globs: list[str]) -> bool:
        return any(fnmatchcase(dag.dag_id, glob) for glob in globs)

    has_tag = select.tags is None or not set(select.tags).isdisjoint(dag.tags)
    return matches(select.dag_ids) and has_tag and not matches(select.exclude)


def _build_dag_snapshots(client: AirflowClient, dags: list[Dag]) -> dict[str, DagSnapshot]:
    # Imported here because it takes 1.6 s, and only a refresh needs it.
    from dagster_airlift.core import load_airflow_dag_asset_specs

    from federation_defs.airlift import SnapshotInstance

    # Without source code, which costs a request per DAG, and may hold secrets.
    specs = load_airflow_dag_asset_specs(
        SnapshotInstance(client, dags), source_code_retrieval_enabled=False
    )
    return {
        dag.dag_id: DagSnapshot(
            dag_id=dag.dag_id,
            url=client.build_dag_url(dag.dag_id),
            is_paused=dag.is_paused,
            description=dag.description,
            schedule=dag.schedule,
            owners=dag.owners,
            airflow_tags=dag.tags,
            metadata=dg.serialize_value(dict(spec.metadata)),
            tags=dict(spec.tags),
        )
        for dag, spec in zip(dags, specs, strict=True)  # dagster-airlift keeps their order
    }
