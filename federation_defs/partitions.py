"""The partitions of a DAG: of which one a run is, and how a run of one is asked for. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, time
from functools import cached_property

import dagster as dg

from federation_defs.airflow.models import DagRun, TriggerOptions
from federation_defs.declaration import PartitionsDeclaration

# A tick a day at most: the date names it.
_DAILY = re.compile(r"\s*(\d+\s+\d+\s.*|@(daily|weekly|monthly|yearly|annually|midnight)\s*)")


@dataclass(frozen=True)
class Partitioning:
    """How a DAG's runs and Dagster's partitions stand to each other."""

    declaration: PartitionsDeclaration

    @cached_property
    def definition(self) -> dg.TimeWindowPartitionsDefinition:
        """What Dagster shows: a partition from each tick of the cron expression to the next."""
        declared = self.declaration
        is_daily = _DAILY.fullmatch(declared.cron) is not None
        return dg.TimeWindowPartitionsDefinition(
            cron_schedule=declared.cron,
            start=datetime.combine(declared.start, time.min),
            timezone=declared.timezone,
            fmt=declared.key_format or ("%Y-%m-%d" if is_daily else "%Y-%m-%d-%H:%M"),
        )

    def find_partition(self, run: DagRun) -> str | None:
        """The partition that a run is of: by its partition key, or else by its declared date.

        None if it is of none, for it has no such date, or one before the first partition. One whose
        window is not over yet is told too: Dagster knows it from its end on.
        """
        if run.partition_key is not None:
            return run.partition_key if self._is_partition(run.partition_key) else None
        dates = {
            "data_interval_start": run.data_interval_start,
            "data_interval_end": run.data_interval_end,
            "logical_date": run.logical_date,
        }
        date = dates[self.declaration.date]
        if date is None or date < self.definition.start:
            return None
        # An interval that ends when a window does is of that window, and not of the next one.
        ends = self.declaration.date == "data_interval_end"
        key = self.definition.get_partition_key_for_timestamp(date.timestamp(), end_closed=ends)
        return key if self._is_partition(key) else None

    def build_options(self, key: str, *, has_keys: bool) -> TriggerOptions:
        """How a run of a partition is asked for.

        Args:
            has_keys: The DAG's runs have partition keys in place of dates (Airflow 3.2).
        """
        if has_keys:
            return TriggerOptions(partition_key=key)
        window = self.definition.time_window_for_partition_key(key)
        match self.declaration.date:
            case "data_interval_start":
                return TriggerOptions(window.start, (window.start, window.end))
            case "data_interval_end":
                return TriggerOptions(window.end, (window.start, window.end))
            case "logical_date":
                return TriggerOptions(window.start)

    def _is_partition(self, key: str) -> bool:
        """Whether this is a partition's key, be that over or not: it begins at a tick, and not
        before the first one."""
        try:
            start = self.definition.time_window_for_partition_key(key).start
        except (ValueError, dg.DagsterInvariantViolationError):
            return False
        first = self.definition.get_first_partition_window()
        is_before = first is not None and start < first.start
        again = self.definition.get_partition_key_for_timestamp(start.timestamp())
        return again == key and not is_before
