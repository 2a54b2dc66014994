"""Convert between a DAG's partitions and the dates and partition keys of its runs. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import dagster as dg

from federation_defs.airflow.models import DagRun, TriggerOptions
from federation_defs.declaration import PartitionsDeclaration

# What Dagster raises for other keys, and near the year 9999 (1.13).
_NO_PARTITION = (ArithmeticError, ValueError, dg.DagsterInvariantViolationError)


@dataclass(frozen=True)
class Partitioning:
    """The partitions of one DAG."""

    declaration: PartitionsDeclaration

    @cached_property
    def definition(self) -> dg.TimeWindowPartitionsDefinition:
        return self.declaration.build_definition()

    def find_partition(self, run: DagRun) -> str | None:
        """Return the partition of a run, from its partition key or else its declared date.

        None if the run has neither, or is before the first partition. A partition counts before the
        end of its window, which is when Dagster adds it.
        """
        if run.partition_key is not None:
            return run.partition_key if self._is_partition(run.partition_key) else None
        date: datetime | None = getattr(run, self.declaration.date)
        if date is None or date < self.definition.start:
            return None
        # A data interval that ends with a window belongs to that window, not to the next.
        ends = self.declaration.date == "data_interval_end"
        try:
            key = self.definition.get_partition_key_for_timestamp(date.timestamp(), end_closed=ends)
        except _NO_PARTITION:
            return None
        return key if self._is_partition(key) else None

    def build_options(self, key: str, *, has_keys: bool) -> TriggerOptions:
        """Return the options that trigger a run of a partition.

        Args:
            has_keys: The DAG's runs have partition keys in place of dates (Airflow 3.2).
        """
        if has_keys:
            return TriggerOptions("none", partition_key=key)
        window = self.definition.time_window_for_partition_key(key)
        if self.declaration.date == "logical_date":
            return TriggerOptions(window.start)
        logical_date = window.end if self.declaration.date == "data_interval_end" else window.start
        return TriggerOptions(logical_date, window)

    def _is_partition(self, key: str) -> bool:
        """Whether the key's window begins with a tick, and not before the first partition."""
        try:
            start = self.definition.time_window_for_partition_key(key).start
            first = self.definition.get_first_partition_window()
            if first is not None and start < first.start:
                return False
            return self.definition.get_partition_key_for_timestamp(start.timestamp()) == key
        except _NO_PARTITION:
            return False
