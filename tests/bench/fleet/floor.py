"""Our definitions of a fleet, with sensors that do nothing and conditions that are never met: what
Dagster itself costs for as many DAGs, and as many sensors with the same intervals."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import dagster as dg

from federation_defs import load_federation
from tests.bench.fleet.sizes import PACKAGE

_NEVER = dg.AutomationCondition.cron_tick_passed("0 0 29 2 *")


def skip() -> dg.SkipReason:
    return dg.SkipReason("Nothing is done.")


def silence(sensor: dg.SensorDefinition) -> dg.SensorDefinition:
    """Return a sensor of the same name and interval that does nothing; one that Dagster evaluates
    itself, as it is."""
    if isinstance(sensor, dg.AutomationConditionSensorDefinition):
        return sensor
    return dg.SensorDefinition(
        sensor.name,
        evaluation_fn=skip,
        minimum_interval_seconds=sensor.minimum_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )


def simplify(spec: dg.AssetSpec) -> dg.AssetSpec:
    return spec.replace_attributes(automation_condition=spec.automation_condition and _NEVER)


@dg.definitions
def defs() -> dg.Definitions:
    package = find_spec(PACKAGE)
    assert package is not None
    assert package.origin is not None
    ours = load_federation(Path(package.origin).parent)
    assets = [
        each for each in ours.assets or () if isinstance(each, (dg.AssetSpec, dg.AssetsDefinition))
    ]
    sensors = [silence(each) for each in ours.sensors or ()]  # pyright: ignore[reportArgumentType]
    return dg.Definitions(
        assets=dg.map_asset_specs(simplify, assets),
        asset_checks=ours.asset_checks,
        sensors=sensors,
        jobs=ours.jobs,
        executor=ours.executor,
    )
