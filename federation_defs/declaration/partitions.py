"""A DAG's runs as partitions: windows of time, and their keys."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import dagster as dg
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from federation_defs.declaration.fields import (
    Declaration,
    Templated,
    check_timezone,
    is_template,
)

_AUTO = "auto"
_WINDOWS_IN_A_ROW = 3  # to check after each moment
_WINDOWS_PER_CADENCE = 7
# Schedules with at most one tick per day: the date is enough for a key.
_DAILY = re.compile(r"\s*(\d+\s+\d+\s.*|@(daily|weekly|monthly|yearly|annually|midnight)\s*)")


def _check_cron(cron: str) -> str:
    if cron == _AUTO:
        return cron
    try:
        dg.TimeWindowPartitionsDefinition(cron_schedule=cron, start="2026", fmt="%Y")
    except dg.DagsterInvalidDefinitionError:
        raise ValueError(
            "write a cron expression of five fields (0 6 * * *), @daily or auto"
        ) from None
    return cron


def _check_format(key_format: str) -> str:
    try:
        text = datetime.datetime(2026, 1, 31, 13, 5).strftime(key_format)
        datetime.datetime.strptime(text, key_format)
    except (ValueError, re.error):  # re.error: for a directive that comes twice
        raise ValueError(
            "write a format of strptime, such as %Y-%m-%d, or %G-W%V-%u for weeks; keys have no "
            "time zone (%z, %Z)"
        ) from None
    return key_format


def _refuse_number(start: Any) -> Any:
    """Refuse a number, which pydantic would take for seconds since 1970."""
    try:
        float(start)
    except (TypeError, ValueError):
        return start
    raise ValueError("write a day, as 2026-01-01")


class PartitionsDeclaration(Declaration):
    """A DAG's runs as partitions, one for each tick of a schedule. The text `auto` is `cron: auto`.

    With `cron: auto`, keys that are not set come from the DAG's schedule in its Airflow. A refresh
    resolves them (`schedules.py`). Only a declaration that is resolved has a definition.
    """

    cron: Templated[Annotated[str, AfterValidator(_check_cron)]] = Field(
        description="When each partition begins. With auto, this and the other keys that are not "
        "set come from the DAG's own schedule; `partitions: auto` is the same.",
        examples=["0 0 * * *", "@hourly", "auto"],
    )
    start: Annotated[datetime.date | None, BeforeValidator(_refuse_number)] = Field(
        default=None,
        description="The first partition's day. With `cron: auto`, it comes from the DAG's start "
        "date unless set.",
        examples=["2026-01-01"],
    )
    timezone: Templated[Annotated[str, AfterValidator(check_timezone)]] = Field(
        default="UTC",
        description="The time zone of `cron` and `start`.",
        examples=["Europe/Berlin"],
    )
    date: Literal["data_interval_start", "data_interval_end", "logical_date"] = Field(
        default="data_interval_start",
        description="The date of a run that decides its partition. The daily run of 2 January has "
        "1 January as data_interval_start in Airflow 2. In Airflow 3 all three dates are 2 January "
        "unless the DAG says otherwise; if it processes the day before, use data_interval_end.",
    )
    key_format: Templated[Annotated[str, AfterValidator(_check_format)]] | None = Field(
        default=None,
        description="The strftime format of the partition keys; 2026-01-31 or 2026-01-31-13:00 "
        "unless set. For a DAG with partition keys (Airflow 3.2), the format of those.",
        examples=["%Y-%m-%dT%H:%M:%S"],
    )

    @model_validator(mode="before")
    @classmethod
    def _parse_text(cls, value: Any) -> Any:
        if value == _AUTO:
            return {"cron": value}
        if isinstance(value, str):
            raise ValueError("write auto, or the keys `cron` and `start`")
        if (
            isinstance(value, Mapping)
            and "cron" not in value
            and cls.model_fields.keys() >= {*value}
        ):
            raise ValueError("cron: write when each partition begins, as 0 0 * * *, or auto")
        return value

    @model_validator(mode="after")
    def _check_windows(self) -> PartitionsDeclaration:
        if self.is_auto or any(map(is_template, (self.key_format, self.cron, self.timezone))):
            return self
        if self.start is None:
            raise ValueError("start: write the first partition's day, as 2026-01-01")
        try:
            definition = self.build_definition()
            _compute_cadence_s(definition)
            has_own_keys = _has_own_keys(definition, has_default_format=not self.key_format)
        except Exception:  # noqa: BLE001 - Dagster raises errors of several libraries
            raise ValueError(
                f"cron, start: '{self.cron}' gives no partitions from {self.start} on; write days "
                "that exist, and a start in our time"
            ) from None
        if has_own_keys:
            return self
        default = self._build_definition(None)
        if self.key_format and _has_own_keys(default, has_default_format=True):
            raise ValueError("key_format: two partitions have the same key; write more of the date")
        raise ValueError(
            f"cron: Dagster mistakes a partition of '{self.cron}' in {self.timezone} for another; "
            "write days of every year, and where clocks change, every hour (*/15 * * * *) or "
            "`timezone: UTC`"
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        declared = super().__get_pydantic_json_schema__(schema, handler)
        is_auto = {"properties": {"cron": {"const": _AUTO}}}
        needs_start = {"if": is_auto, "else": {"required": ["start"]}}
        return {
            "if": {"type": "string"},
            "then": {"const": _AUTO},
            "else": {"allOf": [declared, needs_start]},
        }

    @property
    def is_auto(self) -> bool:
        """Whether keys that are not set come from the DAG's schedule in its Airflow."""
        return self.cron == _AUTO

    @property
    def cadence_s(self) -> float:
        """The mean time from one partition to the next, in seconds."""
        return _compute_cadence_s(self.build_definition())

    def build_definition(self) -> dg.TimeWindowPartitionsDefinition:
        """Return Dagster's definition: a partition from each tick of `cron` to the next.

        The current window is a partition, too, unless `date` is "data_interval_end".
        """
        return self._build_definition(self.key_format)

    def _build_definition(self, key_format: str | None) -> dg.TimeWindowPartitionsDefinition:
        assert self.start is not None  # noqa: S101 - as validated, unless `is_auto`
        is_daily = _DAILY.fullmatch(self.cron) is not None
        return dg.TimeWindowPartitionsDefinition(
            cron_schedule=self.cron,
            start=datetime.datetime.combine(self.start, datetime.time.min),
            timezone=self.timezone,
            fmt=key_format or ("%Y-%m-%d" if is_daily else "%Y-%m-%d-%H:%M"),
            end_offset=0 if self.date == "data_interval_end" else 1,
        )


