"""Queries of the event log about DAG runs: how they ended, and which signals were reported.

They read the metadata that `events.py` writes to materializations and observations.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import dagster as dg

from federation_defs.airflow.models import DagRun, RunKey
from federation_defs.naming import build_asset_key
from federation_defs.outcome import Outcome
from federation_defs.timing import MAX_CLOCK_SKEW

RUN_ID_LABEL = "Run ID"
LINK_LABEL = "Link to run"
STATE_LABEL = "State"
OUTCOME_LABEL = "Outcome"  # only for a finished run
UNREADABLE_OUTCOME = "unreadable"  # a value of OUTCOME_LABEL
SIGNAL_LABEL = "Signal"  # "slow", "late" or "drop", in an observation that reports no end of a run
PARTITION_KEY_LABEL = "Partition key"
LOGICAL_DATE_LABEL = "Logical date"
INTERVAL_START_LABEL = "Data interval start"
INTERVAL_END_LABEL = "Data interval end"
START_LABEL = "Start"
END_LABEL = "End"
CONF_LABEL = "Conf"
DEADLINE_LABEL = "Deadline"  # in the signal that a DAG is late, and in its check
DURATION_LABEL = "Duration (s)"

_LOOKBACK_WITHOUT_DATES = timedelta(days=7)
_EVENTS_PER_QUERY = 500
_FIRST_EVENTS = 20

StoredEvent = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation


@dataclass(frozen=True)
class _Report:
    """An event about a finished DAG run.

    Attributes:
        position: The event's number in the event log. It gives the order, which timestamps of
            several machines would not.
        end: When the DAG run ended, in seconds since 1970; None if the event does not have that.
        result: "success", "failure" or "unreadable".
    """

    position: int
    dagster_run_id: str
    run_id: str
    state: str
    end: float | None
    result: str
    is_materialization: bool


@dataclass(frozen=True)
class ReportedRuns:
    """What the event log holds of some DAG runs of one Airflow instance."""

    reports: defaultdict[RunKey, list[_Report]] = field(default_factory=lambda: defaultdict(list))

    def update(self, later: ReportedRuns) -> None:
        """Add reports that were read later. They replace those of the same runs."""
        self.reports.update(later.reports)

    def lacks_report_of(self, outcome: Outcome) -> bool:
        """Whether the last report of a run has another state, end or result, or there is none. A
        run may run again after it was reported, or a person may set its state."""
        last = max(self.reports[outcome.run.key], key=lambda report: report.position, default=None)
        expected = (outcome.run.state, _get_end(outcome.run), outcome.result)
        return last is None or (last.state, last.end, last.result) != expected

    def lacks_materialization_of(self, outcome: Outcome) -> bool:
        """Whether the outcome is a success, and no materialization reports this end of the run. A
        run that ran again has another end."""
        end, reports = _get_end(outcome.run), self.reports[outcome.run.key]
        is_materialized = any(report.is_materialization and report.end == end for report in reports)
        return outcome.is_success and not is_materialized

    def is_reported_by(self, dagster_run_ids: Collection[str], run: DagRun) -> bool:
        """Whether one of these Dagster runs has reported a DAG run, at any of its ends. It then
        reports no other end of it."""
        return any(report.dagster_run_id in dagster_run_ids for report in self.reports[run.key])

    def is_end_reported_by(self, dagster_run_ids: Collection[str], run: DagRun) -> bool:
        """Whether one of these Dagster runs has reported this end of a DAG run."""
        end, reports = _get_end(run), self.reports[run.key]
        return any(
            report.dagster_run_id in dagster_run_ids and report.end == end for report in reports
        )

    def lacks_unreadable(self, key: RunKey) -> bool:
        """Whether no report states that the run can't be read."""
        return all(report.result != UNREADABLE_OUTCOME for report in self.reports[key])


def fetch_reported_runs(
    instance: dg.DagsterInstance, airflow: str, runs: Iterable[DagRun]
) -> ReportedRuns:
    """Fetch the reports of some DAG runs of an Airflow instance."""
    return fetch_reports(
        instance, airflow, {run.key: run.end_date or run.start_date for run in runs}
    )


