"""Queries of Dagster's event log: which DAG runs were reported, and by which Dagster runs.

They read the metadata that `events.py` writes to materializations and observations. Of the
evaluations of asset checks only the last one is read: Dagster+ doesn't serve their history to user
code.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Literal, TypeVar

import dagster as dg

from federation_defs.airflow.models import DagRun, RunKey
from federation_defs.naming import build_asset_key
from federation_defs.outcome import Outcome
from federation_defs.timing import MAX_CLOCK_SKEW

T = TypeVar("T")

RUN_ID_LABEL = "Run ID"
LINK_LABEL = "Link to run"
STATE_LABEL = "State"
OUTCOME_LABEL = "Outcome"  # only of a finished run
UNREADABLE = "unreadable"  # an outcome
SIGNAL_LABEL = "Signal"  # "slow", "late" or "drop": of an observation that reports no end
PARTITION_KEY_LABEL = "Partition key"
LOGICAL_DATE_LABEL = "Logical date"
INTERVAL_START_LABEL = "Data interval start"
INTERVAL_END_LABEL = "Data interval end"
START_LABEL = "Start"
END_LABEL = "End"
CONF_LABEL = "Conf"
DEADLINE_LABEL = "Deadline"  # of a signal that a DAG is late
DURATION_LABEL = "Duration (s)"

_LOOKBACK_WITHOUT_DATES = timedelta(days=7)
_EVENTS_PER_QUERY = 500
_PARTITIONS_PER_QUERY = 100
_PLANNED_PER_QUERY = 20
_HAPPENINGS = (
    dg.DagsterEventType.ASSET_MATERIALIZATION,
    dg.DagsterEventType.ASSET_OBSERVATION,
)

_Event = dg.AssetMaterialization | dg.AssetObservation


@dataclass(frozen=True)
class _Report:
    """An event about a finished DAG run.

    Attributes:
        position: In the event log. Clocks of several machines give no order.
        end: Seconds since 1970.
    """

    position: int
    dagster_run_id: str
    run_id: str
    state: str
    end: float | None
    result: str
    is_materialization: bool


@dataclass(frozen=True)
class AssetEvent:
    """What happened to an asset.

    Attributes:
        position: In the event log. Clocks of several machines give no order.
        state: That it was materialized (success), or that a run of its DAG failed, is slow or late.
            "drop" is a person's wish to drop what waits to start the DAG, and "other" any other
            observation.
        run_id: Of the DAG run, or of the Dagster run that materialized an asset of another kind;
            empty if there is none.
    """

    position: int
    key: dg.AssetKey
    state: Literal["success", "failure", "slow", "late", "drop", "other"]
    run_id: str
    record: dg.EventLogRecord = field(repr=False, compare=False)

    @property
    def moment(self) -> datetime:
        """When the run ended by its Airflow's clock, or if that is not known, when the event was
        stored."""
        end = _read_time(self.record.asset_event, END_LABEL)
        return end or datetime.fromtimestamp(self.record.timestamp, timezone.utc)


@dataclass(frozen=True)
class ReportedRuns:
    """What the event log holds of some DAG runs of one Airflow instance."""

    reports: defaultdict[RunKey, list[_Report]] = field(default_factory=lambda: defaultdict(list))

    def update(self, later: ReportedRuns) -> None:
        """Take in what was read later, of the same DAGs or others."""
        self.reports.update(later.reports)

    def lacks_report_of(self, outcome: Outcome) -> bool:
        """Whether the last report differs. A run may run again, or a person may set its state."""
        last = max(self.reports[outcome.run.key], key=lambda report: report.position, default=None)
        expected = (outcome.run.state, _get_end(outcome.run), outcome.result)
        return last is None or (last.state, last.end, last.result) != expected

    def lacks_materialization_of(self, outcome: Outcome) -> bool:
        """Whether a success is not materialized. A run that ran again has another end."""
        end, reports = _get_end(outcome.run), self.reports[outcome.run.key]
        is_materialized = any(report.is_materialization and report.end == end for report in reports)
        return outcome.is_success and not is_materialized

    def is_reported_by(self, dagster_run_ids: Collection[str], run: DagRun) -> bool:
        """Whether one of these Dagster runs will report nothing more about a DAG run."""
        return any(report.dagster_run_id in dagster_run_ids for report in self.reports[run.key])

    def is_end_reported_by(self, dagster_run_ids: Collection[str], run: DagRun) -> bool:
        """Whether one of these Dagster runs has reported this end of a DAG run."""
        end, reports = _get_end(run), self.reports[run.key]
        return any(
            report.dagster_run_id in dagster_run_ids and report.end == end for report in reports
        )

    def lacks_unreadable(self, key: RunKey) -> bool:
        """Whether it is not reported that a run can't be read."""
        return all(report.result != UNREADABLE for report in self.reports[key])


