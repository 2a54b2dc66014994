"""Queries of Dagster's event log: which DAG runs were reported, and by which Dagster runs.

They read the metadata that `events.py` writes.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TypeVar

import dagster as dg

from federation_defs.airflow.models import DagRun, RunKey
from federation_defs.naming import build_asset_key, build_check_key, parse_root_run_id
from federation_defs.outcome import Outcome
from federation_defs.timing import MAX_CLOCK_SKEW

T = TypeVar("T")

RUN_ID_LABEL = "Run ID"
LINK_LABEL = "Link to run"
STATE_LABEL = "State"
END_LABEL = "End"
DURATION_LABEL = "Duration (s)"

_EVALUATION_DELAY_S = 60.0  # from a step's materialization to the evaluation of its check
_LOOKBACK_WITHOUT_DATES = timedelta(days=7)
_EVENTS_PER_QUERY = 500

_Event = dg.AssetMaterialization | dg.AssetCheckEvaluation


@dataclass(frozen=True)
class _Report:
    """An event about a DAG run. Times are in seconds since 1970.

    Attributes:
        passed: The result of a check evaluation; None for a materialization.
    """

    dagster_run_id: str
    written_at: float
    run_id: str
    state: str
    end: float | None
    passed: bool | None


@dataclass(frozen=True)
class ReportedRuns:
    """What the event log holds of some DAG runs of one Airflow instance."""

    reports: defaultdict[RunKey, list[_Report]]

    def lacks_materialization_of(self, outcome: Outcome) -> bool:
        """Whether a success is not reported. A run that ran again has another end."""
        end = outcome.run.end_date and outcome.run.end_date.timestamp()
        reports = self.reports[outcome.run.key]
        is_reported = any(report.passed is None and report.end == end for report in reports)
        return outcome.is_success and not is_reported

    def lacks_evaluation_of(self, outcome: Outcome) -> bool:
        """Whether the last evaluation differs. A person may have set another state."""
        run = outcome.run
        evaluations = [report for report in self.reports[run.key] if report.passed is not None]
        last = max(evaluations, key=lambda report: report.written_at, default=None)
        expected = (run.state, run.end_date and run.end_date.timestamp(), outcome.is_success)
        return last is None or (last.state, last.end, last.passed) != expected

    def is_reported_by(self, dagster_run_ids: Collection[str], run: DagRun) -> bool:
        """Whether one of these Dagster runs will report nothing more about a DAG run.

        The evaluation is its last event. If the check is not selected, the materialization is.
        """
        due_at = time.time() - _EVALUATION_DELAY_S
        return any(
            report.dagster_run_id in dagster_run_ids
            and (report.passed is not None or report.written_at < due_at)
            for report in self.reports[run.key]
        )


def fetch_reported_runs(
    instance: dg.DagsterInstance, airflow: str, runs: Iterable[DagRun]
) -> ReportedRuns:
    """Fetch what the event log holds of these DAG runs of an Airflow instance."""
    by_dag: dict[str, list[DagRun]] = defaultdict(list)
    for run in runs:
        by_dag[run.dag_id].append(run)
    now = datetime.now(timezone.utc)
    reports: defaultdict[RunKey, list[_Report]] = defaultdict(list)
    for dag_id, dag_runs in by_dag.items():
        key = build_asset_key(airflow, dag_id)
        ends = [run.end_date or run.start_date or now - _LOOKBACK_WITHOUT_DATES for run in dag_runs]
        since = max(0.0, min(now, *ends).timestamp() - MAX_CLOCK_SKEW.total_seconds())
        for report in _fetch_materializations(instance, key, since):
            reports[dag_id, report.run_id].append(report)
        # A step's evaluation is created when its Dagster run begins.
        owners = [owner for run in dag_runs if (owner := parse_root_run_id(run.run_id))]
        records = instance.get_run_records(dg.RunsFilter(run_ids=owners)) if owners else []
        since = min([since, *(record.create_timestamp.timestamp() for record in records)])
        for created_at, report in _fetch_evaluations(instance, key):
            if created_at < since:
                break
            if report is not None:
                reports[dag_id, report.run_id].append(report)
    return ReportedRuns(reports)


def find_first_reported_end(
    instance: dg.DagsterInstance, keys: Iterable[dg.AssetKey], oldest: datetime
) -> datetime | None:
    """Find when the first reported run of these assets ended; None if none was reported.

    Args:
        oldest: Returned in place of an earlier end.
    """
    first = math.inf
    for key in keys:
        first = min(first, _find_first_reported_end(instance, key))
        if first <= oldest.timestamp():
            return oldest
    return None if math.isinf(first) else datetime.fromtimestamp(first, timezone.utc)


def _find_first_reported_end(instance: dg.DagsterInstance, key: dg.AssetKey) -> float:
    for record in instance.fetch_materializations(key, limit=1, ascending=True).records:
        return _read(record.asset_materialization, END_LABEL, float) or record.timestamp
    # All runs of the DAG may have failed.
    return min(
        (created_at for created_at, _ in _fetch_evaluations(instance, key)), default=math.inf
    )


def fetch_last_run_link(instance: dg.DagsterInstance, key: dg.AssetKey) -> tuple[str, str] | None:
    """Fetch id and link (or "") of the DAG run that an asset's last materialization reports."""
    for record in instance.fetch_materializations(key, limit=1).records:
        event = record.asset_materialization
        if run_id := _read(event, RUN_ID_LABEL, str):
            return run_id, _read(event, LINK_LABEL, str) or ""
    return None


