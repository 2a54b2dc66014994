"""A finished DAG run as an asset event, once.

Two write such events: the Dagster run that triggered the DAG run, and the observation of the
instance. Both write the same metadata, by which each sees what the other has written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.records import DagRun

_RUN_ID = "Run ID"
_END = "End"

# How far an Airflow's clock may be off ours. An event of a run is written after the run's end; by
# this much earlier it is looked for.
CLOCK_SKEW = timedelta(hours=1)
_WITHOUT_END = timedelta(days=7)
_EVENTS_PER_QUERY = 500


def build_run_metadata(client: AirflowClient, run: DagRun) -> Mapping[str, dg.MetadataValue]:
    """What a person wants to see of a run; absent dates are left out. Durations in seconds."""
    metadata: dict[str, dg.MetadataValue] = {
        _RUN_ID: dg.MetadataValue.text(run.run_id),
        "Link to run": dg.MetadataValue.url(client.build_run_url(run.dag_id, run.run_id)),
        "State": dg.MetadataValue.text(run.state),
    }
    dates = {"Logical date": run.logical_date, "Start": run.start_date, _END: run.end_date}
    for name, date in dates.items():
        if date is not None:
            metadata[name] = dg.MetadataValue.timestamp(date)
    if run.start_date and run.end_date:
        seconds = (run.end_date - run.start_date).total_seconds()
        metadata["Duration (s)"] = dg.MetadataValue.float(seconds)
    if run.run_type is not None:
        metadata["Run type"] = dg.MetadataValue.text(run.run_type)
    if run.conf:
        metadata["Conf"] = dg.MetadataValue.json(dict(run.conf))
    return metadata


def select_unreported(
    instance: dg.DagsterInstance, key: dg.AssetKey, runs: Iterable[DagRun]
) -> list[DagRun]:
    """The runs of one asset that the event log holds no materialization of, in the order given.

    A run that was cleared and ran again ended at another time, so it is not held for the same.
    """
    runs = list(runs)
    if not runs:
        return []
    now = datetime.now(timezone.utc)
    first_end = min(run.end_date or run.start_date or now - _WITHOUT_END for run in runs)
    reported = _fetch_reported(instance, key, min(first_end, now) - CLOCK_SKEW)
    return [run for run in runs if (run.run_id, _seconds(run.end_date)) not in reported]


def _fetch_reported(
    instance: dg.DagsterInstance, key: dg.AssetKey, since: datetime
) -> set[tuple[str, float | None]]:
    reported: set[tuple[str, float | None]] = set()
    records = dg.AssetRecordsFilter(asset_key=key, after_timestamp=since.timestamp())
    page_cursor: str | None = None
    while True:
        page = instance.fetch_materializations(records, limit=_EVENTS_PER_QUERY, cursor=page_cursor)
        for record in page.records:
            metadata = record.asset_materialization.metadata if record.asset_materialization else {}
            run_id, end = metadata.get(_RUN_ID), metadata.get(_END)
            if isinstance(run_id, dg.TextMetadataValue) and run_id.text:
                reported.add((run_id.text, _value(end)))
        if not page.has_more:
            return reported
        page_cursor = page.cursor


def _value(end: Any) -> float | None:
    return end.value if isinstance(end, dg.TimestampMetadataValue) else None


def _seconds(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment else None
