"""From declared dependencies to automation: when a downstream DAG runs. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from federation_defs.naming import build_automation_sensor_name

# Dagster's asset daemon loops every 5 seconds at best; asking for less makes each loop count.
EVALUATION_INTERVAL_S = 1


def build_condition() -> dg.AutomationCondition:
    """Run when an upstream was updated, and lose no update.

    `eager()` takes a run's end for the handling of every update until then, so that one which
    arrives while the run goes on is lost (dagster 1.13). Here only the request for a run handles
    the updates before it. Built-in conditions only: they are evaluated in the daemon, with no
    user code and no cap of 500 entities.
    """
    handled = dg.AutomationCondition.newly_requested() | dg.AutomationCondition.initial_evaluation()
    return dg.AutomationCondition.eager().replace("handled", handled)


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
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=EVALUATION_INTERVAL_S,
        description=f"Starts the DAGs of Airflow {instance} whose upstreams were updated.",
    )
