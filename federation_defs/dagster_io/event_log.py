"""Queries of Dagster's event log: what happened to assets, and in which order, which Dagster runs
were created for them, and the last evaluations of their checks.

Only the last evaluation of an asset check is read: Dagster+ doesn't serve the earlier ones to user
code.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

import dagster as dg

from federation_defs.dagster_io.reports import (
    CONF_LABEL,
    DEADLINE_LABEL,
    END_LABEL,
    INTERVAL_END_LABEL,
    INTERVAL_START_LABEL,
    LINK_LABEL,
    LOGICAL_DATE_LABEL,
    OUTCOME_LABEL,
    RUN_ID_LABEL,
    SIGNAL_LABEL,
    START_LABEL,
    StoredEvent,
    read_end,
    read_text,
    read_time,
)
from federation_defs.dependencies.record import UpstreamEvent

_PLANNED_PER_QUERY = 20
_PARTITIONS_PER_QUERY = 10_000  # SQLite allows 32,766 variables
_KINDS = (
    dg.DagsterEventType.ASSET_MATERIALIZATION,
    dg.DagsterEventType.ASSET_OBSERVATION,
)


@dataclass(frozen=True)
class AssetEvent:
    """What happened to an asset.

    Attributes:
        position: The event's number in the event log. It gives the order, which timestamps of
            several machines would not.
        state: "success" if the asset was materialized; "failure" or "slow" for a run of its DAG;
            "late" if the DAG missed its deadline. "drop" if a person asked to drop the events that
            wait to start the DAG. "other" for any other observation.
        run_id: The id of the DAG run, or of the Dagster run that materialized an asset of another
            kind; empty if there is neither.
    """

    position: int
    key: dg.AssetKey
    state: Literal["success", "failure", "slow", "late", "drop", "other"]
    run_id: str
    record: dg.EventLogRecord = field(repr=False, compare=False)

    @property
    def moment(self) -> datetime:
        """When the run ended, or else when the event was stored; see `read_end`."""
        return read_end(self.record)


def find_known_assets(
    instance: dg.DagsterInstance, keys: Iterable[dg.AssetKey]
) -> list[dg.AssetKey]:
    """Return those of some assets that have entries in the event log."""
    return [entry.asset_key for entry in _fetch_asset_entries(instance, keys)]


def _fetch_asset_entries(instance: dg.DagsterInstance, keys: Iterable[dg.AssetKey]) -> list[Any]:
    wanted = list(keys)
    # Given no keys, Dagster+ returns all assets.
    records = instance.get_asset_records(wanted) if wanted else ()
    return [record.asset_entry for record in records]


def fetch_last_materializations(
    instance: dg.DagsterInstance, keys: Iterable[dg.AssetKey]
) -> dict[dg.AssetKey, int]:
    """Fetch the position of the last materialization of each asset that has one."""
    return {key: record.storage_id for key, record in _fetch_last(instance, keys).items()}


def _fetch_last(
    instance: dg.DagsterInstance, keys: Iterable[dg.AssetKey]
) -> dict[dg.AssetKey, dg.EventLogRecord]:
    """Fetch the last materialization of each asset that has one."""
    entries = _fetch_asset_entries(instance, keys)
    found = {entry.asset_key: entry.last_materialization_record for entry in entries}
    return {key: record for key, record in found.items() if record is not None}


def fetch_materialized_partitions(
    instance: dg.DagsterInstance, key: dg.AssetKey, partitions: Collection[str]
) -> set[str]:
    """Return those of some partitions of an asset that were ever materialized."""
    kind, wanted = dg.DagsterEventType.ASSET_MATERIALIZATION, list(partitions)
    found: set[str] = set()
    # Given no partitions, Dagster would return all.
    for first in range(0, len(wanted), _PARTITIONS_PER_QUERY):
        some = set(wanted[first : first + _PARTITIONS_PER_QUERY])
        found.update(instance.get_latest_storage_id_by_partition(key, kind, some))
    return found


def fetch_last_position(instance: dg.DagsterInstance) -> int:
    """Fetch the position of the last materialization or observation of any asset; 0 if there is
    none."""
    records = [
        record
        for kind in _KINDS
        for record in instance.event_log_storage.get_event_records(
            dg.EventRecordsFilter(kind), limit=1
        )
    ]
    return max((record.storage_id for record in records), default=0)


def fetch_events(
    instance: dg.DagsterInstance, after: int, limit: int
) -> tuple[list[AssetEvent], bool]:
    """Fetch the first materializations and observations of any asset after a position.

    Args:
        limit: How many materializations to fetch at most, and how many observations.

    Returns:
        The events in the order of their positions, and whether there are no further ones.
    """
    found: list[dg.EventLogRecord] = []
    ends: list[int] = []
    for kind in _KINDS:
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
        is_failure = read_text(event, OUTCOME_LABEL) == "failure"
        state = "failure" if is_failure else read_text(event, SIGNAL_LABEL)
    if state not in ("success", "failure", "slow", "late", "drop"):
        state = "other"
    run_id = read_text(event, RUN_ID_LABEL) or record.run_id
    return AssetEvent(record.storage_id, key, state, run_id, record)


def build_upstream_event(event: AssetEvent, upstream: str, downstream: str) -> UpstreamEvent:
    """Build the record of an event, as a function of `only_if` gets it.

    Args:
        upstream: The name of the dependency: instance/dag_id, or an asset key with slashes.
        downstream: The DAG that depends on it, as instance/dag_id.
    """
    assert event.state not in ("drop", "other")  # noqa: S101 - these match no dependency
    stored = event.record.asset_event
    # For an asset that is not a DAG, the end is the time of its materialization.
    end = event.moment if event.state == "success" else read_time(stored, END_LABEL)
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


def _read_conf(stored: StoredEvent | None) -> dict[str, Any]:
    """Return the conf as it was reported, that is with secrets masked. Empty if it was too long to
    be reported as a whole."""
    value = stored.metadata.get(CONF_LABEL) if stored else None
    if isinstance(value, dg.JsonMetadataValue) and isinstance(value.data, Mapping):
        return dict(value.data)
    try:  # a conf that Dagster can't store as JSON is stored as text
        conf = json.loads(read_text(stored, CONF_LABEL) or "{}")
    except (RecursionError, ValueError):
        return {}
    return conf if isinstance(conf, dict) else {}


def fetch_runs_planned_after(
    instance: dg.DagsterInstance,
    key: dg.AssetKey,
    upstream_keys: Iterable[dg.AssetKey],
    observable_keys: Iterable[dg.AssetKey],
) -> list[str]:
    """Fetch the ids of the Dagster runs that were created to materialize an asset after the last
    update of each of its upstreams, the latest first.

    "After" is by the order of the event log. A run that materialized an upstream itself counts as
    created after that, too. Upstreams without an update don't matter. If none has one, the result
    is empty. Only the last 20 runs that were created for the asset are considered.

    Args:
        upstream_keys: All upstreams. Their materializations are updates.
        observable_keys: Upstreams that may be observable: if one was never materialized, its
            observations are updates.
    """
    materialized = _fetch_last(instance, upstream_keys)
    last = list(materialized.values())
    for observable in set(observable_keys) - materialized.keys():
        last += instance.fetch_observations(observable, limit=1).records
    planned = instance.fetch_planned_materializations(key, limit=_PLANNED_PER_QUERY).records
    return [
        record.run_id
        for record in planned
        if last and all(_is_before(update, record) for update in last)
    ]


@lru_cache(maxsize=8)  # Dagster plans no more once it has created the run
def fetch_planned_partitions(
    instance: dg.DagsterInstance, dagster_run_id: str
) -> dict[dg.AssetKey, list[Container[str | None]]]:
    """Fetch the assets that a Dagster run was created to materialize, each with containers of its
    partitions. A container may hold None for an asset without partitions."""
    found: dict[dg.AssetKey, list[Container[str | None]]] = {}
    named: dict[dg.AssetKey, set[str | None]] = {}
    kind = dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED
    for record in _fetch_records_of_run(instance, dagster_run_id, [kind]):
        planned: Any = record.event_log_entry.get_dagster_event().event_specific_data
        # Dagster+ stores one event for all partitions, other storages one for each.
        if planned.partitions_subset is not None:
            found.setdefault(planned.asset_key, []).append(planned.partitions_subset)
        else:
            named.setdefault(planned.asset_key, set()).add(planned.partition)
    for key, partitions in named.items():
        found.setdefault(key, []).append(partitions)
    return found


@dataclass(frozen=True)
class RunOrder:
    """The order in which a Dagster run materialized assets and launched DAGs.

    Each event has its number within the run. The positions of the events can't be compared with
    those that other queries return: Dagster's default SQLite storage numbers the events of each run
    from 1.

    Attributes:
        materialized: The number of each materialization, by asset, partition and timestamp.
        launched: The number of the first launch of each DAG and partition. A repeated step reports
            its launches again.
    """

    materialized: Mapping[tuple[dg.AssetKey, str | None, float], int]
    launched: Mapping[tuple[dg.AssetKey, str | None], int]

    def is_launched_after(self, event: AssetEvent, key: dg.AssetKey, partition: str | None) -> bool:
        """Whether the run launched a DAG, or a partition of it, after it had stored a
        materialization. False if it did not do both."""
        record = event.record
        at = self.materialized.get((event.key, record.partition_key, record.timestamp))
        launched_at = self.launched.get((key, partition))
        return at is not None and launched_at is not None and launched_at > at


def fetch_run_order(instance: dg.DagsterInstance, dagster_run_id: str) -> RunOrder:
    """Fetch the order in which a Dagster run materialized assets and launched DAGs.

    A launch is an observation without an outcome. The observation of an end has an outcome.
    """
    materialized: dict[tuple[dg.AssetKey, str | None, float], int] = {}
    launched: dict[tuple[dg.AssetKey, str | None], int] = {}
    records = _fetch_records_of_run(instance, dagster_run_id, _KINDS)
    for number, record in enumerate(records):
        if (key := record.asset_key) is None:
            continue
        if isinstance(record.asset_event, dg.AssetMaterialization):
            materialized[key, record.partition_key, record.timestamp] = number
        elif not read_text(record.asset_event, OUTCOME_LABEL):
            launched.setdefault((key, record.partition_key), number)
    return RunOrder(materialized, launched)


def _fetch_records_of_run(
    instance: dg.DagsterInstance, dagster_run_id: str, kinds: Iterable[dg.DagsterEventType]
) -> Iterator[dg.EventLogRecord]:
    """Yield the events of some kinds that a Dagster run has stored, in order."""
    cursor, has_more, kinds = None, True, set(kinds)
    while has_more:
        page = instance.get_records_for_run(dagster_run_id, cursor, kinds)
        yield from page.records
        cursor, has_more = page.cursor, page.has_more


def _is_before(update: dg.EventLogRecord, planned: dg.EventLogRecord) -> bool:
    return update.run_id == planned.run_id or update.storage_id < planned.storage_id


def fetch_last_request(instance: dg.DagsterInstance, key: dg.AssetKey) -> int:
    """Fetch the position of the event with which Dagster last planned to materialize an asset; -1
    if there is none."""
    planned = instance.fetch_planned_materializations(key, limit=1).records
    return max((record.storage_id for record in planned), default=-1)


def fetch_last_evaluations(
    instance: dg.DagsterInstance, keys: Iterable[dg.AssetCheckKey]
) -> dict[dg.AssetCheckKey, dg.AssetCheckEvaluation]:
    """Fetch the last evaluations of some checks. A check that a Dagster run is about to evaluate is
    left out, because Dagster then shows only the planned evaluation."""
    storage = instance.event_log_storage
    latest: Mapping[dg.AssetCheckKey, Any] = storage.get_latest_asset_check_execution_by_key(
        list(keys)
    )
    return _read_evaluations(latest)


def fetch_completed_evaluations(
    instance: dg.DagsterInstance, keys: Iterable[dg.AssetCheckKey]
) -> dict[dg.AssetCheckKey, dg.AssetCheckEvaluation]:
    """Fetch the last evaluations of a few checks, even if a Dagster run has planned another one
    since. Takes one or two queries for each check."""
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
    """Return the deadline that an evaluation of the check `deadline` is about; None if it names
    none."""
    return read_time(evaluation, DEADLINE_LABEL)
