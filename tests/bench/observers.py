"""Airlift's definitions for `observe`: dagster-airlift as published, over two Airflows."""

from __future__ import annotations

import os

import dagster as dg
from dagster_airlift.core import (
    AirflowBasicAuthBackend,
    AirflowInstance,
    build_airflow_polling_sensor,
    load_airflow_dag_asset_specs,
)

from tests.bench.contender import PASSWORD, USERNAME

INTERVAL_VARIABLE = "BENCH_INTERVAL"


def build_defs(name: str) -> dg.Definitions:
    """Return the definitions of one Airflow, as in airlift's guide."""
    account = {"username": USERNAME, "password": PASSWORD}
    url = os.environ[f"BENCH_{name.upper()}_URL"]
    airflow = AirflowInstance(AirflowBasicAuthBackend(webserver_url=url, **account), name=name)
    specs = load_airflow_dag_asset_specs(airflow, source_code_retrieval_enabled=False)
    sensor = build_airflow_polling_sensor(
        mapped_assets=specs,
        airflow_instance=airflow,
        minimum_interval_seconds=int(os.environ[INTERVAL_VARIABLE]),
    )
    return dg.Definitions(
        [spec.replace_attributes(key=spec.key.with_prefix(name)) for spec in specs],
        sensors=[sensor],
    )


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions.merge(*(build_defs(name) for name in ("busy", "quiet")))
