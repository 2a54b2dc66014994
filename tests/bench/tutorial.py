"""Airlift's definitions for `federating`, over the benchmark's two Airflows.

They are the result of dagster-airlift's tutorial "Federating execution across Airflow instances",
as published or tuned.
"""

# No `from __future__ import annotations`: Dagster reads what an asset's function returns.

import os

import dagster as dg
from dagster_airlift.core import (
    AirflowBasicAuthBackend,
    AirflowInstance,
    build_airflow_polling_sensor,
    load_airflow_dag_asset_specs,
)
from dagster_airlift.core.sensor.sensor_builder import DEFAULT_AIRFLOW_SENSOR_INTERVAL_SECONDS

from tests.bench.contender import PASSWORD, USERNAME

UPSTREAM, DOWNSTREAM = "load_customers", "customer_metrics"
TUNED_VARIABLE = "BENCH_TUNED"


def build_instance(name: str) -> AirflowInstance:
    account = {"username": USERNAME, "password": PASSWORD}
    url = os.environ[f"BENCH_{name.upper()}_URL"]
    return AirflowInstance(AirflowBasicAuthBackend(webserver_url=url, **account), name=name)


def build_runner(
    airflow: AirflowInstance, dag_id: str, spec: dg.AssetSpec, timeout_s: int = 30
) -> dg.AssetsDefinition:
    """Return an executable asset for a DAG. Airlift's own time-out is 30 seconds, too."""

    @dg.multi_asset(name=f"run_{airflow.name}_{dag_id}", specs=[spec])
    def run_dag() -> dg.MaterializeResult:
        run_id = airflow.trigger_dag(dag_id)
        airflow.wait_for_run_completion(dag_id, run_id, timeout=timeout_s)
        if airflow.get_run_state(dag_id, run_id) != "success":
            raise RuntimeError("the DAG run failed")
        return dg.MaterializeResult(asset_key=spec.key)

    return run_dag


def load_spec(airflow: AirflowInstance, dag_id: str) -> dg.AssetSpec:
    (spec,) = load_airflow_dag_asset_specs(
        airflow_instance=airflow, dag_selector_fn=lambda dag: dag.dag_id == dag_id
    )
    return spec


@dg.definitions
def defs() -> dg.Definitions:
    is_tuned = TUNED_VARIABLE in os.environ
    interval_s = 1 if is_tuned else DEFAULT_AIRFLOW_SENSOR_INTERVAL_SECONDS
    warehouse, metrics = build_instance("warehouse"), build_instance("metrics")
    upstream = load_spec(warehouse, UPSTREAM)
    downstream = load_spec(metrics, DOWNSTREAM).replace_attributes(
        deps=[upstream], automation_condition=dg.AutomationCondition.eager()
    )
    sensors = [
        build_airflow_polling_sensor(
            mapped_assets=[spec], airflow_instance=airflow, minimum_interval_seconds=interval_s
        )
        for airflow, spec in ((warehouse, upstream), (metrics, downstream))
    ]
    automation = dg.AutomationConditionSensorDefinition(
        name="automation_sensor",
        target="*",
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=1,
    )
    return dg.Definitions(
        assets=[upstream, build_runner(metrics, DOWNSTREAM, downstream)],
        sensors=[*sensors, automation],
        executor=dg.in_process_executor if is_tuned else None,
    )