def find_next_window(
    definition: dg.TimeWindowPartitionsDefinition, moment: datetime.datetime
) -> dg.TimeWindow:
    """Return the first window that begins at a time or later. It may precede all partitions."""
    return _require(definition.get_next_partition_window(moment, respect_bounds=False))


def find_last_window(
    definition: dg.TimeWindowPartitionsDefinition, moment: datetime.datetime
) -> dg.TimeWindow:
    """Return the last window that ends at a time or earlier. It may precede all partitions."""
    return _require(definition.get_prev_partition_window(moment, respect_bounds=False))


def _require(window: dg.TimeWindow | None) -> dg.TimeWindow:
    assert window is not None  # noqa: S101 - without bounds, there is always one
    return window


@cache  # the DAGs of a fleet share few definitions
def _compute_cadence_s(definition: dg.TimeWindowPartitionsDefinition) -> float:
    end = first_end = find_next_window(definition, definition.start).end
    for _ in range(_WINDOWS_PER_CADENCE):
        end = find_next_window(definition, end).end
    return (end.timestamp() - first_end.timestamp()) / _WINDOWS_PER_CADENCE


@cache  # takes up to 20 ms, and a load validates each DAG twice
def _has_own_keys(
    definition: dg.TimeWindowPartitionsDefinition, *, has_default_format: bool
) -> bool:
    """Whether the keys of the start and middle of each tested window are parsed as that window.

    A format that leaves something out fails for windows that follow each other, at other hours, in
    other months, or when clocks change. The default formats can fail only when clocks change.
    """
    later = () if has_default_format else (12, *(31 * 24 * number for number in range(1, 7)))
    moments = [definition.start + datetime.timedelta(hours=hours) for hours in (0, *later)]
    for moment in [*moments, *_find_clock_changes(definition.timezone)]:
        end = moment
        for _ in range(_WINDOWS_IN_A_ROW):
            window = find_next_window(definition, end)
            start_s, end_s = window.start.timestamp(), window.end.timestamp()
            moments_s = (start_s, (start_s + end_s) / 2)
            keys = {definition.get_partition_key_for_timestamp(each) for each in moments_s}
            if [definition.time_window_for_partition_key(key) for key in keys] != [window]:
                return False
            end = window.end
    return True


@cache
def _find_clock_changes(timezone: str) -> list[datetime.datetime]:
    """Return the full hours (UTC) before and after each change of a time zone's clocks in 2026."""
    zone, begin = ZoneInfo(timezone), datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    hours = [begin + datetime.timedelta(hours=number) for number in range(366 * 24)]
    return [
        moment
        for before, after in pairwise(hours)
        if before.astimezone(zone).utcoffset() != after.astimezone(zone).utcoffset()
        for moment in (before, after)
    ]
