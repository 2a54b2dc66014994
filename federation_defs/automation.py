"""Build the automation of downstream DAGs: when Dagster runs them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from federation_defs.naming import build_monitor_tags, build_sensor_name


def build_condition(
    *, waits: bool = True, follows_detached: bool = False
) -> dg.AutomationCondition:
    """Return a condition that requests a run when an upstream was updated, and loses no update.

    `eager()` loses updates in two cases (dagster 1.13):

    - It takes the end of a run as handling all updates until then, so that an update during a run
      never leads to another run. Here only a request handles updates.
    - If an update and a request are new on the same tick, the request wins, although the update
      came after it. Here such an update is kept until the next request.

    All conditions are built-in: they are evaluated in the daemon, without user code and without its
    limit of 500 entities.

    Args:
        waits: The Dagster run waits for the DAG run. If not, the DAG run is taken to go on from the
            request until its end is reported, or until a Dagster run failed to start it.
        follows_detached: The DAG depends on a DAG whose runs are not waited for, and so can't share
            a Dagster run with it.
    """
    condition = dg.AutomationCondition
    deps_updated = condition.any_deps_updated()
    if follows_detached:
        deps_updated = condition.any_deps_match(condition.newly_updated())
    updated = condition.newly_missing() | deps_updated
    requested = condition.newly_requested()
    first = condition.initial_evaluation()
    pending = updated.since(requested | first)
    overtaken = (updated & requested).since((requested & ~updated) | first)
    handled = condition.newly_missing() | condition.any_deps_updated()
    lossless = condition.eager().replace(
        handled.since_last_handled(), (pending | overtaken).with_label("updated_since_request")
    )
    if waits:
        return lossless
    # Every end of a DAG run evaluates the asset's check. A run that never started, or was deleted,
    # has no end: it is taken to go on until the next full hour.
    ended = condition.newly_updated() | condition.any_checks_match(condition.newly_updated())
    ended |= condition.cron_tick_passed("0 * * * *")
    goes_on = requested.since(ended) & ~condition.execution_failed()
    return lossless & ~goes_on.with_label("dag_run_goes_on")


def build_automation_sensor(
    instance: str, keys: Sequence[dg.AssetKey]
) -> dg.AutomationConditionSensorDefinition:
    """Return the sensor that requests an instance's downstream DAGs.

    Each instance has its own: what one sensor requests on one tick shares a run, and each sensor
    can be switched off for maintenance.
    """
    return dg.AutomationConditionSensorDefinition(
        name=build_sensor_name(instance, "automation"),
        target=dg.AssetSelection.assets(*keys),
        run_tags=build_monitor_tags(instance),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=1,  # in every loop of the daemon: each 5 s at best (1.13)
        description=f"Starts the DAGs of Airflow {instance} whose upstreams were updated.",
    )