def fetch_reports(
    instance: dg.DagsterInstance, airflow: str, ends: Mapping[RunKey, datetime | None]
) -> ReportedRuns:
    """Fetch the reports of some DAG runs of an Airflow instance.

    Args:
        ends: By the keys of the runs: when each ended, or else started. None if neither is known:
            the reports of the last seven days are read then.
    """
    by_dag: dict[str, list[datetime | None]] = defaultdict(list)
    for (dag_id, _), end in ends.items():
        by_dag[dag_id].append(end)
    now = datetime.now(timezone.utc)
    reported = ReportedRuns()
    for dag_id, known in by_dag.items():
        since = min(now, *(end or now - _LOOKBACK_WITHOUT_DATES for end in known))
        for report in _fetch_reports(instance, build_asset_key(airflow, dag_id), since):
            reported.reports[dag_id, report.run_id].append(report)
    return reported


def fetch_first_reported_end(instance: dg.DagsterInstance, key: dg.AssetKey) -> float:
    """Fetch when the first reported run of an asset ended, in seconds since 1970; infinity if no
    run was reported."""
    first = math.inf
    # A DAG whose runs all failed has observations only.
    for fetch in (instance.fetch_materializations, instance.fetch_observations):
        for record in _fetch_pages(fetch, key, _FIRST_EVENTS, ascending=True):
            if report := _build_report(record):
                first = min(first, record.timestamp if report.end is None else report.end)
                break
    return first


def fetch_last_run_link(instance: dg.DagsterInstance, key: dg.AssetKey) -> tuple[str, str] | None:
    """Fetch the id and the link (or "") of the DAG run that an asset's last materialization
    reports; None if it reports no DAG run."""
    for record in instance.fetch_materializations(key, limit=1).records:
        if run_id := read_text(record.asset_event, RUN_ID_LABEL):
            return run_id, read_text(record.asset_event, LINK_LABEL) or ""
    return None


def fetch_last_durations(instance: dg.DagsterInstance, key: dg.AssetKey, limit: int) -> list[float]:
    """Fetch the durations of DAG runs, in seconds, that an asset's last materializations report.

    Args:
        limit: How many materializations to read. One without a duration is left out.
    """
    records = instance.fetch_materializations(key, limit=limit).records
    found = [_read_number(record.asset_event, DURATION_LABEL) for record in records]
    return [duration for duration in found if duration is not None]


@dataclass(frozen=True)
class Success:
    """A success of a DAG, as a materialization of its asset reports it.

    Attributes:
        end: When the DAG run ended; when it was reported, if the report has no valid end.
        metadata: That of the materialization.
    """

    end: datetime
    metadata: Mapping[str, dg.MetadataValue]

    @property
    def run_id(self) -> str | None:
        """The DAG run's id; None if a person reported the success."""
        value = self.metadata.get(RUN_ID_LABEL)
        return str(value.value) if value else None


def fetch_successes(
    instance: dg.DagsterInstance, key: dg.AssetKey, since: datetime
) -> list[Success]:
    """Fetch the reported successes of a DAG that ended at or after a time, sorted by their ends."""
    found: list[Success] = []
    for record in _fetch_records(instance.fetch_materializations, key, since):
        event = record.asset_materialization
        if event and (end := read_end(record)) >= since:
            found.append(Success(end, event.metadata))
    return sorted(found, key=lambda success: success.end)


def fetch_signals(
    instance: dg.DagsterInstance, key: dg.AssetKey, since: datetime
) -> set[tuple[str, str, float]]:
    """Fetch the signals about a DAG since a time, and those of up to `MAX_CLOCK_SKEW` before it.

    Returns:
        ("slow", run id, start of the run) and ("late", "", deadline), with times in seconds since
        1970. Signals without a time, such as "drop", have 0.
    """
    found: set[tuple[str, str, float]] = set()
    for record in _fetch_records(instance.fetch_observations, key, since):
        event = record.asset_observation
        if signal := read_text(event, SIGNAL_LABEL):
            moment = _read_number(event, DEADLINE_LABEL) or _read_number(event, START_LABEL)
            run_id = read_text(event, RUN_ID_LABEL)
            found.add((signal, run_id or "", moment or 0.0))
    return found


@dataclass(frozen=True)
class ReportedPartition:
    """The last materialization of a partition, with the values of the DAG run by which it was
    assigned to the partition."""

    partition: str
    partition_key: str | None
    logical_date: datetime | None
    data_interval_start: datetime | None
    data_interval_end: datetime | None
    run_type: None = None  # so that the report of a run by hand keeps its partition


