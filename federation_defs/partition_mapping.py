"""Finds the partitions of a downstream DAG that an update of an upstream concerns. Pure.

Partitions are time windows, which may differ in length and offset: a day has 23, 24 or 25 hours,
and a day in Berlin overlaps two days in UTC. So a partition needs those partitions of an upstream
whose windows overlap its own. An update of an upstream's partition concerns the partitions that
need it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cache, lru_cache

import dagster as dg

from federation_defs.declaration import (
    DagDeclaration,
    Granularity,
    InstanceDeclaration,
    Window,
    find_upstream,
)
from federation_defs.declaration.partitions import find_next_window

# Raised by Dagster for an invalid key, and near the year 9999 (1.13).
NO_PARTITION = (ArithmeticError, ValueError, dg.DagsterInvariantViolationError)
_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True)
class PartitionMapping:
    """How the partitions of a DAG depend on one upstream.

    Attributes:
        downstream: The partitions of the DAG.
        upstream: The partitions of the upstream. None if it has none, or if it is a Dagster asset.
            Of the partitions of an asset only the keys of its updates are known, which have to be
            keys of the DAG's own partitions.
        window: For an upstream with partitions, the window of the upstream that a partition needs:
            "same" or "previous". For an upstream without partitions, the window of the DAG that an
            update concerns: "last", the last one that is over, or "current".
        granularity: If the upstream's partitions are shorter, which of them a partition needs.
    """

    downstream: dg.TimeWindowPartitionsDefinition
    upstream: dg.TimeWindowPartitionsDefinition | None
    window: Window
    granularity: Granularity

    def build_dagster_mapping(self) -> dg.PartitionMapping | None:
        """Return Dagster's mapping; None for its default.

        Dagster's mapping of time windows refuses two time zones (1.13). If the time zones differ,
        Dagster shows each partition as dependent on all of the upstream.
        """
        if self.upstream is None:
            return None
        if self.upstream.timezone != self.downstream.timezone:
            return dg.AllPartitionMapping()
        offset = -1 if self.window == "previous" else 0
        return dg.TimeWindowPartitionMapping(
            offset, offset, allow_nonexistent_upstream_partitions=True
        )

    def find_updated(self, partition: str | None, moment: datetime) -> list[str]:
        """Return the keys of the partitions that an update of the upstream concerns, the earliest
        first. Empty if there are none, or near the year 9999.

        Args:
            partition: The upstream's partition that was updated; None if the update has none.
            moment: When the upstream was updated, as `AssetEvent.moment` gives it.
        """
        try:
            return self._find_updated(partition, moment)
        except NO_PARTITION:
            return []

    def _find_updated(self, partition: str | None, moment: datetime) -> list[str]:
        downstream = self.downstream
        if self.upstream is None and partition is not None:
            return [partition] if find_window(downstream, partition) else []
        if self.upstream is None:
            window = _get_window(downstream, moment)
            if self.window == "last":
                window = _get_window(downstream, window.start - _INSTANT)
            return _find_keys(downstream, window.start, window.start + _INSTANT)
        updated = find_window(self.upstream, partition) if partition is not None else None
        if updated is None:
            return []
        begin, end = _get_window(downstream, updated.start).start, updated.end
        if self.window == "previous":
            begin = _get_window(downstream, begin).end
            end = _get_window(downstream, end - _INSTANT).end + _INSTANT
        keys = _find_keys(downstream, begin, end)
        if self.granularity == "last":
            keys = [key for key in keys if self.find_needed(key)[0] == [partition]]
        return keys

    def find_needed(self, partition: str) -> tuple[list[str], int]:
        """Return the keys of the upstream's partitions that count for a partition, the earliest
        first, and how many of them it needs."""
        if self.upstream is None:
            return [], 0
        window = in_utc(self.downstream.time_window_for_partition_key(partition))
        if self.window == "previous":
            window = _get_window(self.downstream, window.start - _INSTANT)
        begin = _get_window(self.upstream, window.start).start
        keys = _find_keys(self.upstream, begin, window.end)
        match self.granularity:
            case "all":
                return keys, len(keys)
            case "last":
                return keys[-1:], len(keys[-1:])
            case "any":
                return keys, min(1, len(keys))
            case count:
                return keys, min(count, len(keys))


def build_mappings(
    dag: DagDeclaration, instances: Mapping[str, InstanceDeclaration]
) -> list[PartitionMapping]:
    """Return how the partitions of a DAG depend on each of its dependencies, in the order of
    `depends_on`. Empty if the DAG has no partitions.

    Args:
        instances: The declarations of the instances on which the DAG depends, by name. For DAGs of
            other instances, the partitions that are declared with the dependency are used.
    """
    if dag.partitions is None:
        return []
    downstream = dag.partitions.build_definition()
    mappings: list[PartitionMapping] = []
    for edge in dag.depends_on:
        known = find_upstream(instances, edge.upstream)
        partitions = known.partitions if known else edge.partitions
        window = edge.window or ("last" if partitions is None else "same")
        upstream = partitions and partitions.build_definition()
        mappings.append(PartitionMapping(downstream, upstream, window, dag.granularity))
    return mappings


def select_decided_by_events(
    dags: Mapping[str, DagDeclaration], instances: Mapping[str, InstanceDeclaration]
) -> dict[str, DagDeclaration]:
    """Select the DAGs that the event sensor starts, and no automation condition.

    They include the DAGs that depend on a DAG with partitions, even if they have none themselves:
    automation conditions would wait until the upstream has all of its partitions.

    Args:
        instances: The declarations of all instances on which the DAGs depend, by name.
    """

    def has_partitions(upstream: tuple[str, str]) -> bool:
        known = find_upstream(instances, upstream)
        return known is not None and known.partitions is not None

    return {
        dag_id: dag
        for dag_id, dag in dags.items()
        if dag.is_decided_by_events or any(map(has_partitions, dag.upstreams))
    }


@lru_cache(10_000)  # a backfill asks for the same partitions again and again
def find_window(definition: dg.TimeWindowPartitionsDefinition, key: str) -> dg.TimeWindow | None:
    """Return the window of a partition; None if no partition ever has this key."""
    try:
        window = in_utc(definition.time_window_for_partition_key(key))
        is_own = definition.get_partition_key_for_timestamp(window.start.timestamp()) == key
    except NO_PARTITION:
        return None
    return window if is_own and window.start >= _get_first(definition) else None


def _get_window(definition: dg.TimeWindowPartitionsDefinition, moment: datetime) -> dg.TimeWindow:
    key = definition.get_partition_key_for_timestamp(moment.timestamp())
    return in_utc(definition.time_window_for_partition_key(key))


def in_utc(window: dg.TimeWindow) -> dg.TimeWindow:
    """Return a window in UTC, so that its times can be compared: within another time zone, Python
    ignores that an hour is repeated in autumn."""
    return dg.TimeWindow(window.start.astimezone(timezone.utc), window.end.astimezone(timezone.utc))


@cache
def _get_first(definition: dg.TimeWindowPartitionsDefinition) -> datetime:
    return in_utc(find_next_window(definition, definition.start)).start


def _find_keys(
    definition: dg.TimeWindowPartitionsDefinition, begin: datetime, end: datetime
) -> list[str]:
    """Return the keys of the partitions that begin at or after one time and before another."""
    begin = max(begin, _get_first(definition))
    window = dg.TimeWindow(begin, end)
    return list(definition.get_partition_keys_in_time_window(window)) if begin < end else []
