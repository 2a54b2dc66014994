"""Queries of Dagster's event log: what happened to assets, in which order, which Dagster runs were
created for them, and the last evaluations of their checks.

Of the evaluations of asset checks only the last one is read: Dagster+ doesn't serve their history
to user code.
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
from federation_defs.dagster_io.run_tags import Request
from federation_defs.declaration import DagDeclaration
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
        """When the run ended, as `read_end` reads it."""
        return read_end(self.record)


def find_known_assets(
    instance: dg.DagsterInstance, keys: Iterable[dg.AssetKey]
) -> list[dg.AssetKey]:
    """Find those of some assets of which the event log holds anything."""
    return [entry.asset_key for entry in _fetch_asset_entries(instance, keys)]


def _fetch_asset_entries(instance: dg.DagsterInstance, keys: Iterable[dg.AssetKey]) -> list[Any]:
    wanted = list(keys)
    # Of no keys, Dagster+ returns all assets.
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
    """Fetch which of some partitions of an asset were ever materialized."""
    kind, wanted = dg.DagsterEventType.ASSET_MATERIALIZATION, list(partitions)
    found: set[str] = set()
    # Of no partitions, Dagster would return all.
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
    """Fetch the first materializations and observations of any asset after a position, in order,
    and whether these are all.

    Args:
        limit: Of each of the two kinds, how many to fetch at most.
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
    """Build the record of an event.

    Args:
        upstream: The name of the dependency: instance/dag_id, or an asset key with slashes.
        downstream: The DAG that depends on it, as instance/dag_id.
    """
    assert event.state not in ("drop", "other")  # noqa: S101 - no dependency counts them
    stored = event.record.asset_event
    # Of an asset that is no DAG, it is when it was materialized.
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


def fetch_upstream_events(
    instance: dg.DagsterInstance, dag: DagDeclaration, request: Request, downstream: str
) -> list[UpstreamEvent]:
    """Fetch the records of the events that led to a request, without those that were deleted.

    Args:
        downstream: The requested DAG, as instance/dag_id.
    """
    names = {edge.key: edge.name for edge in dag.depends_on}
    events = [fetch_event(instance, key, position) for key, position in request.events]
    return [
        build_upstream_event(event, names.get(event.key, "/".join(event.key.path)), downstream)
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


def fetch_runs_planned_after(
    instance: dg.DagsterInstance,
    key: dg.AssetKey,
    upstream_keys: Iterable[dg.AssetKey],
    observable_keys: Iterable[dg.AssetKey],
) -> list[str]:
    """Fetch the ids of the Dagster runs that were created to materialize an asset after the last
    update of each of its upstreams: latest first.

    A run that materialized the upstream itself counts, too. Empty if no upstream has an update.
    "After" is by the order of the event log.

    Args:
        upstream_keys: Of all upstreams. A materialization is an update.
        observable_keys: Of those for which an observation is one, too: it may have a new version.
    """
    last = list(_fetch_last(instance, upstream_keys).values())
    for observable in observable_keys:
        last += instance.fetch_observations(observable, limit=1).records
    planned = instance.fetch_planned_materializations(key, limit=_PLANNED_PER_QUERY).records
    return [
        record.run_id
        for record in planned
        if last and all(_is_before(update, record) for update in last)
    ]


@lru_cache(maxsize=8)  # nothing is added after the first event of the run
def fetch_planned_partitions(
    instance: dg.DagsterInstance, dagster_run_id: str
) -> dict[dg.AssetKey, list[Container[str | None]]]:
    """Fetch which assets a Dagster run was created to materialize, and which partitions of each.
    None may stand for an asset without partitions."""
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
    """In which order a Dagster run has materialized assets and launched DAGs.

    Its events are counted here. Their positions can't be compared with those of other queries:
    Dagster's default SQLite storage numbers the events of each run anew.

    Attributes:
        materialized: The number of each materialization, by asset, partition and timestamp.
        launched: The number of the first launch of each DAG and partition. A step that is repeated
            reports its launches again.
    """

    materialized: Mapping[tuple[dg.AssetKey, str | None, float], int]
    launched: Mapping[tuple[dg.AssetKey, str | None], int]

    def is_launched_after(self, event: AssetEvent, key: dg.AssetKey, partition: str | None) -> bool:
        """Whether the run has launched a DAG after a materialization that it has stored."""
        record = event.record
        at = self.materialized.get((event.key, record.partition_key, record.timestamp))
        launched_at = self.launched.get((key, partition))
        return at is not None and launched_at is not None and launched_at > at


def fetch_run_order(instance: dg.DagsterInstance, dagster_run_id: str) -> RunOrder:
    """Fetch the order. A launch is an observation which, unlike that of an end, has no outcome."""
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
    """Fetch the events of some kinds that a Dagster run has stored, in order."""
    cursor, has_more, kinds = None, True, set(kinds)
    while has_more:
        page = instance.get_records_for_run(dagster_run_id, cursor, kinds)
        yield from page.records
        cursor, has_more = page.cursor, page.has_more


def _is_before(update: dg.EventLogRecord, planned: dg.EventLogRecord) -> bool:
    return update.run_id == planned.run_id or update.storage_id < planned.storage_id


def fetch_last_request(instance: dg.DagsterInstance, key: dg.AssetKey) -> int:
    """Fetch the position in the event log of the last request to materialize an asset; -1 if there
    was none."""
    planned = instance.fetch_planned_materializations(key, limit=1).records
    return max((record.storage_id for record in planned), default=-1)


def fetch_last_evaluations(
    instance: dg.DagsterInstance, keys: Iterable[dg.AssetCheckKey]
) -> dict[dg.AssetCheckKey, dg.AssetCheckEvaluation]:
    """Fetch the last evaluations of some checks. A check that a Dagster run is about to evaluate is
    left out: of that, Dagster shows only the plan."""
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
    return read_time(evaluation, DEADLINE_LABEL)