def fetch_reported_partitions(
    instance: dg.DagsterInstance, key: dg.AssetKey, limit: int
) -> list[ReportedPartition]:
    """Fetch the last materialization of each partition of an asset.

    Args:
        limit: How many partitions to fetch at most; 2 or more. If there are more, those are fetched
            that are evenly spaced in the order of their last materializations, including the first
            and the last of them.
    """
    kind = dg.DagsterEventType.ASSET_MATERIALIZATION
    positions = sorted(instance.get_latest_storage_id_by_partition(key, kind).values())
    if len(positions) > limit:
        step = (len(positions) - 1) / (limit - 1)
        positions = [positions[round(number * step)] for number in range(limit)]
    if not positions:
        return []
    filters = dg.AssetRecordsFilter(asset_key=key, storage_ids=positions)
    records = instance.fetch_materializations(filters, limit=limit, ascending=True).records
    events = [record.asset_materialization for record in records]
    return [
        ReportedPartition(
            event.partition,
            read_text(event, PARTITION_KEY_LABEL),
            read_time(event, LOGICAL_DATE_LABEL),
            read_time(event, INTERVAL_START_LABEL),
            read_time(event, INTERVAL_END_LABEL),
        )
        for event in events
        if event is not None and event.partition is not None
    ]


def _fetch_reports(
    instance: dg.DagsterInstance, key: dg.AssetKey, since: datetime
) -> Iterator[_Report]:
    """Yield the reports of an asset's runs that ended since a time, and some earlier ones."""
    for fetch in (instance.fetch_materializations, instance.fetch_observations):
        yield from filter(None, map(_build_report, _fetch_records(fetch, key, since)))


def _fetch_records(
    fetch: Callable[..., Any], key: dg.AssetKey, since: datetime
) -> Iterator[dg.EventLogRecord]:
    """Yield an asset's events, the latest first: all about what happened since a time by Airflow's
    clock, and some about what happened up to `MAX_CLOCK_SKEW` before.

    Args:
        fetch: `fetch_materializations` or `fetch_observations` of the Dagster instance.
    """
    stored_since = max(0.0, since.timestamp() - MAX_CLOCK_SKEW.total_seconds())
    filters = dg.AssetRecordsFilter(asset_key=key, after_timestamp=stored_since)
    return _fetch_pages(fetch, filters, _EVENTS_PER_QUERY)


def _fetch_pages(
    fetch: Callable[..., Any], filters: object, limit: int, *, ascending: bool = False
) -> Iterator[dg.EventLogRecord]:
    """Yield an asset's events. Each page of them is fetched when its first event is needed."""
    cursor, has_more = None, True
    while has_more:
        page = fetch(filters, limit=limit, cursor=cursor, ascending=ascending)
        yield from page.records
        cursor, has_more = page.cursor, page.has_more


def _build_report(record: dg.EventLogRecord) -> _Report | None:
    """Build the report of an event; None for an observation that does not report the end of a
    run."""
    event = record.asset_event
    is_materialization = isinstance(event, dg.AssetMaterialization)
    result = read_text(event, OUTCOME_LABEL) or ("success" if is_materialization else None)
    if result is None:
        return None
    run_id, state = (read_text(event, label) or "" for label in (RUN_ID_LABEL, STATE_LABEL))
    end = _read_number(event, END_LABEL)
    position = record.storage_id
    return _Report(position, record.run_id, run_id, state, end, result, is_materialization)


def _get_end(run: DagRun) -> float | None:
    return run.end_date and run.end_date.timestamp()


def read_end(record: dg.EventLogRecord) -> datetime:
    """Return when a run ended by its Airflow's clock; when the event was stored, if that is not
    known."""
    end = read_time(record.asset_event, END_LABEL)
    return end or datetime.fromtimestamp(record.timestamp, timezone.utc)


def read_time(event: StoredEvent | None, label: str) -> datetime | None:
    """Return a time in the metadata of an event; None if it has none, or none that is valid. A
    person can store any number, and the last moment of the year 9999 is stored as the first one of
    the year 10000."""
    seconds = _read_number(event, label)
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)
    except (OSError, OverflowError, ValueError):
        return None


def read_text(event: StoredEvent | None, label: str) -> str | None:
    """Return a text in the metadata of an event; None if it has no text with this label."""
    value = event.metadata.get(label) if event else None
    return value.value if value and isinstance(value.value, str) else None


def _read_number(event: StoredEvent | None, label: str) -> float | None:
    value = event.metadata.get(label) if event else None
    return value.value if value and isinstance(value.value, float) else None
