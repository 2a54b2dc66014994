"""Queries of Dagster's event log: which DAG runs were reported, and by which Dagster runs.

They read the metadata that `events.py` writes.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import dagster as dg

from federation_defs.airflow.models import DagRun, RunKey
from federation_defs.naming import build_asset_key, build_check_key, parse_root_run_id
from federation_defs.outcome import Outcome
from federation_defs.timing import MAX_CLOCK_SKEW

RUN_ID_LABEL = "Run ID"
LINK_LABEL = "Link to run"
STATE_LABEL = "State"
END_LABEL = "End"
DURATION_LABEL = "Duration (s)"

_EVALUATION_DELAY_S = 60.0  # from a step's materialization to the evaluation of its check
_LOOKBACK_WITHOUT_DATES = timedelta(days=7)
_OLDEST_DATE = datetime(1970, 1, 2, tzinfo=timezone.utc)
_EVENTS_PER_QUERY = 500


@dataclass(frozen=True)
class _Report:
    """An event about a DAG run. Times are in seconds since 1970.

    Attributes:
        created_at: A step's evaluation takes the place of its plan, which may be hours older.
        is_success: Always true for a materialization. None for an evaluation that is planned.
    """

    created_at: float
    written_at: float
    dagster_run_id: str
    run_id: str = ""
    state: str = ""
    end: float | None = None
    is_success: bool | None = None


@dataclass(frozen=True)
class ReportedRuns:
    """What the event log holds of some DAG runs of one Airflow instance, by run."""

    materializations: Mapping[RunKey, list[_Report]]
    evaluations: Mapping[RunKey, list[_Report]]

    def lacks_materialization_of(self, outcome: Outcome) -> bool:
        """Whether a success is not reported. A run that ran again has another end."""
        end = _to_seconds(outcome.run.end_date)
        reports = self.materializations.get(outcome.run.key, [])
        return outcome.is_success and all(report.end != end for report in reports)

    def lacks_evaluation_of(self, outcome: Outcome) -> bool:
        """Whether the last evaluation differs. A person may have set another state."""
        run = outcome.run
        reports = self.evaluations.get(run.key)
        last = max(reports, key=lambda report: report.written_at) if reports else None
        expected = (run.state, _to_seconds(run.end_date), outcome.is_success)
        return last is None or (last.state, last.end, last.is_success) != expected

    def is_reported_by(self, dagster_run_ids: Sequence[str], run: DagRun) -> bool:
        """Whether one of these Dagster runs will report nothing more about a DAG run.

        The evaluation is its last event. If the check is not selected, the materialization is.
        """
        due_at = time.time() - _EVALUATION_DELAY_S
        evaluations = self.evaluations.get(run.key, [])
        materializations = self.materializations.get(run.key, [])
        done = [
            *evaluations,
            *(report for report in materializations if report.written_at < due_at),
        ]
        return any(report.dagster_run_id in dagster_run_ids for report in done)


def fetch_reported_runs(
    instance: dg.DagsterInstance, airflow: str, runs: Iterable[DagRun]
) -> ReportedRuns:
    """Fetch what the event log holds of these DAG runs of an Airflow instance."""
    by_dag: dict[str, list[DagRun]] = defaultdict(list)
    for run in runs:
        by_dag[run.dag_id].append(run)
    reported = ReportedRuns(defaultdict(list), defaultdict(list))
    for dag_id, dag_runs in by_dag.items():
        key = build_asset_key(airflow, dag_id)
        since = _find_first_end(dag_runs) - MAX_CLOCK_SKEW.total_seconds()
        for report in _fetch_materializations(instance, key, since):
            reported.materializations[dag_id, report.run_id].append(report)
        since = min(since, *_fetch_owner_starts(instance, dag_runs))
        for report in _fetch_evaluations(instance, key):
            if report.created_at < since:
                break
            if report.is_success is not None:
                reported.evaluations[dag_id, report.run_id].append(report)
    return reported


def find_first_reported_end(instance: dg.DagsterInstance, key: dg.AssetKey) -> datetime | None:
    """Find the end of the run of an asset that was reported first; None if none was."""
    for record in instance.fetch_materializations(key, limit=1, ascending=True).records:
        event = record.asset_materialization
        end = _read_end(event.metadata if event else {})
        return datetime.fromtimestamp(end or record.timestamp, timezone.utc)
    # All runs of the DAG may have failed.
    first = min((report.created_at for report in _fetch_evaluations(instance, key)), default=None)
    return None if first is None else datetime.fromtimestamp(first, timezone.utc)


def fetch_last_run_link(instance: dg.DagsterInstance, key: dg.AssetKey) -> tuple[str, str] | None:
    """Fetch id and link (or "") of the DAG run that an asset's last materialization reports."""
    for metadata in _fetch_last_metadata(instance, key, 1):
        link = metadata.get(LINK_LABEL)
        url = link.url if isinstance(link, dg.UrlMetadataValue) else None
        if run_id := _read_text(metadata, RUN_ID_LABEL):
            return run_id, url or ""
    return None


