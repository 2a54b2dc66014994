"""One DAG, as it is declared: what it depends on, how it is run, when its data is there."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal
from zoneinfo import available_timezones

import dagster as dg
from pydantic import AfterValidator, Field, StringConstraints, model_validator

from federation_defs.declaration.fields import Declaration, Duration, Switch, suggest
from federation_defs.declaration.templates import is_template


def _check_cron(cron: str) -> str:
    if is_template(cron):
        return cron
    try:
        dg.TimeWindowPartitionsDefinition(cron_schedule=cron, start="2026", fmt="%Y")
    except dg.DagsterInvalidDefinitionError:
        raise ValueError("write a cron expression of five fields (0 6 * * *), or @daily") from None
    return cron


def _check_format(form: str | None) -> str | None:
    if form is None or is_template(form):
        return form
    minute = datetime.datetime(2026, 1, 31, 13, 5)
    try:
        shown = minute.strftime(form)
        datetime.datetime.strptime(shown, form)
    except ValueError:
        raise ValueError("write a format of strptime, as %Y-%m-%d") from None
    return form


def _check_timezone(name: str) -> str:
    if not is_template(name) and name not in available_timezones():
        raise ValueError(f"no such time zone{suggest(name, available_timezones())}")
    return name


class TriggerDeclaration(Declaration):
    """How a DAG with dependencies is run."""

    conf: dict[str, Any] = Field(
        default={}, description="The conf of each run.", examples=[{"source": "federation"}]
    )
    timeout: Duration = Field(
        default=86400.0,
        description="For the DAG run, as 30s, 5m, 24h or 7d. Past it the wait ends with an error.",
    )
    on_timeout: Literal["leave", "cancel"] = Field(
        default="leave", description="What becomes of a DAG run that is past its time-out."
    )
    on_cancel: Literal["cancel", "leave"] = Field(
        default="cancel",
        description="What ending the Dagster run does to the DAG runs that it waits for.",
    )
    on_retry: Literal["clear_failed", "clear_all", "new_run"] = Field(
        default="clear_failed",
        description="What executing a Dagster run again does to a DAG run that failed: run its "
        "failed tasks again, run all of it again, or start another.",
    )
    wait: Switch = Field(
        default=True,
        description="Whether the Dagster run waits for the DAG run. If not, it ends when the DAG "
        "run is started, and observation reports how that ended.",
    )


class PartitionsDeclaration(Declaration):
    """A DAG's runs as partitions, one for each tick of a schedule."""

    cron: Annotated[str, AfterValidator(_check_cron)] = Field(
        description="When each partition begins.", examples=["0 0 * * *", "@hourly"]
    )
    start: datetime.date = Field(description="The first partition's day.", examples=["2026-01-01"])
    timezone: Annotated[str, AfterValidator(_check_timezone)] = Field(
        default="UTC", description="Of `cron` and `start`.", examples=["Europe/Berlin"]
    )
    date: Literal["data_interval_start", "data_interval_end", "logical_date"] = Field(
        default="data_interval_start",
        description="Which date of a run tells its partition. The daily run of 2 January has 1 "
        "January as data_interval_start in Airflow 2; in Airflow 3 all three are 2 January unless "
        "the DAG says otherwise, and what it computes is over by then: data_interval_end.",
    )
    key_format: Annotated[str | None, AfterValidator(_check_format)] = Field(
        default=None,
        description="Of the partition keys, as of strftime; 2026-01-31 or 2026-01-31-13:00 unless "
        "set. For a partitioned DAG (Airflow 3.2) the one of its own keys.",
        examples=["%Y-%m-%dT%H:%M:%S"],
    )

    @model_validator(mode="after")
    def _refuse_a_format_that_names_two(self) -> PartitionsDeclaration:
        form = self.key_format
        if form is None or any(map(is_template, (form, self.cron, self.timezone))):
            return self
        partitions = dg.TimeWindowPartitionsDefinition(
            cron_schedule=self.cron,
            start=datetime.datetime.combine(self.start, datetime.time.min),
            timezone=self.timezone,
            fmt=form,
        )
        first = partitions.get_first_partition_window()
        second = partitions.get_next_partition_window(first.end) if first else None
        if first and second and first.start.strftime(form) == first.end.strftime(form):
            raise ValueError("key_format: two partitions have the same key; write more of the date")
        return self


class SuccessDeclaration(Declaration):
    """Which tasks of a DAG decide whether a finished run left its data."""

    tasks: list[str] | None = Field(
        default=None,
        min_length=1,
        description="Tasks or task groups that all have to have succeeded, whatever became of the "
        "others.",
    )
    all_except: list[str] | None = Field(
        default=None,
        min_length=1,
        description="Tasks or task groups that may fail; all others have to have succeeded.",
    )

    @model_validator(mode="after")
    def _refuse_both_or_none(self) -> SuccessDeclaration:
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
    trigger: TriggerDeclaration = TriggerDeclaration()
    partitions: PartitionsDeclaration | None = Field(
        default=None, description="The DAG's runs as partitions; none unless set."
    )
    success_when: SuccessDeclaration | None = Field(
        default=None,
        description="Which tasks decide whether a run is a success; the run's own state unless "
        "set.",
        examples=[{"tasks": ["load", "publish"]}, {"all_except": ["clean_up"]}],
    )

    @model_validator(mode="after")
    def _refuse_new_runs_of_a_date(self) -> DagDeclaration:
        if self.partitions is not None and self.trigger.on_retry == "new_run":
            raise ValueError(
                "trigger.on_retry: Airflow runs a date once, so that a partition can't have a "
                "`new_run`; write clear_failed or clear_all"
            )
        return self

    @property
    def upstreams(self) -> list[tuple[str, str]]:
        """The upstream DAGs, each as (instance, DAG id)."""
        pairs = (upstream.split("/", 1) for upstream in self.depends_on)
        return [(instance, dag_id) for instance, dag_id in pairs]
