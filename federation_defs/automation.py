"""Build the automation of downstream DAGs: when Dagster runs them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Literal, TypeAlias

import dagster as dg

from federation_defs.naming import build_monitor_tags, build_sensor_name

# What a tick costs the daemon (dagster 1.13, PostgreSQL): per sensor, and per asset.
_SENSOR_S = 0.12
_ASSET_S = 0.0025
_MAX_INTERVAL_S = 25

Upstreams: TypeAlias = Literal["observed", "executed", "detached"]


@cache  # a fleet has thousands of downstream DAGs, and Dagster's conditions are immutable
def build_condition(
    *, waits: bool = True, upstreams: Upstreams = "executed", is_partitioned: bool = False
) -> dg.AutomationCondition:
    """Return a condition that requests a run when an upstream was updated, and loses no update.

    It is `eager()`, except where that loses updates (dagster 1.13):

    - `eager()` takes the end of a run as handling all updates until then, so that an update during
      a run never leads to another run. Here only a request handles updates.
    - If an update and a request are new on the same tick, the request wins, although the update
      came after it. Here the update wins.

    All conditions are built-in: they are evaluated in the daemon, without user code and without its
    limit of 500 entities. Each tick evaluates each node for each asset, whatever happened, so the
    condition has only the nodes that can matter to the asset.

    Args:
        waits: The Dagster run waits for the DAG run. If not, the DAG run is taken to go on from the
            request until its end is reported, or until a Dagster run failed to start it.
        upstreams: "observed" if Dagster runs none of the upstreams, "executed" if it runs some, and
            "detached" if it does not wait for one of them, which so can't share a Dagster run with
            the DAG.
        is_partitioned: Whether the DAG has partitions. Only the latest one is requested.
    """
    condition = dg.AutomationCondition
    updated = _build_any_deps_updated(upstreams)
    triggers, handled = updated, condition.newly_requested() & ~updated
    if is_partitioned:  # a new partition is run when its upstreams have it
        triggers |= condition.newly_missing()
        handled |= condition.initial_evaluation()
    # First of all: what follows is evaluated for what is pending, and is cheap for nothing.
    is_pending = triggers.since(handled).with_label("updated_since_request")
    in_progress = condition.run_in_progress() | condition.backfill_in_progress()
    is_due = is_pending & ~(_build_any_deps_block(upstreams) | in_progress)
    if is_partitioned:
        is_due &= condition.in_latest_time_window()
    if waits:
        return is_due
    # Every end of a DAG run evaluates the asset's check. A run that never started, or was deleted,
    # has no end: it is taken to go on until the next full hour.
    ended = condition.newly_updated() | condition.any_checks_match(condition.newly_updated())
    ended |= condition.cron_tick_passed("0 * * * *")
    goes_on = condition.newly_requested().since(ended) & ~condition.execution_failed()
    return is_due & ~goes_on.with_label("dag_run_goes_on")


def _build_any_deps_updated(upstreams: Upstreams) -> dg.AutomationCondition:
    condition = dg.AutomationCondition
    if upstreams == "executed":  # a run of an upstream may be a run of the DAG, too
        return condition.any_deps_updated()
    return condition.any_deps_match(condition.newly_updated()).with_label("any_deps_updated")


def _build_any_deps_block(upstreams: Upstreams) -> dg.AutomationCondition:
    condition = dg.AutomationCondition
    missing = condition.missing()
    if upstreams == "observed":
        return condition.any_deps_match(missing).with_label("any_deps_missing")
    missing &= ~condition.will_be_requested()
    in_progress = condition.run_in_progress() | condition.backfill_in_progress()
    return condition.any_deps_match(missing | in_progress).with_label(
        "any_deps_missing_or_in_progress"
    )


def compute_interval(downstreams: Iterable[int]) -> int:
    """Return the seconds between two ticks of each automation sensor of a code location.

    The daemon evaluates one sensor after the other, in the process that also starts observation's
    ticks. So automation takes two thirds of its time at most, unless that would be less than two
    ticks a minute.

    Args:
        downstreams: Of each instance, the number of DAGs that depend on others.
    """
    counts = [count for count in downstreams if count]
    round_s = len(counts) * _SENSOR_S + sum(counts) * _ASSET_S
    return max(1, round(min(1.5 * round_s, _MAX_INTERVAL_S)))


def build_automation_sensor(
    instance: str, keys: Sequence[dg.AssetKey], interval_s: int = 1
) -> dg.AutomationConditionSensorDefinition:
    """Return the sensor that requests an instance's downstream DAGs.

    Each instance has its own: what one sensor requests on one tick shares a run, and each sensor
    can be switched off for maintenance.

    Args:
        interval_s: Below five seconds, it ticks in every loop of the daemon: each 5 s (1.13).
    """
    return dg.AutomationConditionSensorDefinition(
        name=build_sensor_name(instance, "automation"),
        target=dg.AssetSelection.assets(*keys),
        run_tags=build_monitor_tags(instance),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=interval_s,
        description=f"Starts the DAGs of Airflow {instance} whose upstreams were updated.",
    )
