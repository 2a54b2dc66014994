"""Helpers for DAGs with partitions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import dagster as dg

from federation_defs.declaration import PartitionsDeclaration
from federation_defs.naming import build_asset_key
from federation_defs.partitions import Partitioning
from tests.contract.conftest import Airflow
from tests.contract.observation.daemon import Daemon

DAG = "customer_metrics"
KEY = build_asset_key("metrics", DAG)
DAILY = {"cron": "0 0 * * *", "start": "2025-01-01"}
HOURLY = {"cron": "0 * * * *", "start": "2025-01-01"}
BERLIN = {**DAILY, "timezone": "Europe/Berlin"}


def declare(partitions: Mapping[str, str] = DAILY, **trigger: Any) -> dict[str, Any]:
    """A DAG with partitions."""
    return {"partitions": dict(partitions), "trigger": trigger}


def at(text: str) -> datetime:
    """A moment in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc)


def of(partition: str) -> dict[str, str]:
    """The tags of a Dagster run of one partition."""
    return {"dagster/partition": partition}


def of_range(first: str, last: str) -> dict[str, str]:
    """The tags of a Dagster run of several partitions, as a backfill's."""
    name = "dagster/asset_partition_range"
    return {f"{name}_start": first, f"{name}_end": last}


def build_daemon(
    airflow: Airflow, instance: dg.DagsterInstance, **partitions: Mapping[str, str]
) -> Daemon:
    """One that knows of the partitions of these DAGs."""
    daemon = Daemon(airflow.client, list(partitions), instance)
    daemon.partitionings = {
        dag_id: Partitioning(PartitionsDeclaration.model_validate(declared))
        for dag_id, declared in partitions.items()
    }
    daemon.restart()
    return daemon


def read_partitions(
    instance: dg.DagsterInstance, key: dg.AssetKey = KEY
) -> list[tuple[str | None, str]]:
    """Partition and Airflow run id of all materializations of an asset, the first one first."""
    records = instance.fetch_materializations(key, limit=1000, ascending=True).records
    events = [record.asset_materialization for record in records]
    return [(event.partition, str(event.metadata["Run ID"].value)) for event in events if event]