def fetch_reported_runs(
    instance: dg.DagsterInstance, airflow: str, runs: Iterable[DagRun]
) -> ReportedRuns:
    """Fetch what the event log holds of these DAG runs of an Airflow instance."""
    return fetch_reports(
        instance, airflow, {run.key: run.end_date or run.start_date for run in runs}
    )


def fetch_reports(
    instance: dg.DagsterInstance, airflow: str, ends: Mapping[RunKey, datetime | None]
) -> ReportedRuns:
    """Fetch what the event log holds of the DAG runs with these keys.

    Args:
        ends: When each run ended or started; None if that is not known.
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


def find_known_assets(
    instance: dg.DagsterInstance, keys: Iterable[dg.AssetKey]
) -> list[dg.AssetKey]:
    """Find those of some assets of which the event log holds anything."""
    return [record.asset_entry.asset_key for record in instance.get_asset_records(list(keys))]


def fetch_first_reported_end(instance: dg.DagsterInstance, key: dg.AssetKey) -> float:
    """Fetch when the first reported run of an asset ended, in seconds since 1970; infinity if none
    was reported."""
    first = math.inf
    # All runs of a DAG may have failed, so that it has observations only.
    for fetch in (instance.fetch_materializations, instance.fetch_observations):
        for record in fetch(key, limit=1, ascending=True).records:
            end = _read(record.asset_event, END_LABEL, float)
            first = min(first, record.timestamp if end is None else end)
    return first


def fetch_last_run_link(instance: dg.DagsterInstance, key: dg.AssetKey) -> tuple[str, str] | None:
    """Fetch id and link (or "") of the DAG run that an asset's last materialization reports."""
    for record in instance.fetch_materializations(key, limit=1).records:
        if run_id := _read(record.asset_event, RUN_ID_LABEL, str):
            return run_id, _read(record.asset_event, LINK_LABEL, str) or ""
    return None


def fetch_last_materializations(
    instance: dg.DagsterInstance, keys: Iterable[dg.AssetKey]
) -> dict[dg.AssetKey, int]:
    """Fetch the position of the last materialization of each asset that has one."""
    entries = [each.asset_entry for each in instance.get_asset_records(list(keys))]
    found = {entry.asset_key: entry.last_materialization_record for entry in entries}
    return {key: record.storage_id for key, record in found.items() if record is not None}


def fetch_materialized_partitions(
    instance: dg.DagsterInstance, key: dg.AssetKey, partitions: Collection[str]
) -> set[str]:
    """Fetch which of some partitions of an asset were ever materialized."""
    wanted, found = set(partitions), set[str]()
    while missing := sorted(wanted - found):
        chosen = missing[:_PARTITIONS_PER_QUERY]
        records = dg.AssetRecordsFilter(asset_key=key, asset_partitions=chosen)
        page = instance.fetch_materializations(records, limit=_EVENTS_PER_QUERY).records
        found |= {record.partition_key for record in page if record.partition_key}
        if len(page) < _EVENTS_PER_QUERY:
            wanted -= set(chosen) - found
    return found