def fetch_last_durations(instance: dg.DagsterInstance, key: dg.AssetKey, limit: int) -> list[float]:
    """Fetch the run durations, in seconds, that an asset's last materializations report."""
    metadata = _fetch_last_metadata(instance, key, limit)
    durations = [values.get(DURATION_LABEL) for values in metadata]
    floats = [found.value for found in durations if isinstance(found, dg.FloatMetadataValue)]
    return [duration for duration in floats if duration is not None]


def _fetch_last_metadata(
    instance: dg.DagsterInstance, key: dg.AssetKey, limit: int
) -> list[Mapping[str, dg.MetadataValue]]:
    records = instance.fetch_materializations(key, limit=limit).records
    events = [record.asset_materialization for record in records]
    return [event.metadata for event in events if event is not None]


def _find_first_end(runs: Iterable[DagRun]) -> float:
    now = datetime.now(timezone.utc)
    ends = [run.end_date or run.start_date or now - _LOOKBACK_WITHOUT_DATES for run in runs]
    return max(_OLDEST_DATE, min(now, *ends)).timestamp()


def _fetch_owner_starts(instance: dg.DagsterInstance, runs: Iterable[DagRun]) -> list[float]:
    """Fetch when the Dagster runs that triggered these runs were created; infinity if none did."""
    owners = [owner for run in runs if (owner := parse_root_run_id(run.run_id)) is not None]
    records = instance.get_run_records(dg.RunsFilter(run_ids=owners)) if owners else []
    return [record.create_timestamp.timestamp() for record in records] or [math.inf]


def _fetch_materializations(
    instance: dg.DagsterInstance, key: dg.AssetKey, since: float
) -> Iterator[_Report]:
    records = dg.AssetRecordsFilter(asset_key=key, after_timestamp=since)
    page_cursor: str | None = None
    has_more = True
    while has_more:
        page = instance.fetch_materializations(records, limit=_EVENTS_PER_QUERY, cursor=page_cursor)
        for record in page.records:
            event, time_s = record.asset_materialization, record.timestamp
            if event is not None:
                yield _Report(
                    time_s, time_s, record.run_id, *_read_run(event.metadata), is_success=True
                )
        page_cursor, has_more = page.cursor, page.has_more


def _fetch_evaluations(instance: dg.DagsterInstance, key: dg.AssetKey) -> Iterator[_Report]:
    """Fetch the evaluations of an asset's check, newest first, including planned ones.

    The only use of the event log storage: no public method gives them (dagster 1.13).
    """
    storage_id: int | None = None
    has_more = True
    while has_more:
        page = instance.event_log_storage.get_asset_check_execution_history(
            build_check_key(key), limit=_EVENTS_PER_QUERY, cursor=storage_id
        )
        has_more = len(page) == _EVENTS_PER_QUERY
        for record in page:
            event = record.event.dagster_event if record.event else None
            evaluation = event.event_specific_data if event else None
            created_at, storage_id = record.create_timestamp, record.id
            if record.event and isinstance(evaluation, dg.AssetCheckEvaluation):
                written_at, run = record.event.timestamp, _read_run(evaluation.metadata)
                yield _Report(created_at, written_at, record.run_id, *run, evaluation.passed)
            else:
                yield _Report(created_at, created_at, record.run_id)


def _read_run(metadata: Mapping[str, dg.MetadataValue]) -> tuple[str, str, float | None]:
    """Read the id, state and end of a run."""
    run_id, state = _read_text(metadata, RUN_ID_LABEL), _read_text(metadata, STATE_LABEL)
    return run_id, state, _read_end(metadata)


def _read_text(metadata: Mapping[str, dg.MetadataValue], label: str) -> str:
    value = metadata.get(label)
    return (value.text or "") if isinstance(value, dg.TextMetadataValue) else ""


def _read_end(metadata: Mapping[str, dg.MetadataValue]) -> float | None:
    end = metadata.get(END_LABEL)
    return end.value if isinstance(end, dg.TimestampMetadataValue) else None


def _to_seconds(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment else None
