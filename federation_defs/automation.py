"""Builds the automation of downstream DAGs: the conditions under which Dagster runs them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, reduce
from operator import and_, or_
from typing import Literal, TypeAlias

import dagster as dg

from federation_defs.naming import build_check_key, build_launching_tags, build_sensor_name

# The time that a tick takes in the daemon (dagster 1.13, PostgreSQL): per sensor, and per asset.
_COST_PER_SENSOR_S = 0.12
_COST_PER_ASSET_S = 0.0025
_MAX_INTERVAL_S = 25

Upstream: TypeAlias = Literal[
    "observed",  # a DAG that Dagster does not run
    "executed",  # a DAG that Dagster runs
    "detached",  # a DAG of the same instance that Dagster runs without waiting for it
    "elsewhere",  # a DAG of another code location, of which nothing is known here
    "asset",  # an asset that is not a DAG
]

_NEWLY_UPDATED = dg.AutomationCondition.newly_updated()
_NEWLY_REQUESTED = dg.AutomationCondition.newly_requested()
_IN_PROGRESS = (
    dg.AutomationCondition.run_in_progress() | dg.AutomationCondition.backfill_in_progress()
)


def build_condition(
    upstreams: Mapping[dg.AssetKey, Upstream],
    *,
    when: Literal["any", "all"] = "any",
    detached: dg.AssetKey | None = None,
) -> dg.AutomationCondition:
    """Return a condition that requests a run when upstreams were updated, and loses no update.

    With `when="any"` the condition is `eager()`, except where `eager()` loses updates (dagster
    1.13):

    - `eager()` regards all updates until the end of a run as handled, so that an update during a
      run never leads to another run. Here only a request handles updates.
    - In `eager()`, if an update and a request are new on the same tick, the request wins, although
      the update came after it. Here the update wins.

    With `when="all"` each upstream has to be updated after the last request, by the same rules. No
    upstream may be in progress, or be a DAG whose last run failed.

    The conditions ignore partitions: where there are any, the event sensor decides.

    All conditions are built-in, so the daemon evaluates them itself. Conditions that are evaluated
    in user code are limited to 500 entities. Each tick evaluates each node for each asset, whatever
    happened, so the condition has only the nodes that can matter to the asset.

    Args:
        upstreams: The kinds of the assets on which the DAG depends; at least one.
        detached: The DAG's own asset, if the Dagster run does not wait for the DAG run. The DAG run
            is then regarded as active from the request until its end is reported, until a Dagster
            run fails to start it, or until the next full hour.
    """
    if when == "all":
        return _build_all_condition(upstreams, detached)
    kinds = set(upstreams.values())
    kind = "detached" if "detached" in kinds else "executed"
    if kinds == {"observed"}:
        kind = "observed"
    unknown = tuple(key for key, each in upstreams.items() if each in ("elsewhere", "asset"))
    return _build_any_condition(kind, unknown, detached)


@cache  # a fleet has thousands of downstream DAGs, and Dagster's conditions are immutable
def _build_any_condition(
    kind: Upstream, unknown: Sequence[dg.AssetKey], detached: dg.AssetKey | None
) -> dg.AutomationCondition:
    condition = dg.AutomationCondition
    updated = condition.any_deps_match(_NEWLY_UPDATED).with_label("any_deps_updated")
    blocked = condition.any_deps_match(condition.missing()).with_label("any_deps_missing")
    if kind == "executed":  # the Dagster run of an upstream may run the DAG, too
        updated = condition.any_deps_updated()
    if kind != "observed":
        missing = condition.missing() & ~condition.will_be_requested()
        blocked = condition.any_deps_match(missing | _IN_PROGRESS)
        if unknown:  # if these have partitions, one that is materialized is enough
            blocked = condition.any_deps_match(missing).ignore(dg.AssetSelection.assets(*unknown))
            blocked |= condition.any_deps_match(_IN_PROGRESS)
            for key in unknown:
                blocked |= ~condition.asset_matches(key, ~condition.missing())
        blocked = blocked.with_label("any_deps_missing_or_in_progress")
    is_pending = updated.since(_NEWLY_REQUESTED & ~updated).with_label("updated_since_request")
    return _build_due(is_pending, blocked, detached)


def _build_all_condition(
    upstreams: Mapping[dg.AssetKey, Upstream], detached: dg.AssetKey | None
) -> dg.AutomationCondition:
    condition = dg.AutomationCondition
    is_pending = reduce(and_, (_build_latch(key, kind) for key, kind in upstreams.items()))
    kinds, blocks = set(upstreams.values()), dict[str, dg.AutomationCondition]()
    if dags := [build_check_key(key) for key, kind in upstreams.items() if kind != "asset"]:
        failed = condition.check_failed()
        if kinds != {"observed"}:  # a Dagster run may have failed before it started a DAG run
            failed |= condition.execution_failed()
        # Observation evaluates other checks of a DAG, too, which are not about its last run.
        checks = dg.AssetSelection.checks(*dags)
        blocks["failed"] = condition.any_checks_match(failed).allow(checks)
    if kinds != {"observed"}:
        blocks["in_progress"] = _IN_PROGRESS | condition.will_be_requested()
    is_blocked = condition.any_deps_match(reduce(or_, blocks.values()))
    is_blocked = is_blocked.with_label("any_deps_" + "_or_".join(blocks))
    for key, kind in upstreams.items():
        if kind == "asset":
            is_blocked |= condition.asset_matches(key, condition.execution_failed())
    return _build_due(is_pending, is_blocked, detached)


def _build_latch(key: dg.AssetKey, kind: Upstream) -> dg.AutomationCondition:
    """Return the condition that an upstream was updated since the last request.

    Dagster (1.13) identifies the stored state of a `since` condition by the names of its two
    operands. The upstream's key is part of such a name, so that each upstream has a state of its
    own. A label is not part of the name.
    """
    counts = _NEWLY_UPDATED
    if kind != "observed":  # a person may have run it together with the DAG
        counts &= ~dg.AutomationCondition.executed_with_root_target()
    updated = dg.AutomationCondition.asset_matches(key, counts)
    return updated.since(_NEWLY_REQUESTED & ~updated).with_label("updated_since_request")


def _build_due(
    is_pending: dg.AutomationCondition,
    blocked: dg.AutomationCondition,
    detached: dg.AssetKey | None,
) -> dg.AutomationCondition:
    """Return the condition that a DAG with pending updates is due."""
    condition = dg.AutomationCondition
    # `is_pending` comes first: the rest is evaluated only for assets that are pending, which costs
    # little if there are none.
    is_due = is_pending & ~(blocked | _IN_PROGRESS)
    if detached is None:
        return is_due
    # Every end of a DAG run evaluates the asset's check. A run that never started, or was deleted,
    # has no end: it is regarded as active until the next full hour.
    own_check = dg.AssetSelection.checks(build_check_key(detached))
    ended = _NEWLY_UPDATED | condition.any_checks_match(_NEWLY_UPDATED).allow(own_check)
    ended |= condition.cron_tick_passed("0 * * * *")
    goes_on = _NEWLY_REQUESTED.since(ended) & ~condition.execution_failed()
    return is_due & ~goes_on.with_label("dag_run_goes_on")


def compute_interval(downstreams: Iterable[int]) -> int:
    """Return the seconds between two ticks of each automation sensor of a code location.

    The daemon evaluates one automation sensor after the other, in the process that also starts
    observation's ticks. The interval is long enough that automation takes at most two thirds of the
    time, but never longer than 25 seconds.

    Args:
        downstreams: For each instance, the number of its DAGs that depend on others.
    """
    counts = [count for count in downstreams if count]
    round_s = len(counts) * _COST_PER_SENSOR_S + sum(counts) * _COST_PER_ASSET_S
    return max(1, round(min(1.5 * round_s, _MAX_INTERVAL_S)))


def build_automation_sensor(
    instance: str, keys: Sequence[dg.AssetKey], interval_s: int
) -> dg.AutomationConditionSensorDefinition:
    """Return the sensor that requests runs of an instance's downstream DAGs.

    Each instance has a sensor of its own: all DAGs that one sensor requests in one tick share a
    Dagster run, and each sensor can be switched off for maintenance.

    Args:
        keys: The assets of the downstream DAGs.
        interval_s: The shortest time between two ticks. With less than five seconds, the sensor
            ticks in every loop of the daemon, which takes 5 s (1.13).
    """
    return dg.AutomationConditionSensorDefinition(
        name=build_sensor_name(instance, "automation"),
        target=dg.AssetSelection.assets(*keys),
        run_tags=build_launching_tags(instance),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=interval_s,
        description=f"Starts the DAGs of Airflow {instance} whose upstreams were updated.",
    )