def fetch_last_position(instance: dg.DagsterInstance) -> int:
    """Fetch the position of the last materialization or observation of any asset; 0 if there is
    none."""
    records = [
        record
        for kind in _HAPPENINGS
        for record in instance.event_log_storage.get_event_records(
            dg.EventRecordsFilter(kind), limit=1
        )
    ]
    return max((record.storage_id for record in records), default=0)


def fetch_events(
    instance: dg.DagsterInstance, after: int, limit: int
) -> tuple[list[AssetEvent], bool]:
    """Fetch the first materializations and observations of any asset after a position, in order,
    and whether these are all.

    Args:
        limit: Of each of the two kinds, how many to fetch at most.
    """
    found: list[dg.EventLogRecord] = []
    ends: list[int] = []
    for kind in _HAPPENINGS:
        filters = dg.EventRecordsFilter(kind, after_cursor=after)
        records = instance.event_log_storage.get_event_records(filters, limit, ascending=True)
        found += records
        ends += [records[-1].storage_id] if len(records) == limit else []
    found = [record for record in found if not ends or record.storage_id <= min(ends)]
    found.sort(key=lambda record: record.storage_id)
    events = [_build_event(record.asset_key, record) for record in found if record.asset_key]
    return events, not ends


def fetch_event(instance: dg.DagsterInstance, key: dg.AssetKey, position: int) -> AssetEvent | None:
    """Fetch the event of an asset at a position; None if it was deleted."""
    filters = dg.AssetRecordsFilter(asset_key=key, storage_ids=[position])
    for fetch in (instance.fetch_materializations, instance.fetch_observations):
        for record in fetch(filters, limit=1).records:
            return _build_event(key, record)
    return None


def _build_event(key: dg.AssetKey, record: dg.EventLogRecord) -> AssetEvent:
    event, state = record.asset_event, "success"
    if not isinstance(event, dg.AssetMaterialization):
        signal, outcome = _read(event, SIGNAL_LABEL, str), _read(event, OUTCOME_LABEL, str)
        state = "failure" if outcome == "failure" else signal
    if state not in ("success", "failure", "slow", "late", "drop"):
        state = "other"
    run_id = _read(event, RUN_ID_LABEL, str) or record.run_id
    return AssetEvent(record.storage_id, key, state, run_id, record)


def fetch_runs_planned_after(
    instance: dg.DagsterInstance, key: dg.AssetKey, upstream_keys: Iterable[dg.AssetKey]
) -> list[str]:
    """Fetch the ids of the Dagster runs that were created to materialize an asset after the last
    materialization of each of its upstreams: latest first.

    A run that materialized the upstream itself counts, too. Empty if no upstream has a
    materialization. "After" is by the order of the event log.
    """
    entries = [each.asset_entry for each in instance.get_asset_records(list(upstream_keys))]
    updates = [entry.last_materialization_record for entry in entries]
    last = [update for update in updates if update is not None]
    planned = instance.fetch_planned_materializations(key, limit=_PLANNED_PER_QUERY).records
    return [
        record.run_id
        for record in planned
        if last and all(_is_before(update, record) for update in last)
    ]


def is_planned_in(
    instance: dg.DagsterInstance, dagster_run_id: str, key: dg.AssetKey, partition: str | None
) -> bool:
    """Whether a Dagster run was created to materialize an asset, or a partition of it."""
    fetch = instance.fetch_planned_materializations
    return bool(_find_records_in(fetch, dagster_run_id, key, partition))


def find_observation_in(
    instance: dg.DagsterInstance, dagster_run_id: str, key: dg.AssetKey, partition: str | None
) -> int:
    """Find the position of the first observation of an asset, or a partition of it, that a Dagster
    run has stored; -1 if it has stored none. A step stores one when it has launched a DAG."""
    found = _find_records_in(instance.fetch_observations, dagster_run_id, key, partition)
    return min((record.storage_id for record in found), default=-1)


