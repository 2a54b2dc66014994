"""From an instance to a snapshot: which DAGs it has, and what dagster-airlift makes of them.

A snapshot is the component's state. It is taken when the state is refreshed, kept on disk or in
Dagster's state storage, and read at every load, so that a location loads with every Airflow down.
It holds dagster-airlift's finished specs: a run worker reads them without importing airlift, which
takes longer than all the rest of its start.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from typing import Any

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import Dag
from federation_defs.declaration import SelectDeclaration

FORMAT = 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DagSnapshot:
    """One selected DAG, as it was when the snapshot was taken.

    Attributes:
        metadata: dagster-airlift's metadata of the asset, as `dagster.serialize_value` writes it.
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
    """What an instance had, at a moment.

    Attributes:
        taken_at: ISO 8601, UTC.
        dags: The selected DAGs by id.
        unselected: The ids of the other DAGs.
        vanished: DAG ids that an earlier snapshot had and the instance no longer has. A
            dependency on one of them is broken, but no typing error.
    """

    taken_at: str
    dags: Mapping[str, DagSnapshot]
    unselected: tuple[str, ...]
    vanished: tuple[str, ...]

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Snapshot | None:
        """The snapshot, or None (and a warning) if this is none that we can read."""
        try:
            return Snapshot._parse(json.loads(text))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            _log.warning("A kept state can't be read (%r), and is done without.", error)
            return None

    @staticmethod
    def _parse(content: dict[str, Any]) -> Snapshot:
        if (written := content.pop("format")) != FORMAT:
            raise ValueError(f"format {written}")
        dags = {
            dag_id: DagSnapshot(
                **{
                    **dag,
                    "owners": tuple(dag["owners"]),
                    "airflow_tags": tuple(dag["airflow_tags"]),
                }
            )
            for dag_id, dag in content.pop("dags").items()
        }
        unselected, vanished = content.pop("unselected"), content.pop("vanished")
        return Snapshot(
            dags=dags, unselected=tuple(unselected), vanished=tuple(vanished), **content
        )

    @property
    def present_dag_ids(self) -> set[str]:
        """Every DAG that the instance has."""
        return {*self.dags, *self.unselected}

    @property
    def known_dag_ids(self) -> set[str]:
        """Every DAG that the instance has or had."""
        return {*self.dags, *self.unselected, *self.vanished}


def is_selected(dag: Dag, select: SelectDeclaration) -> bool:
    """Whether a DAG becomes an asset."""

    def matches(globs: list[str]) -> bool:
        return any(fnmatchcase(dag.dag_id, glob) for glob in globs)

    has_tag = select.tags is None or not set(select.tags).isdisjoint(dag.tags)
    return matches(select.dag_ids) and has_tag and not matches(select.exclude)


def fetch_snapshot(
    client: AirflowClient, select: SelectDeclaration, previous: Snapshot | None
) -> Snapshot:
    """What the instance has now.

    Args:
        previous: The last known state, which tells a DAG that has gone from one that never was.

    Raises:
        AirflowError: The instance could not be read; there is no half a snapshot.
    """
    dags = client.fetch_dags(with_raw=True)
    selected = [dag for dag in dags if is_selected(dag, select)]
    dag_ids = {dag.dag_id for dag in dags}
    return Snapshot(
        taken_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        dags=_build_dag_snapshots(client, selected),
        unselected=tuple(sorted(dag_ids - {dag.dag_id for dag in selected})),
        vanished=tuple(sorted((previous.known_dag_ids if previous else set()) - dag_ids)),
    )


def _build_dag_snapshots(client: AirflowClient, dags: list[Dag]) -> dict[str, DagSnapshot]:
    # Deferred: it takes 1.6 s, and only a refresh needs it.
    from dagster_airlift.core import load_airflow_dag_asset_specs

    from federation_defs.airlift import SnapshotInstance

    # Without their source: a request per DAG at every load, and a file may hold secrets.
    specs = load_airflow_dag_asset_specs(
        SnapshotInstance(client, dags), source_code_retrieval_enabled=False
    )
    return {
        # airlift gives one spec per DAG, in the order in which it was given the DAGs.
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
        for dag, spec in zip(dags, specs, strict=True)
    }
