"""From declared dependencies to automation: when a downstream DAG runs. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from federation_defs.naming import build_automation_sensor_name, build_monitor_tags

# Dagster's asset daemon loops every 5 seconds at best; asking for less makes each loop count.
EVALUATION_INTERVAL_S = 1


def build_condition(
    *, waits: bool = True, follows_unwaited: bool = False
) -> dg.AutomationCondition:
    """Run when an upstream was updated, and lose no update.

    `eager()` loses two kinds of updates (dagster 1.13), which this does not:

    - It takes the end of a run for the handling of every update until then, so that one which
      arrives while the run goes on never leads to another. Here only a request handles updates.
    - Of an update and a request that are new on the same tick the request wins, though the update
      came after it. Here such an update is kept in a memory of its own, until the request after.

    Built-in conditions only: they are evaluated in the daemon, with no user code and no cap of 500
    entities.

    Args:
        waits: The Dagster run lasts as long as the DAG run. If not, the DAG run goes on from the
            request until its end is reported, or until a Dagster run failed to start it.
        follows_unwaited: It depends on a DAG that is not waited for, and so can't run in the same
            Dagster run as that.
    """
    condition = dg.AutomationCondition
    deps_updated = condition.any_deps_updated()
    if follows_unwaited:
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
    # Every end of a run is an evaluation of the asset's check, that of a failed one too. Of a run
    # that never was, or was deleted, there is none: such a one is waited for up to the full hour.
    ended = condition.newly_updated() | condition.any_checks_match(condition.newly_updated())
    ended |= condition.cron_tick_passed("0 * * * *")
    goes_on = requested.since(ended) & ~condition.execution_failed()
    return lossless & ~goes_on.with_label("dag_run_goes_on")


def build_automation_sensor(
    instance: str, keys: Sequence[dg.AssetKey]
) -> dg.AutomationConditionSensorDefinition:
    """The sensor that starts an instance's downstream DAGs.

    One per instance: what is requested on one tick of one sensor shares a run, and each can be
    switched off for a maintenance.
    """
    return dg.AutomationConditionSensorDefinition(
        name=build_automation_sensor_name(instance),
        target=dg.AssetSelection.assets(*keys),
        run_tags=build_monitor_tags(instance),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=EVALUATION_INTERVAL_S,
        description=f"Starts the DAGs of Airflow {instance} whose upstreams were updated.",
    )
