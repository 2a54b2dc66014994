"""DAGs that are declared, and that the instance does not have: their checks fail."""

from __future__ import annotations

from collections.abc import Callable

import dagster as dg
import pytest

from federation_defs.declaration import InstanceDeclaration
from federation_defs.instance_defs import build_instance_defs
from federation_defs.naming import build_asset_key
from federation_defs.specs import build_specs
from tests.contract.conftest import Airflow
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.faults import answer
from tests.contract.observation.daemon import fetch_evaluations

KEY = build_asset_key("metrics", "load_custmers")
WHY = "Airflow 'metrics' has no DAG 'load_custmers'; did you mean 'load_customers'?"


@pytest.fixture
def build_defs(airflow: Airflow) -> Callable[[], dg.Definitions]:
    airflow.database.add_dag("load_customers")
    values = {"name": "metrics", "url": airflow.client.url, "auth": {"type": "none"}}
    declaration = InstanceDeclaration.model_validate(values | {"observe": {"interval": 5}})
    specs = build_specs(declaration, None, {"load_customers", "load_custmers"})
    absent = {"load_custmers": WHY}
    return lambda: build_instance_defs(airflow.client, declaration, specs, absent)


def tick(defs: dg.Definitions, instance: dg.DagsterInstance, cursor: str | None) -> str | None:
    (sensor,) = list(defs.sensors or [])
    assert isinstance(sensor, dg.SensorDefinition)
    with dg.build_sensor_context(instance=instance, cursor=cursor) as context:
        result = sensor(context)
    assert isinstance(result, dg.SensorResult)
    return result.cursor


def test_observation_fails_the_check_of_an_absent_dag_once(
    build_defs: Callable[[], dg.Definitions], instance: dg.DagsterInstance
) -> None:
    cursor = None
    for _ in range(2):
        defs = build_defs()  # as by a code server that starts anew
        for _ in range(2):
            cursor = tick(defs, instance, cursor)
    (evaluation,) = fetch_evaluations(instance, KEY)
    assert (evaluation.passed, evaluation.description) == (False, WHY)


def test_a_dag_that_was_deployed_after_the_last_refresh_keeps_its_check(
    airflow: Airflow, build_defs: Callable[[], dg.Definitions], instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag("load_custmers")
    tick(build_defs(), instance, None)
    assert fetch_evaluations(instance, KEY) == []


@pytest.mark.parametrize("status", [403, 500])
def test_a_dag_of_which_it_is_not_known_that_it_is_absent_holds_up_no_report(
    airflow: Airflow,
    build_defs: Callable[[], dg.Definitions],
    instance: dg.DagsterInstance,
    status: int,
) -> None:
    """An account that may not read a DAG is answered 403, whether there is one or not."""
    airflow.server.fail_next(asks("GET", "/dags/load_custmers"), answer(status), times=99)
    defs = build_defs()
    cursor = tick(defs, instance, None)
    airflow.database.finish_run(airflow.database.start_run("load_customers"))
    tick(defs, instance, cursor)
    upstream = build_asset_key("metrics", "load_customers")
    assert len(instance.fetch_materializations(upstream, limit=9).records) == 1
    assert fetch_evaluations(instance, KEY) == []


def test_an_absent_dag_is_found_after_its_airflow_was_unreachable(
    airflow: Airflow, build_defs: Callable[[], dg.Definitions], instance: dg.DagsterInstance
) -> None:
    airflow.server.fail_next(asks("GET", "/dags/load_custmers"), answer(503), times=9)
    defs, cursor = build_defs(), None
    for _ in range(12):
        cursor = tick(defs, instance, cursor)
    (evaluation,) = fetch_evaluations(instance, KEY)
    assert (evaluation.passed, evaluation.description) == (False, WHY)