def fetch_last_durations(instance: dg.DagsterInstance, key: dg.AssetKey, limit: int) -> list[float]:
    """Fetch the run durations, in seconds, that an asset's last materializations report."""
    records = instance.fetch_materializations(key, limit=limit).records
    found = [_read(record.asset_materialization, DURATION_LABEL, float) for record in records]
    return [duration for duration in found if duration is not None]


def _fetch_materializations(
    instance: dg.DagsterInstance, key: dg.AssetKey, since: float
) -> Iterator[_Report]:
    records = dg.AssetRecordsFilter(asset_key=key, after_timestamp=since)
    cursor, has_more = None, True
    while has_more:
        page = instance.fetch_materializations(records, limit=_EVENTS_PER_QUERY, cursor=cursor)
        for record in page.records:
            if event := record.asset_materialization:
                yield _build_report(record.run_id, record.timestamp, event)
        cursor, has_more = page.cursor, page.has_more


def _fetch_evaluations(
    instance: dg.DagsterInstance, key: dg.AssetKey
) -> Iterator[tuple[float, _Report | None]]:
    """Fetch the evaluations of an asset's check, newest first, each with the time of its creation.

    One that is planned, and not written yet, is None.

    The only use of the event log storage: no public method gives them (dagster 1.13).
    """
    cursor, has_more = None, True
    while has_more:
        page = instance.event_log_storage.get_asset_check_execution_history(
            build_check_key(key), limit=_EVENTS_PER_QUERY, cursor=cursor
        )
        for record in page:
            event, evaluation, cursor = record.event, record.evaluation, record.id
            report = None
            if event and isinstance(evaluation, dg.AssetCheckEvaluation):
                report = _build_report(record.run_id, event.timestamp, evaluation)
            yield record.create_timestamp, report
        has_more = len(page) == _EVENTS_PER_QUERY


def _build_report(dagster_run_id: str, written_at: float, event: _Event) -> _Report:
    run_id, state = (_read(event, label, str) or "" for label in (RUN_ID_LABEL, STATE_LABEL))
    passed = event.passed if isinstance(event, dg.AssetCheckEvaluation) else None
    end = _read(event, END_LABEL, float)
    return _Report(dagster_run_id, written_at, run_id, state, end, passed)


def _read(event: _Event | None, label: str, kind: type[T]) -> T | None:
    """Read a metadata value of an event; None if it has none of this kind."""
    value = event.metadata.get(label) if event else None
    return value.value if value and isinstance(value.value, kind) else None
