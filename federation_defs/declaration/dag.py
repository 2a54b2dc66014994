"""One DAG: its dependencies, how to run it, and when its data is complete."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal
from zoneinfo import available_timezones

import dagster as dg
from pydantic import AfterValidator, Field, StringConstraints, model_validator

from federation_defs.declaration.fields import (
    Declaration,
    Duration,
    Switch,
    Templated,
    is_template,
    suggest,
)

# At most one tick per day, so that the date is enough for a key.
_DAILY = re.compile(r"\s*(\d+\s+\d+\s.*|@(daily|weekly|monthly|yearly|annually|midnight)\s*)")


def _check_cron(cron: str) -> str:
    try:
        dg.TimeWindowPartitionsDefinition(cron_schedule=cron, start="2026", fmt="%Y")
    except dg.DagsterInvalidDefinitionError:
        raise ValueError("write a cron expression of five fields (0 6 * * *), or @daily") from None
    return cron


def _check_format(key_format: str) -> str:
    try:
        text = datetime.datetime(2026, 1, 31, 13, 5).strftime(key_format)
        datetime.datetime.strptime(text, key_format)
    except ValueError:
        raise ValueError("write a format of strptime, such as %Y-%m-%d") from None
    return key_format


def _check_timezone(name: str) -> str:
    if name not in available_timezones():
        raise ValueError(f"no such time zone{suggest(name, available_timezones())}")
    return name


def _check_conf(conf: dict[str, Any]) -> dict[str, Any]:
    for path, value in _walk(conf):
        # Without the value, which may be a secret.
        seen = f"is of type {type(value).__name__}"
        if isinstance(value, float) and not math.isfinite(value):
            seen = "is no finite number"
        elif value is None or isinstance(value, str | bool | int | float):
            continue
        raise ValueError(f"{path} {seen}, which JSON does not have: write a text in quotes")
    return conf


def _walk(value: Any, path: str = "conf") -> Iterator[tuple[str, Any]]:
    """Return all values inside of mappings and lists, with their paths.

    Raises:
        ValueError: A key is no text.
    """
    if isinstance(value, Mapping | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            if isinstance(value, Mapping) and not isinstance(key, str):
                kind = type(key).__name__
                raise ValueError(f"{path} has a key of type {kind}: write the key in quotes")
            yield from _walk(item, f"{path}.{key}")
    else:
        yield path, value


class TriggerDeclaration(Declaration):
    """How to run a DAG that depends on others."""

    conf: Annotated[dict[str, Any], AfterValidator(_check_conf)] = Field(
        default={},
        repr=False,  # it may hold secrets
        description="The conf of each run.",
        examples=[{"source": "federation"}],
    )
    timeout: Duration = Field(
        default=86400.0,
        description="For the DAG run, as 30s, 5m, 24h or 7d. After it, waiting fails.",
    )
    on_timeout: Literal["leave", "cancel"] = Field(
        default="leave", description="Whether to cancel a DAG run that exceeds its time-out."
    )
    on_cancel: Literal["cancel", "leave"] = Field(
        default="cancel",
        description="Whether canceling a Dagster run cancels the DAG runs that it waits for.",
    )
    on_retry: Literal["clear_failed", "clear_all", "new_run"] = Field(
        default="clear_failed",
        description="What to do with a failed DAG run when its Dagster run is re-executed: clear "
        "its failed tasks, clear all its tasks, or start another DAG run.",
    )
    logical_date: Literal["now", "none"] = Field(
        default="now",
        description="The logical date of each run: the moment of the trigger by Airflow's clock, "
        "or none (Airflow 3). A run without one has no {{ ds }}, {{ ts }} or data interval.",
    )
    wait: Switch = Field(
        default=True,
        description="Whether the Dagster run waits for the DAG run. If not, it ends when the DAG "
        "run is started, and observation reports how the DAG run ended.",
    )


@cache  # pydantic would copy a default for each DAG
def _get_default_trigger() -> TriggerDeclaration:
    return TriggerDeclaration()


class PartitionsDeclaration(Declaration):
    """A DAG's runs as partitions, one for each tick of a schedule."""

    cron: Templated[Annotated[str, AfterValidator(_check_cron)]] = Field(
        description="When each partition begins.", examples=["0 0 * * *", "@hourly"]
    )
    start: datetime.date = Field(description="The first partition's day.", examples=["2026-01-01"])
    timezone: Templated[Annotated[str, AfterValidator(_check_timezone)]] = Field(
        default="UTC", description="Of `cron` and `start`.", examples=["Europe/Berlin"]
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

    @model_validator(mode="after")
    def _check_windows(self) -> PartitionsDeclaration:
        if any(map(is_template, (self.key_format, self.cron, self.timezone))):
            return self
        try:
            has_own_keys = _has_own_keys(self.build_definition())
        except Exception:  # noqa: BLE001 - Dagster raises errors of several libraries
            raise ValueError(
                f"cron, start: '{self.cron}' gives no partitions from {self.start} on; write days "
                "that exist, and a start in our time"
            ) from None
        if not has_own_keys and self.key_format:
            raise ValueError("key_format: two partitions have the same key; write more of the date")
        if not has_own_keys:  # 29 February (dagster 1.13)
            raise ValueError(
                f"cron: Dagster mistakes a partition of '{self.cron}' for another; write a cron "
                "expression with days of every year"
            )
        return self

    def build_definition(self) -> dg.TimeWindowPartitionsDefinition:
        """Return Dagster's definition: a partition from each tick of `cron` to the next."""
        is_daily = _DAILY.fullmatch(self.cron) is not None
        return dg.TimeWindowPartitionsDefinition(
            cron_schedule=self.cron,
            start=datetime.datetime.combine(self.start, datetime.time.min),
            timezone=self.timezone,
            fmt=self.key_format or ("%Y-%m-%d" if is_daily else "%Y-%m-%d-%H:%M"),
        )


@cache  # takes up to 0.4 s, and a load validates each DAG twice
def _has_own_keys(definition: dg.TimeWindowPartitionsDefinition) -> bool:
    """Whether the key of each window is parsed as that window: for two windows in a row, at other
    hours and in other months."""
    hours = [0, 12, *(31 * 24 * number for number in range(1, 7))]
    for moment in [definition.start + datetime.timedelta(hours=number) for number in hours]:
        end = moment
        for _ in range(2):
            window = definition.get_next_partition_window(end, respect_bounds=False)
            assert window is not None  # noqa: S101 - without bounds, there is always one
            key = definition.get_partition_key_for_timestamp(window.start.timestamp())
            if definition.time_window_for_partition_key(key) != window:
                return False
            end = window.end
    return True


class SuccessDeclaration(Declaration):
    """Which tasks decide whether a finished DAG run is a success."""

    tasks: list[str] | None = Field(
        default=None,
        min_length=1,
        description="Tasks or task groups that all must succeed; others may fail.",
    )
    all_except: list[str] | None = Field(
        default=None,
        min_length=1,
        description="Tasks or task groups that may fail; all others must succeed.",
    )

    @model_validator(mode="after")
    def _require_one_key(self) -> SuccessDeclaration:
        if (self.tasks is None) == (self.all_except is None):
            raise ValueError("write either `tasks` or `all_except`")
        return self


class DagDeclaration(Declaration):
    """What is declared of one DAG."""

    depends_on: list[Annotated[str, StringConstraints(pattern=r"^[^/\s]+/\S+$")]] = Field(
        default=[],
        description="Upstream DAGs as instance/dag_id: a success of any of them starts this DAG.",
        examples=[["warehouse/load_customers"]],
    )
    trigger: TriggerDeclaration = Field(default_factory=_get_default_trigger)
    partitions: PartitionsDeclaration | None = Field(
        default=None, description="The DAG's runs as partitions; none unless set."
    )
    success_when: SuccessDeclaration | None = Field(
        default=None,
        description="Which tasks decide whether a run is a success; the run's state unless set.",
        examples=[{"tasks": ["load", "publish"]}, {"all_except": ["clean_up"]}],
    )

    @model_validator(mode="after")
    def _refuse_what_partitions_decide(self) -> DagDeclaration:
        if self.partitions is None:
            return self
        if self.trigger.on_retry == "new_run":
            raise ValueError(
                "trigger.on_retry: Airflow runs a date once, so that a partition can't have a "
                "`new_run`; write clear_failed or clear_all"
            )
        if "logical_date" in self.trigger.model_fields_set:
            raise ValueError(
                "trigger.logical_date: `partitions` decides the date of each run; remove one of "
                "the two keys"
            )
        return self

    @property
    def upstreams(self) -> list[tuple[str, str]]:
        """The upstream DAGs, each as (instance, DAG id)."""
        pairs = (upstream.split("/", 1) for upstream in self.depends_on)
        return [(instance, dag_id) for instance, dag_id in pairs]
