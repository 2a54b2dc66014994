"""Airlift's definitions of a fleet: those of its function for each instance, and downstream DAGs as
in its tutorial "Federating execution across Airflow instances"."""

from __future__ import annotations

import os
from collections.abc import Iterator

import dagster as dg
from dagster_airlift.core import (
    AirflowBasicAuthBackend,
    AirflowInstance,
    build_defs_from_airflow_instance,
)

from tests.bench.fleet.sizes import (
    AUTOMATION_SENSOR,
    PASSWORD_VARIABLE,
    SIZE_VARIABLE,
    SIZES,
    URL_VARIABLE,
    Fleet,
)
from tests.bench.tutorial import build_runner
from tests.contract.fakes.airflow import USERNAME


def build_instance(name: str) -> AirflowInstance:
    account = {"username": USERNAME, "password": os.environ[PASSWORD_VARIABLE]}
    url = f"{os.environ[URL_VARIABLE]}/{name}"
    return AirflowInstance(AirflowBasicAuthBackend(webserver_url=url, **account), name=name)


def build_assets(
    fleet: Fleet, airflow: AirflowInstance, defs: dg.Definitions
) -> Iterator[dg.AssetSpec | dg.AssetsDefinition]:
    """Build the assets of an instance, of which downstream DAGs are executable."""
    for asset in defs.assets or ():
        assert isinstance(asset, dg.AssetSpec)
        _, _, dag_id = asset.key.path
        if (upstream := fleet.upstreams.get((airflow.name, dag_id))) is None:
            yield asset
            continue
        instance, upstream_id = upstream
        spec = asset.replace_attributes(
            deps=[dg.AssetKey([instance, "dag", upstream_id])],
            automation_condition=dg.AutomationCondition.eager(),
        )
        yield build_runner(airflow, dag_id, spec)


@dg.definitions
def defs() -> dg.Definitions:
    fleet = SIZES[os.environ[SIZE_VARIABLE]]
    assets: list[dg.AssetSpec | dg.AssetsDefinition] = []
    sensors: list[dg.SensorDefinition] = [
        dg.AutomationConditionSensorDefinition(
            name=AUTOMATION_SENSOR,
            target="*",
            default_status=dg.DefaultSensorStatus.RUNNING,
            minimum_interval_seconds=1,
        )
    ]
    for name in fleet.dag_ids:
        airflow = build_instance(name)
        own = build_defs_from_airflow_instance(airflow_instance=airflow)
        assets += build_assets(fleet, airflow, own)
        sensors += own.sensors or ()
    return dg.Definitions(assets=assets, sensors=sensors)
