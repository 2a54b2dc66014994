"""Events of the event log as the records that functions and DAGs of users get."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import dagster as dg

from federation_defs.dagster_io.event_log import AssetEvent, fetch_event
from federation_defs.dagster_io.reports import (
    CONF_LABEL,
    DEADLINE_LABEL,
    END_LABEL,
    INTERVAL_END_LABEL,
    INTERVAL_START_LABEL,
    LINK_LABEL,
    LOGICAL_DATE_LABEL,
    START_LABEL,
    StoredEvent,
    read_text,
    read_time,
)
from federation_defs.dagster_io.run_tags import Request
from federation_defs.declaration import DagDeclaration
from federation_defs.dependencies.record import UpstreamEvent


def build_record(event: AssetEvent, upstream: str, downstream: str) -> UpstreamEvent:
    """Build the record of an event.

    Args:
        upstream: The name of the dependency: instance/dag_id, or an asset key with slashes.
        downstream: The DAG that depends on it, as instance/dag_id.
    """
    assert event.state not in ("drop", "other")  # noqa: S101 - no dependency counts them
    stored = event.record.asset_event
    end = read_time(stored, END_LABEL)
    if end is None and event.state == "success":  # of an asset that is no DAG
        end = datetime.fromtimestamp(event.record.timestamp, timezone.utc)
    return UpstreamEvent(
        upstream=upstream,
        downstream=downstream,
        state=event.state,
        run_id=event.run_id or None,
        logical_date=read_time(stored, LOGICAL_DATE_LABEL),
        data_interval_start=read_time(stored, INTERVAL_START_LABEL),
        data_interval_end=read_time(stored, INTERVAL_END_LABEL),
        partition_key=event.record.partition_key,
        start=read_time(stored, START_LABEL),
        end=end,
        deadline=read_time(stored, DEADLINE_LABEL),
        conf=_read_conf(stored),
        link=read_text(stored, LINK_LABEL),
    )


def fetch_records(
    instance: dg.DagsterInstance, dag: DagDeclaration, request: Request, downstream: str
) -> list[UpstreamEvent]:
    """Fetch the records of the events that led to a request, without those that were deleted.

    Args:
        downstream: The requested DAG, as instance/dag_id.
    """
    names = {edge.key: edge.name for edge in dag.depends_on}
    events = [fetch_event(instance, key, position) for key, position in request.events]
    return [
        build_record(event, names.get(event.key, "/".join(event.key.path)), downstream)
        for event in events
        if event is not None
    ]


def _read_conf(stored: StoredEvent | None) -> dict[str, Any]:
    """Return the conf as reported: without secrets. Empty if it was too long to report."""
    value = stored.metadata.get(CONF_LABEL) if stored else None
    if isinstance(value, dg.JsonMetadataValue) and isinstance(value.data, Mapping):
        return dict(value.data)
    try:  # it was stored as text, as Dagster can't store it as JSON
        conf = json.loads(read_text(stored, CONF_LABEL) or "{}")
    except (RecursionError, ValueError):
        return {}
    return conf if isinstance(conf, dict) else {}