def _find_records_in(
    fetch: Callable[..., Any], dagster_run_id: str, key: dg.AssetKey, partition: str | None
) -> list[dg.EventLogRecord]:
    partitions = None if partition is None else [partition]
    records = dg.AssetRecordsFilter(asset_key=key, asset_partitions=partitions)
    found = fetch(records, limit=_PLANNED_PER_QUERY).records
    return [record for record in found if record.run_id == dagster_run_id]


def _is_before(update: dg.EventLogRecord, planned: dg.EventLogRecord) -> bool:
    return update.run_id == planned.run_id or update.storage_id < planned.storage_id


def fetch_last_durations(instance: dg.DagsterInstance, key: dg.AssetKey, limit: int) -> list[float]:
    """Fetch the run durations, in seconds, that an asset's last materializations report."""
    records = instance.fetch_materializations(key, limit=limit).records
    found = [_read(record.asset_event, DURATION_LABEL, float) for record in records]
    return [duration for duration in found if duration is not None]


@dataclass(frozen=True)
class Success:
    """A success of a DAG, as a materialization of its asset reports it.

    Attributes:
        end: That of the DAG run, or when it was reported if the report has none that is a time.
        metadata: Of the materialization.
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
    """Fetch the successes of a DAG that ended since a time, sorted by their ends."""
    found: list[Success] = []
    for record in _fetch_records(instance.fetch_materializations, key, since):
        event = record.asset_materialization
        moment = _read_time(event, END_LABEL) or datetime.fromtimestamp(
            record.timestamp, timezone.utc
        )
        if event and moment >= since:
            found.append(Success(moment, event.metadata))
    return sorted(found, key=lambda success: success.end)


def fetch_signals(
    instance: dg.DagsterInstance, key: dg.AssetKey, since: datetime
) -> set[tuple[str, str, float]]:
    """Fetch what was told of a DAG since a time: ("slow", run id, start of the run) and
    ("late", "", deadline), both times in seconds since 1970."""
    found: set[tuple[str, str, float]] = set()
    for record in _fetch_records(instance.fetch_observations, key, since):
        event = record.asset_observation
        if signal := _read(event, SIGNAL_LABEL, str):
            moment = _read(event, DEADLINE_LABEL, float) or _read(event, START_LABEL, float)
            run_id = _read(event, RUN_ID_LABEL, str)
            found.add((signal, run_id or "", moment or 0.0))
    return found


@dataclass(frozen=True)
class ReportedPartition:
    """The last materialization of a partition, and what of the run decided its partition."""

    partition: str
    partition_key: str | None
    logical_date: datetime | None
    data_interval_start: datetime | None
    data_interval_end: datetime | None
    run_type: None = None  # a report stays that of its partition, though it is by hand


def fetch_reported_partitions(
    instance: dg.DagsterInstance, key: dg.AssetKey, limit: int
) -> list[ReportedPartition]:
    """Fetch the last materialization of each partition of an asset.

    Args:
        limit: Of more partitions, those are fetched that are evenly spaced in the order in which
            they were last materialized, with the first and the last of them. 2 or more.
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
            _read(event, PARTITION_KEY_LABEL, str),
            _read_time(event, LOGICAL_DATE_LABEL),
            _read_time(event, INTERVAL_START_LABEL),
            _read_time(event, INTERVAL_END_LABEL),
        )
        for event in events
        if event is not None and event.partition is not None
    ]


def fetch_last_request(instance: dg.DagsterInstance, key: dg.AssetKey) -> int:
    """Fetch the position in the event log of the last request to materialize an asset; -1 if there
    was none."""
    planned = instance.fetch_planned_materializations(key, limit=1).records
    return max((record.storage_id for record in planned), default=-1)


