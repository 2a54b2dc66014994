"""Event log queries: which runs of an asset were reported, and by whom."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

import dagster as dg

from federation_defs.airflow.models import DagRun
from federation_defs.naming import build_check_key, parse_root_run_id
from federation_defs.outcome import Outcome

_RUN_ID = "Run ID"

_STATE = "State"

_END = "End"

# How far an Airflow's clock may be off ours. An event of a run is written after the run's end; by
# this much earlier it is looked for.
MAX_CLOCK_SKEW = timedelta(hours=1)

_LINK = "Link to run"

_DURATION = "Duration (s)"

_EVALUATED_WITHIN_S = 60.0  # of the materialization, by the same step

_LONG_AGO = datetime(1970, 1, 2, tzinfo=timezone.utc)

_WITHOUT_END = timedelta(days=7)

_EVENTS_PER_QUERY = 500


@dataclass
class ReportedRuns:
    """What the event log holds of one asset's runs, from a moment on.

    Attributes:
        materialized: Run id and end of each run that is a materialization. One that was cleared
            and ran again ended at another time, and is another.
        checked: By run id, state, end and outcome of its last evaluation. A run that is set to
            another state by hand is evaluated again.
        materialized_by: Run id and Dagster run id, if a Dagster run wrote it: when it did.
        checked_by: The same of evaluations.
    """

    materialized: set[tuple[str, float | None]] = field(default_factory=set)
    checked: dict[str, tuple[str, float | None, bool]] = field(default_factory=dict)
    materialized_by: dict[tuple[str, str], float] = field(default_factory=dict)
    checked_by: set[tuple[str, str]] = field(default_factory=set)

    def lacks_materialization_of(self, outcome: Outcome) -> bool:
        run = outcome.run
        return outcome.is_success and (run.run_id, _seconds(run.end_date)) not in self.materialized

    def is_reported_by(self, dagster_run_ids: list[str], run: DagRun) -> bool:
        """Whether one of these Dagster runs has told all that it will of a DAG run: its evaluation,
        or, if that is not part of it, the materialization before."""
        long_ago = time.time() - _EVALUATED_WITHIN_S
        return any(
            (run.run_id, owner) in self.checked_by
            or self.materialized_by.get((run.run_id, owner), math.inf) < long_ago
            for owner in dagster_run_ids
        )

    def lacks_evaluation_of(self, outcome: Outcome) -> bool:
        run = outcome.run
        seen = (run.state, _seconds(run.end_date), outcome.is_success)
        return self.checked.get(run.run_id) != seen


def fetch_reported_runs(
    instance: dg.DagsterInstance, key: dg.AssetKey, runs: list[DagRun]
) -> ReportedRuns:
    """What the event log holds of these runs of an asset, and maybe of others."""
    now = datetime.now(timezone.utc)
    first_end = min(run.end_date or run.start_date or now - _WITHOUT_END for run in runs)
    since = (max(_LONG_AGO, min(first_end, now)) - MAX_CLOCK_SKEW).timestamp()
    reported = ReportedRuns()
    _add_materializations(reported, instance, key, since)
    # A step's evaluation has its place in the log since the Dagster run began, maybe hours before.
    _add_evaluations(reported, instance, key, min(since, *_find_owners_starts(instance, runs)))
    return reported


def read_run_link(metadata: Mapping[str, dg.MetadataValue]) -> tuple[str, str] | None:
    """Run id and link (or empty) of the run that an event tells of; None if of none."""
    run_id, _, _ = _read_run(metadata)
    link = metadata.get(_LINK)
    url = link.url if isinstance(link, dg.UrlMetadataValue) else ""
    return (run_id, url or "") if run_id else None


def read_duration_s(metadata: Mapping[str, dg.MetadataValue]) -> float | None:
    """How long the run took that an event tells of; None if it does not say."""
    duration = metadata.get(_DURATION)
    return duration.value if isinstance(duration, dg.FloatMetadataValue) else None


def find_first_end(instance: dg.DagsterInstance, key: dg.AssetKey) -> datetime | None:
    """When the run ended that was the first of its asset to be reported; None if none was."""
    for record in instance.fetch_materializations(key, limit=1, ascending=True).records:
        event = record.asset_materialization
        _, _, end = _read_run(event.metadata if event else {})
        return datetime.fromtimestamp(end or record.timestamp, timezone.utc)
    oldest: float | None = None  # of a DAG that has only ever failed
    storage_id: int | None = None
    while page := instance.event_log_storage.get_asset_check_execution_history(
        build_check_key(key), limit=_EVENTS_PER_QUERY, cursor=storage_id
    ):
        oldest, storage_id = page[-1].create_timestamp, page[-1].id
    return datetime.fromtimestamp(oldest, timezone.utc) if oldest is not None else None


def _find_owners_starts(instance: dg.DagsterInstance, runs: list[DagRun]) -> list[float]:
    """When the Dagster runs that triggered some of these were created; always one entry."""
    owners = [owner for run in runs if (owner := parse_root_run_id(run.run_id)) is not None]
    records = instance.get_run_records(dg.RunsFilter(run_ids=owners)) if owners else []
    return [record.create_timestamp.timestamp() for record in records] or [math.inf]


def _add_materializations(
    reported: ReportedRuns, instance: dg.DagsterInstance, key: dg.AssetKey, since: float
) -> None:
    records = dg.AssetRecordsFilter(asset_key=key, after_timestamp=since)
    page_cursor: str | None = None
    while True:
        page = instance.fetch_materializations(records, limit=_EVENTS_PER_QUERY, cursor=page_cursor)
        for record in page.records:
            event = record.asset_materialization
            run_id, _, end = _read_run(event.metadata if event else {})
            if run_id:
                reported.materialized.add((run_id, end))
                reported.materialized_by[run_id, record.run_id] = record.timestamp
        if not page.has_more:
            return
        page_cursor = page.cursor


def _add_evaluations(
    reported: ReportedRuns, instance: dg.DagsterInstance, key: dg.AssetKey, since: float
) -> None:
    check = build_check_key(key)
    storage_id: int | None = None
    last: dict[str, float] = {}
    while True:
        records = instance.event_log_storage.get_asset_check_execution_history(
            check, limit=_EVENTS_PER_QUERY, cursor=storage_id
        )
        for record in records:  # the newest first
            if record.create_timestamp < since:
                return
            if record.event is None or record.event.dagster_event is None:
                continue
            evaluation = record.event.dagster_event.event_specific_data
            if not isinstance(evaluation, dg.AssetCheckEvaluation):
                continue  # planned by a run that is yet to execute it
            run_id, state, end = _read_run(evaluation.metadata)
            reported.checked_by.add((run_id, record.run_id))
            if run_id and record.event.timestamp > last.get(run_id, -math.inf):
                last[run_id] = record.event.timestamp
                reported.checked[run_id] = (state, end, evaluation.passed)
        if len(records) < _EVENTS_PER_QUERY:
            return
        storage_id = records[-1].id


def _read_run(
    metadata: Mapping[str, dg.MetadataValue],
) -> tuple[str, str, float | None]:
    """Run id, state and end (seconds since 1970) that an event tells of; empty if of none."""
    run_id, state, end = (metadata.get(name) for name in (_RUN_ID, _STATE, _END))
    return (
        (run_id.text or "") if isinstance(run_id, dg.TextMetadataValue) else "",
        (state.text or "") if isinstance(state, dg.TextMetadataValue) else "",
        end.value if isinstance(end, dg.TimestampMetadataValue) else None,
    )


def _seconds(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment else None
