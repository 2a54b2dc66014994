"""Converts between a DAG's partitions and the dates and partition keys of its runs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Protocol

import dagster as dg

from federation_defs.airflow.models import DagRun, TriggerOptions
from federation_defs.declaration import PartitionsDeclaration
from federation_defs.declaration.partitions import find_next_window
from federation_defs.partition_mapping import NO_PARTITION, find_window

# Values of `run_type` of runs that may have any date. Airflow 3.3 has the last two.
_BY_HAND = "manual", "operator_triggered", "asset_materialization"
_MAX_KEY_CHARACTERS = 100  # of a partition key in a text


class DatedRun(Protocol):
    """The values of a run that decide its partition. Times are in UTC."""

    @property
    def run_type(self) -> str | None: ...
    @property
    def partition_key(self) -> str | None: ...
    @property
    def logical_date(self) -> datetime | None: ...
    @property
    def data_interval_start(self) -> datetime | None: ...
    @property
    def data_interval_end(self) -> datetime | None: ...


@dataclass(frozen=True)
class RunPartition:
    """The partition of a run.

    Attributes:
        key: The partition's key; None if the run belongs to no partition, or if its DAG has none.
        absence: Why the run belongs to none of its DAG's partitions, in sentences; else None.
    """

    key: str | None = None
    absence: str | None = None


@dataclass(frozen=True)
class Partitioning:
    """The partitions of one DAG."""

    declaration: PartitionsDeclaration

    @cached_property
    def definition(self) -> dg.TimeWindowPartitionsDefinition:
        return self.declaration.build_definition()

    def find_partition(self, run: DatedRun) -> RunPartition:
        """Return the partition of a run, by its partition key or else by the declared date.

        No clock decides: a run of a window that has not begun belongs to the partition that Dagster
        will add for it. These runs belong to no partition:

        - a run by hand without a partition key, unless a partition begins at its date: it may load
          anything;
        - a run before the first partition;
        - a run so near the year 9999 that Dagster can't compute its window.
        """
        date = self.read_date(run)
        if run.partition_key is not None:
            key = run.partition_key if self.is_partition(run.partition_key) else None
            shown = repr(run.partition_key[:_MAX_KEY_CHARACTERS])
            seen = f"Its partition key is {shown}."
        elif date is None:
            key, seen = None, f"It has no {self.declaration.date}."
        else:
            key = self._find_key(date)
            seen = f"Its {self.declaration.date} is {date.isoformat(' ')}."
            if key is not None and run.run_type in _BY_HAND and not self._is_tick(date):
                key, seen = None, f"{seen} It was started by hand, and no partition begins then."
        return RunPartition(key, None if key else f"{seen} Declared partitions: {self.describe()}.")

    def read_date(self, run: DatedRun) -> datetime | None:
        """Return the date that decides the partition of a run without a partition key."""
        return getattr(run, self.declaration.date)

    def describe(self) -> str:
        """Return the declared partitions as a part of a sentence."""
        declared = self.declaration
        return (
            f"`{declared.cron}` ({declared.timezone}) from {declared.start} on, with keys as "
            f"{self.definition.fmt}, by {declared.date}"
        )

    def is_partition(self, key: str) -> bool:
        """Whether a key is that of a partition, which may be in the future."""
        return find_window(self.definition, key) is not None

    def build_options(self, key: str, *, has_keys: bool) -> TriggerOptions:
        """Return the options that trigger a run of a partition.

        Args:
            has_keys: The DAG's runs have partition keys instead of dates (since Airflow 3.2).
        """
        if has_keys:
            return TriggerOptions("none", partition_key=key)
        window = self.definition.time_window_for_partition_key(key)
        if self.declaration.date == "logical_date":
            return TriggerOptions(window.start)
        logical_date = window.end if self.declaration.date == "data_interval_end" else window.start
        return TriggerOptions(logical_date, window)

    def _is_tick(self, date: datetime) -> bool:
        """Whether a partition begins at a moment, at which the one before it ends."""
        try:
            window = find_next_window(self.definition, date)
        except NO_PARTITION:
            return False
        # In the hour that is repeated in autumn, Python regards times of two zones as unequal.
        return window.start.timestamp() == date.timestamp()

    def _find_key(self, date: datetime) -> str | None:
        # A data interval that ends with a window belongs to that window, not to the next one.
        ends = self.declaration.date == "data_interval_end"
        try:
            # Whole seconds: Dagster's floating-point numbers hold them exactly in every year.
            second = date.replace(microsecond=0)
            if ends and second < date:
                second += timedelta(seconds=1)
            key = self.definition.get_partition_key_for_timestamp(second.timestamp(), ends)
        except NO_PARTITION:
            return None
        return key if self.is_partition(key) else None


def find_partition(partitionings: Mapping[str, Partitioning], run: DagRun) -> RunPartition:
    """Return the partition of a run.

    Args:
        partitionings: Of DAGs that have partitions, by DAG id.
    """
    partitioning = partitionings.get(run.dag_id)
    return partitioning.find_partition(run) if partitioning else RunPartition()