def fetch_last_evaluations(
    instance: dg.DagsterInstance, keys: Iterable[dg.AssetCheckKey]
) -> dict[dg.AssetCheckKey, dg.AssetCheckEvaluation]:
    """Fetch the last evaluations of some checks. Without those that a Dagster run was to evaluate
    since then, and has not: of them Dagster shows nothing else."""
    storage = instance.event_log_storage
    latest: Mapping[dg.AssetCheckKey, Any] = storage.get_latest_asset_check_execution_by_key(
        list(keys)
    )
    return _read_evaluations(latest)


def fetch_completed_evaluations(
    instance: dg.DagsterInstance, keys: Iterable[dg.AssetCheckKey]
) -> dict[dg.AssetCheckKey, dg.AssetCheckEvaluation]:
    """Fetch the last evaluations of a few checks, also where a Dagster run was to give another one
    since then. One or two queries for each."""
    summaries = instance.event_log_storage.get_asset_check_summary_records(list(keys))
    completed = {key: each.last_completed_check_execution_record for key, each in summaries.items()}
    return _read_evaluations({key: record for key, record in completed.items() if record})


def _read_evaluations(
    records: Mapping[dg.AssetCheckKey, Any],
) -> dict[dg.AssetCheckKey, dg.AssetCheckEvaluation]:
    events = {key: record.event and record.event.dagster_event for key, record in records.items()}
    data = {key: event.event_specific_data for key, event in events.items() if event}
    return {key: each for key, each in data.items() if isinstance(each, dg.AssetCheckEvaluation)}


def read_deadline(evaluation: dg.AssetCheckEvaluation) -> datetime | None:
    """Read which deadline an evaluation of the check `deadline` is about."""
    return _read_time(evaluation, DEADLINE_LABEL)


def _fetch_reports(
    instance: dg.DagsterInstance, key: dg.AssetKey, since: datetime
) -> Iterator[_Report]:
    """Fetch the reports on an asset's runs that ended since a time."""
    for fetch in (instance.fetch_materializations, instance.fetch_observations):
        yield from filter(None, map(_build_report, _fetch_records(fetch, key, since)))


def _fetch_records(
    fetch: Callable[..., Any], key: dg.AssetKey, since: datetime
) -> Iterator[dg.EventLogRecord]:
    """Fetch an asset's events about what happened since a time by Airflow's clock, latest first.

    Args:
        fetch: The method of the instance.
    """
    stored_since = max(0.0, since.timestamp() - MAX_CLOCK_SKEW.total_seconds())
    records = dg.AssetRecordsFilter(asset_key=key, after_timestamp=stored_since)
    cursor, has_more = None, True
    while has_more:
        page = fetch(records, limit=_EVENTS_PER_QUERY, cursor=cursor)
        yield from page.records
        cursor, has_more = page.cursor, page.has_more


def _build_report(record: dg.EventLogRecord) -> _Report | None:
    """Build the report of an event; None for an observation of something else."""
    event = record.asset_event
    is_materialization = isinstance(event, dg.AssetMaterialization)
    result = _read(event, OUTCOME_LABEL, str) or ("success" if is_materialization else None)
    if result is None:
        return None
    run_id, state = (_read(event, label, str) or "" for label in (RUN_ID_LABEL, STATE_LABEL))
    end = _read(event, END_LABEL, float)
    position = record.storage_id
    return _Report(position, record.run_id, run_id, state, end, result, is_materialization)


def _read_time(event: _Event | dg.AssetCheckEvaluation | None, label: str) -> datetime | None:
    """Read a time of an event; None if it has none. A person can store any number, and the last
    moment of the year 9999 is stored as the first one of 10000."""
    seconds = _read(event, label, float)
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)
    except (OSError, OverflowError, ValueError):
        return None


def _get_end(run: DagRun) -> float | None:
    return run.end_date and run.end_date.timestamp()


def _read(event: _Event | dg.AssetCheckEvaluation | None, label: str, kind: type[T]) -> T | None:
    """Read a metadata value of an event; None if it has none of this kind."""
    value = event.metadata.get(label) if event else None
    return value.value if value and isinstance(value.value, kind) else None
