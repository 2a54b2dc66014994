"""What a DAG depends on, and when it is late."""

from __future__ import annotations

import datetime
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal, TypeAlias

import dagster as dg
from pydantic import (
    AfterValidator,
    Field,
    GetJsonSchemaHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from federation_defs.declaration.fields import (
    Declaration,
    Duration,
    Switch,
    Templated,
    check_timezone,
    is_template,
)
from federation_defs.declaration.partitions import (
    PartitionsDeclaration,
    find_last_window,
    find_next_window,
)
from federation_defs.naming import build_asset_key

State: TypeAlias = Literal["success", "failure", "finished", "late", "slow"]

Window: TypeAlias = Literal["same", "previous", "last", "current"]

_SHORTEST_WINDOW_S = 60  # of Dagster's freshness policies
_DAG_PATTERN = r"^[^/\s]+/\S+$|\{\{"


def _check_dag(dag: str) -> str:
    if not (is_template(dag) or re.fullmatch(r"[^/\s]+/\S+", dag)):
        raise ValueError("write instance/dag_id, as warehouse/load_orders")
    return dag


def _check_part(part: str) -> str:
    if not part or "/" in part:
        raise ValueError("write each part of the key as an item of its own: [sales, targets]")
    return part


class DependencyDeclaration(Declaration):
    """One upstream, and which of its events count. A text stands for the success of a DAG."""

    dag: (
        Annotated[
            str,
            AfterValidator(_check_dag),
            WithJsonSchema({"type": "string", "pattern": _DAG_PATTERN}),
        ]
        | None
    ) = Field(
        default=None, description="A DAG, as instance/dag_id.", examples=["warehouse/load_orders"]
    )
    asset: list[Annotated[str, AfterValidator(_check_part)]] | None = Field(
        default=None,
        min_length=1,
        description="The key of a Dagster asset of this code location: its materializations count.",
        examples=[["sales", "targets"]],
    )
    state: State = Field(
        default="success",
        description="What counts: that a run of the DAG succeeded, failed, or did either "
        "(finished); that no run has succeeded by the DAG's `deadline` (late); or that a run takes "
        "longer than the DAG's `max_duration` (slow).",
    )
    window: Window | None = Field(
        default=None,
        description="For a DAG with partitions. If the upstream has partitions: which window of it "
        "a partition needs, same (unless set) or previous. If it has none: which window of the DAG "
        "an update is about, the last one that is over (last, unless set) or the current one.",
    )
    partitions: PartitionsDeclaration | None = Field(
        default=None,
        description="The partitions of a DAG that another code location declares, as declared "
        "there: cron, start, timezone, date and key_format.",
    )
    across_environments: Switch = Field(
        default=False,
        description="Allow that the DAG belongs to an instance of another `environment`.",
    )

    @model_validator(mode="before")
    @classmethod
    def _parse_text(cls, value: Any) -> Any:
        return {"dag": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _require_one_upstream(self) -> DependencyDeclaration:
        if (self.dag is None) == (self.asset is None):
            raise ValueError("write either `dag` or `asset`")
        if self.asset is not None and (self.state != "success" or self.across_environments):
            raise ValueError("asset: an asset has neither a `state` nor an environment")
        if self.partitions is not None and (self.asset is not None or self.partitions.is_auto):
            raise ValueError(
                "partitions: write them for a DAG of another code location only, and in full: "
                "{cron: 0 0 * * *, start: 2026-01-01}"
            )
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        declared = super().__get_pydantic_json_schema__(schema, handler)
        return {"if": {"type": "string"}, "then": {"pattern": _DAG_PATTERN}, "else": declared}

    @property
    def upstream(self) -> tuple[str, str] | None:
        """The DAG, as (instance, DAG id); None for an asset."""
        if self.dag is None:
            return None
        instance, dag_id = self.dag.split("/", 1)
        return instance, dag_id

    @property
    def key(self) -> dg.AssetKey:
        """The key of the upstream's asset."""
        return build_asset_key(*self.upstream) if self.upstream else dg.AssetKey(self.asset or [])

    @property
    def name(self) -> str:
        """The upstream, as instance/dag_id, or the asset key with slashes."""
        return self.dag if self.dag is not None else "/".join(self.asset or ())


class DeadlineDeclaration(Declaration):
    """By when a run of a DAG must have succeeded."""

    cron: Templated[str] = Field(description="When the deadlines are.", examples=["0 6 * * *"])
    within: Duration = Field(
        description="How long before a deadline a success counts for it, as 3h. Not longer than "
        "the time between two deadlines."
    )
    timezone: Templated[Annotated[str, AfterValidator(check_timezone)]] = Field(
        default="UTC", description="The time zone of `cron`.", examples=["Europe/Berlin"]
    )

    @model_validator(mode="after")
    def _check_interval(self) -> DeadlineDeclaration:
        if not any(map(is_template, (self.cron, self.timezone, self.within))):
            try:
                self.build_policy()
            except Exception:  # noqa: BLE001 - Dagster raises errors of several libraries
                raise ValueError(self._describe_problem()) from None
        return self

    def _describe_problem(self) -> str:
        """Return which of the keys Dagster refuses, and what to write."""
        try:
            next(self.iterate_back(datetime.datetime.now(datetime.timezone.utc)))
        except Exception:  # noqa: BLE001 - Dagster raises errors of several libraries
            return (
                f"cron: '{self.cron}' gives no deadlines; write a cron expression of five fields "
                "(0 6 * * *)"
            )
        if self.within < _SHORTEST_WINDOW_S:
            return f"within: {self.within:g} s is too short; write a minute (1m) or more"
        return (
            f"within: {self.within:.0f} s is longer than the time between two deadlines of "
            f"'{self.cron}'; write that time or less"
        )

    def build_policy(self) -> dg.FreshnessPolicy:
        """Return Dagster's freshness policy, which shows the deadline in the UI."""
        return _build_policy(self.cron, self.window, self.timezone)

    @property
    def window(self) -> datetime.timedelta:
        """How long before a deadline a success counts for it."""
        return datetime.timedelta(seconds=self.within)

    def iterate_back(self, until: datetime.datetime) -> Iterator[datetime.datetime]:
        """Iterate over the deadlines at or before a time, the latest first, in UTC. Never ends."""
        windows = _build_windows(self.cron, self.timezone)
        while True:
            window = find_last_window(windows, until)
            yield window.end.astimezone(datetime.timezone.utc)
            until = window.start

    def find_next(self, after: datetime.datetime) -> datetime.datetime:
        """Return the first deadline after a time (not at it), in UTC."""
        later = after + datetime.timedelta(microseconds=1)
        window = find_next_window(_build_windows(self.cron, self.timezone), later)
        return window.start.astimezone(datetime.timezone.utc)


@cache
def _build_policy(cron: str, window: datetime.timedelta, timezone: str) -> dg.FreshnessPolicy:
    """Return a policy. DAGs share equal ones: Dagster takes up to 0.02 s to check one (1.13)."""
    return dg.FreshnessPolicy.cron(cron, window, timezone)


@cache
def _build_windows(cron: str, timezone: str) -> dg.TimeWindowPartitionsDefinition:
    """Return the windows between the ticks of a cron expression. Dagster (1.13) has no other
    public function that finds the ticks."""
    start = datetime.datetime(2026, 1, 1)  # any date: there are windows before it, too
    return dg.TimeWindowPartitionsDefinition(
        cron_schedule=cron, start=start, timezone=timezone, fmt="%Y-%m-%d-%H:%M"
    )


def refuse_duplicates(dependencies: list[DependencyDeclaration]) -> list[DependencyDeclaration]:
    """Return the dependencies. Refuse them if two count the same events of an upstream."""
    states: defaultdict[tuple[str | None, ...], set[State]] = defaultdict(set)
    for each in dependencies:
        seen = states[(each.dag, *(each.asset or ()))]
        if each.state in seen:
            raise ValueError(f"'{each.name}' is named twice with state {each.state}; remove one")
        seen.add(each.state)
        if "finished" in seen and seen & {"success", "failure"}:
            raise ValueError(
                f"'{each.name}' is named with state finished, which is success and failure; remove "
                "the others"
            )
    return dependencies
