"""Our definitions of a fleet, with sensors that do nothing and conditions that are never met: what
Dagster itself costs for as many DAGs, and as many sensors that tick as often."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import dagster as dg

from federation_defs import load_federation
from federation_defs.timing import Timing
from tests.bench.fleet.sizes import PACKAGE

# One second less, as the daemon loops every five seconds.
_LONG_TICK_S = round(Timing().long_tick_s) - 1
_NEVER = dg.AutomationCondition.cron_tick_passed("0 0 29 2 *")


def skip() -> dg.SkipReason:
    return dg.SkipReason("Nothing is done.")


def silence(sensor: dg.SensorDefinition) -> dg.SensorDefinition:
    """Return a sensor of the same name that does nothing, and ticks as often as one whose ticks go
    on while there is no news; one that Dagster evaluates itself, as it is."""
    if isinstance(sensor, dg.AutomationConditionSensorDefinition):
        return sensor
    return dg.SensorDefinition(
        sensor.name,
        evaluation_fn=skip,
        minimum_interval_seconds=max(sensor.minimum_interval_seconds or 0, _LONG_TICK_S),
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
