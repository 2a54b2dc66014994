"""DAGs that are declared, and that the instance does not have: their checks fail."""

from __future__ import annotations

import dagster as dg
import pytest

from federation_defs.component import build_instance_defs
from federation_defs.declaration import InstanceDeclaration
from federation_defs.naming import build_asset_key
from federation_defs.specs import build_specs
from tests.contract.conftest import Airflow
from tests.contract.observation.daemon import fetch_evaluations

KEY = build_asset_key("metrics", "load_custmers")
WHY = "Airflow 'metrics' has no DAG 'load_custmers'; did you mean 'load_customers'?"


@pytest.fixture
def defs(airflow: Airflow) -> dg.Definitions:
    airflow.database.add_dag("load_customers")
    values = {"name": "metrics", "url": airflow.client.url, "auth": {"type": "none"}}
    declaration = InstanceDeclaration.model_validate(values | {"observe": {"interval": 5}})
    specs = build_specs(declaration, None, {"load_customers", "load_custmers"})
    return build_instance_defs(airflow.client, declaration, specs, {"load_custmers": WHY})


def test_observation_fails_the_check_of_an_absent_dag_once_per_load(
    defs: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    (sensor,) = list(defs.sensors or [])
    assert isinstance(sensor, dg.SensorDefinition)
    for _ in range(3):
        with dg.build_sensor_context(instance=instance) as context:
            sensor(context)
    (evaluation,) = fetch_evaluations(instance, KEY)
    assert (evaluation.passed, evaluation.description) == (False, WHY)
