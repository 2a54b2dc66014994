"""Which partitions of a downstream DAG an update of an upstream is about. Pure.

Partitions are windows of time, which need not be equal: a day has 23, 24 or 25 hours, and a day in
Berlin overlaps two days in UTC. So a partition needs those partitions of an upstream whose windows
overlap its own, and an update of an upstream's partition is about those that need it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache, lru_cache
from typing import Literal

import dagster as dg

# What Dagster raises for a key that is none, and near the year 9999 (1.13).
_NO_PARTITION = (ArithmeticError, ValueError, dg.DagsterInvariantViolationError)
_INSTANT = timedelta(microseconds=1)

Window = Literal["same", "previous", "last", "current"]
Granularity = Literal["all", "last", "any"] | int


@dataclass(frozen=True)
class PartitionMapping:
    """How the partitions of a DAG depend on one upstream.

    Attributes:
        downstream: The partitions of the DAG.
        upstream: Those of the upstream. None if it has none, or is a Dagster asset: what is known
            of the partitions of that are the keys of its updates, which have to be the DAG's own.
        window: For an upstream with partitions, "same" or "previous": which window of the upstream
            a partition needs. For one without, "last" or "current": whether an update is about the
            last window that is over, or about the one that goes on.
        granularity: Of shorter partitions of the upstream, which ones a partition needs.
    """

    downstream: dg.TimeWindowPartitionsDefinition
    upstream: dg.TimeWindowPartitionsDefinition | None
    window: Window
    granularity: Granularity

    def find_updated(self, partition: str | None, moment: datetime) -> list[str]:
        """Return the partitions that an update of the upstream is about, the earliest first.

        Args:
            partition: The upstream's partition that was updated; None if the update has none.
            moment: When the upstream was updated.
        """
        if self.upstream is None and partition is not None:
            return [partition] if find_window(self.downstream, partition) else []
        if self.upstream is None:
            window = _get_window(self.downstream, moment)
            if self.window == "last":
                window = _get_window(self.downstream, window.start - _INSTANT)
            return _name(self.downstream, [window])
        updated = find_window(self.upstream, partition) if partition is not None else None
        if updated is None:
            return []
        windows = _iterate(self.downstream, updated)
        if self.window == "previous":
            windows = (_get_window(self.downstream, window.end) for window in windows)
        keys = _name(self.downstream, windows)
        if self.granularity == "last":
            keys = [key for key in keys if self.find_needed(key)[0] == [partition]]
        return keys

    def find_needed(self, partition: str) -> tuple[list[str], int]:
        """Return which partitions of the upstream count for a partition, the earliest first, and
        how many of them it needs."""
        if self.upstream is None:
            return [], 0
        window = self.downstream.time_window_for_partition_key(partition)
        if self.window == "previous":
            window = _get_window(self.downstream, window.start - _INSTANT)
        keys = _name(self.upstream, _iterate(self.upstream, window))
        match self.granularity:
            case "all":
                return keys, len(keys)
            case "last":
                return keys[-1:], len(keys[-1:])
            case "any":
                return keys, min(1, len(keys))
            case count:
                return keys, min(count, len(keys))


@lru_cache(10_000)  # a backfill asks for the same partitions again and again
def find_window(definition: dg.TimeWindowPartitionsDefinition, key: str) -> dg.TimeWindow | None:
    """Return the window of a partition; None if no partition ever has this key."""
    try:
        window = definition.time_window_for_partition_key(key)
        is_own = definition.get_partition_key_for_timestamp(window.start.timestamp()) == key
    except _NO_PARTITION:
        return None
    return window if is_own and window.start >= _get_first(definition) else None


def _get_window(definition: dg.TimeWindowPartitionsDefinition, moment: datetime) -> dg.TimeWindow:
    key = definition.get_partition_key_for_timestamp(moment.timestamp())
    return definition.time_window_for_partition_key(key)


def _iterate(
    definition: dg.TimeWindowPartitionsDefinition, period: dg.TimeWindow
) -> Iterator[dg.TimeWindow]:
    """Iterate over the windows that overlap a period."""
    window = _get_window(definition, period.start)
    while window.start < period.end:
        yield window
        window = _get_window(definition, window.end)


@cache
def _get_first(definition: dg.TimeWindowPartitionsDefinition) -> datetime:
    first = definition.get_next_partition_window(definition.start, respect_bounds=False)
    assert first is not None  # noqa: S101 - without bounds, there is always one
    return first.start


def _name(
    definition: dg.TimeWindowPartitionsDefinition, windows: Iterable[dg.TimeWindow]
) -> list[str]:
    """Return the keys of windows, without those before the first partition."""
    first = _get_first(definition)
    return [
        definition.get_partition_key_for_timestamp(window.start.timestamp())
        for window in windows
        if window.start >= first
    ]
