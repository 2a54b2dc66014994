"""One DAG: its dependencies, how to run it, and when its data is complete."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from federation_defs.declaration.dependency import (
    DeadlineDeclaration,
    DependencyDeclaration,
    refuse_duplicates,
)
from federation_defs.declaration.fields import Count, Declaration, Duration, Switch
from federation_defs.declaration.partitions import PartitionsDeclaration

Granularity: TypeAlias = Literal["all", "last", "any"] | Count

# Keys of `trigger` that have no effect without an upstream.
_FOR_UPSTREAMS = {"when", "runs", "at_once", "reruns", "only_if", "pass_upstream"}
UPSTREAM_CONF_KEY = "federation"  # of the upstream runs in a conf, with `pass_upstream`

# module:function, as in the entry points of Python packages.
_FUNCTION = r"^\w+(\.\w+)*:\w+$"


def _check_json(value: Any, path: str = "conf") -> Any:
    """Return a value if JSON can represent it, or refuse it. The message does not show the value,
    which may be a secret."""
    seen = None
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                kind = type(key).__name__
                raise ValueError(f"{path} has a key of type {kind}: write the key in quotes")
            _check_json(item, f"{path}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _check_json(item, f"{path}.{number}")
    elif isinstance(value, float) and not math.isfinite(value):
        seen = "is infinite or NaN"
    elif not isinstance(value, str | int | float | None):
        seen = f"is of type {type(value).__name__}"
    if seen is not None:
        raise ValueError(f"{path} {seen}, which JSON does not have: write a text in quotes")
    return value


class TriggerDeclaration(Declaration):
    """When and how to run a DAG that depends on others."""

    when: Literal["any", "all"] = Field(
        default="any",
        description="Whether a run starts when any dependency is met (any), or when all have been "
        "met since the last run (all).",
    )
    runs: Literal["latest", "each"] = Field(
        default="latest",
        description="Whether all that happens while the DAG runs leads to one more run (latest), "
        "or each upstream run leads to a run of its own, in the order in which the upstream runs "
        "were seen (each).",
    )
    at_once: Count = Field(
        default=1,
        description="With `runs: each`, or with partitions, the number of DAG runs at a time.",
    )
    reruns: Literal["follow", "ignore", "rerun"] = Field(
        default="follow",
        description="With `runs: each`, what follows when an upstream run was cleared and ended "
        "again: another run (follow); nothing, if its first end led to a run (ignore); or that "
        "run is cleared and run again (rerun).",
    )
    only_if: Annotated[str, StringConstraints(pattern=_FUNCTION)] | None = Field(
        default=None,
        description="A function that decides whether what happened starts a run, as "
        "module:function.",
        examples=["my_project.rules:is_month_end"],
    )
    pass_upstream: Switch = Field(
        default=False,
        description="Whether the conf of each run describes the upstream runs that led to it, "
        "under the key `federation`.",
    )
    conf: Annotated[dict[str, Any], AfterValidator(_check_json)] = Field(
        default={},
        repr=False,  # it may hold secrets
        description="The conf of each run.",
        examples=[{"source": "federation"}],
    )
    timeout: Duration = Field(
        default=86400.0,
        description="How long to wait for the DAG run, as 30s, 5m, 24h or 7d. After that, the wait "
        "fails.",
    )
    on_timeout: Literal["leave", "cancel"] = Field(
        default="leave", description="Whether to cancel a DAG run that exceeds its time-out."
    )
    on_cancel: Literal["cancel", "leave"] = Field(
        default="cancel",
        description="Whether canceling a Dagster run cancels the DAG runs that it triggered or "
        "cleared. Those that it adopted continue.",
    )
    on_retry: Literal["clear_failed", "clear_all", "new_run"] = Field(
        default="clear_failed",
        description="What to do with a failed DAG run when its Dagster run is re-executed: clear "
        "its failed tasks, clear all its tasks, or start another DAG run.",
    )
    logical_date: Literal["now", "none", "upstream"] = Field(
        default="now",
        description="The logical date of each run: the moment of the trigger by Airflow's clock, "
        "none (Airflow 3), or that of the upstream run. A run without one has no {{ ds }}, "
        "{{ ts }} or data interval. Airflow runs a date once: a second run of it clears the first.",
    )
    wait: Switch = Field(
        default=True,
        description="Whether the Dagster run waits for the DAG run. If not, it ends when the DAG "
        "run is started, and observation reports how the DAG run ended.",
    )


@cache  # pydantic would copy a default for each DAG
def _get_default_trigger() -> TriggerDeclaration:
    return TriggerDeclaration()


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
    """The declaration of one DAG."""

    depends_on: Annotated[list[DependencyDeclaration], AfterValidator(refuse_duplicates)] = Field(
        default=[],
        description="What starts this DAG. A text, as instance/dag_id, is the success of a DAG; "
        "anything else is written in full.",
        examples=[
            ["warehouse/load_customers", {"dag": "warehouse/load_orders", "state": "failure"}]
        ],
    )
    trigger: TriggerDeclaration = Field(default_factory=_get_default_trigger)
    partitions: PartitionsDeclaration | None = Field(
        default=None, description="The DAG's runs as partitions; none unless set."
    )
    granularity: Granularity = Field(
        default="all",
        description="If an upstream's partitions are shorter, which of them a partition needs: all "
        "in its time, the last one, any one, or a number of them.",
        examples=["last", 20],
    )
    success_when: SuccessDeclaration | None = Field(
        default=None,
        description="Which tasks decide whether a run is a success. Unless set, its state decides.",
        examples=[{"tasks": ["load", "publish"]}, {"all_except": ["clean_up"]}],
    )
    max_duration: Duration | None = Field(
        default=None,
        description="How long a run may take, as 2h. A run that takes longer is slow. That is "
        "signaled while it runs.",
    )
    deadline: DeadlineDeclaration | None = Field(
        default=None,
        description="By when a run must have succeeded. If none has, the DAG is late.",
    )

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> DagDeclaration:
        trigger, states = self.trigger, {each.state for each in self.depends_on}
        if trigger.runs == "each" and trigger.when == "all":
            raise ValueError(
                "trigger: `runs: each` is a run for each upstream run, and `when: all` one run for "
                "all of them; remove one of the two keys"
            )
        needing = {"reruns"} if self.partitions else {"at_once", "reruns"}
        if trigger.runs != "each" and (keys := needing & trigger.model_fields_set):
            raise ValueError(
                f"trigger.{min(keys)}: it needs `runs: each`; add that, or remove the key"
            )
        if trigger.pass_upstream and UPSTREAM_CONF_KEY in trigger.conf:
            raise ValueError(
                f"trigger.conf: with `pass_upstream`, the key `{UPSTREAM_CONF_KEY}` holds the "
                "upstream runs; rename yours"
            )
        if trigger.logical_date == "upstream":
            if any(each.dag is None for each in self.depends_on) or "late" in states:
                raise ValueError(
                    "trigger.logical_date: an asset and a DAG that is late have no logical date; "
                    "remove that dependency, or write now"
                )
            if trigger.when == "all":
                raise ValueError(
                    "trigger.logical_date: with `when: all` there are several upstream runs; write "
                    "now, or `when: any`"
                )
        if not self.depends_on and (keys := _FOR_UPSTREAMS & trigger.model_fields_set):
            raise ValueError(
                f"trigger.{min(keys)}: it needs `depends_on`; add that, or remove the key"
            )
        return self

    @model_validator(mode="after")
    def _refuse_what_partitions_decide(self) -> DagDeclaration:
        if self.partitions is None:
            self.model_fields_set.discard("partitions")  # `partitions: null` declares none
            if windows := [each.name for each in self.depends_on if each.window]:
                raise ValueError(
                    f"depends_on: the `window` of {windows[0]} needs partitions of this DAG; "
                    "declare `partitions`, or remove the key"
                )
            if known := [each.name for each in self.depends_on if each.partitions]:
                raise ValueError(
                    f"depends_on: the `partitions` of {known[0]} need partitions of this DAG; "
                    "declare `partitions`, or remove those of the dependency"
                )
            if "granularity" in self.model_fields_set:
                raise ValueError(
                    "granularity: it is about this DAG's partitions; declare `partitions`, or "
                    "remove the key"
                )
            return self
        if states := {each.state for each in self.depends_on} & {"late", "slow"}:
            raise ValueError(
                f"depends_on: `state: {min(states)}` belongs to no partition; let a DAG without "
                "`partitions` depend on it"
            )
        if self.trigger.on_retry == "new_run":
            raise ValueError(
                "trigger.on_retry: Airflow runs a date once, so a partition can't have a "
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
        """The upstream DAGs, as (instance, DAG id), each once."""
        return list(dict.fromkeys(each.upstream for each in self.depends_on if each.upstream))

    @property
    def upstream_assets(self) -> list[list[str]]:
        """The keys of the upstreams that are Dagster assets."""
        return [each.asset for each in self.depends_on if each.asset]

    @property
    def declares_partitions(self) -> bool:
        """Whether the DAG has partitions, or `partitions: auto` that are not resolved yet."""
        return "partitions" in self.model_fields_set

    @property
    def is_decided_by_events(self) -> bool:
        """Whether the event sensor decides when the DAG runs, whatever its upstreams are.

        An automation condition can't: it sees only that an upstream has succeeded since the last
        run.
        """
        trigger = self.trigger
        return (
            trigger.runs == "each"
            or self.declares_partitions
            or trigger.only_if is not None
            or trigger.pass_upstream
            or trigger.logical_date == "upstream"
            or any(each.state != "success" for each in self.depends_on)
        )
