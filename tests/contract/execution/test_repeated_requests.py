"""An update that automation requests twice, as it was stored while a tick was evaluated, leads to
one DAG run."""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg
import pytest

from tests.contract.conftest import Airflow
from tests.contract.execution.automating import DAG, TAGS, UPSTREAM, Automation, build_key
from tests.contract.execution.executing import DagsterJob, materialize

FOLLOWING = "a_report"


@pytest.fixture
def automation(airflow_v2: Airflow, instance: dg.DagsterInstance) -> Automation:
    for dag_id in (DAG, FOLLOWING):
        airflow_v2.database.add_dag(dag_id, polls=0)
    dags = {DAG: {}, FOLLOWING: {"depends_on": [f"metrics/{DAG}"]}}
    return Automation(airflow_v2, instance, dags)


def read_dags(airflow: Airflow) -> list[str]:
    return [run.dag_id for run in airflow.database.runs]


def update(instance: dg.DagsterInstance) -> None:
    instance.report_runless_asset_event(dg.AssetMaterialization(UPSTREAM))


def test_an_update_that_is_requested_twice_leads_to_one_run_of_each_dag(
    automation: Automation,
) -> None:
    requested = automation.request_while(automation.update_upstream)
    assert requested == [DAG, FOLLOWING]
    assert automation.request() == [DAG, FOLLOWING], "Dagster has mended it"
    assert automation.request() == []
    assert read_dags(automation.airflow) == [DAG, FOLLOWING]


def test_an_update_after_a_request_leads_to_one_more_run(automation: Automation) -> None:
    for _ in range(2):
        automation.update_upstream()
        assert automation.request() == [DAG, FOLLOWING]
    assert read_dags(automation.airflow) == [DAG, FOLLOWING] * 2


def test_a_request_is_repeated_if_the_first_one_could_not_launch_the_dag(
    automation: Automation,
) -> None:
    automation.airflow.database.dags[DAG].is_paused = True
    automation.request_while(automation.update_upstream)
    automation.airflow.database.dags[DAG].is_paused = False
    automation.request()
    assert read_dags(automation.airflow) == [DAG, FOLLOWING]


@pytest.mark.parametrize(
    ("first", "second"),
    [({}, TAGS), (TAGS, {}), ({}, {})],
    ids=["person and automation", "automation and person", "persons"],
)
def test_a_person_is_given_a_run_and_is_no_reason_to_give_automation_none(
    airflow_v2: Airflow,
    instance: dg.DagsterInstance,
    first: Mapping[str, str],
    second: Mapping[str, str],
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    update(instance)
    for tags in (first, second):
        assert materialize(airflow_v2.client, [DAG], instance, tags=tags).materialized == [DAG]
    assert len(airflow_v2.database.runs) == 2


def test_a_repeated_request_is_a_success_without_a_materialization(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    update(instance)
    first, second = (materialize(airflow_v2.client, [DAG], instance, tags=TAGS) for _ in range(2))
    assert (second.success, second.materialized) == (True, [])
    assert any(first.run_id in line for line in second.log)
    assert len(instance.fetch_materializations(build_key(DAG), limit=9).records) == 1


def test_a_repeated_request_that_is_executed_again_is_a_run(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    update(instance)
    materialize(airflow_v2.client, [DAG], instance, tags=TAGS)
    job = DagsterJob(airflow_v2.client, [DAG], instance)
    repeated = job.execute(tags=TAGS)
    assert len(airflow_v2.database.runs) == 1
    assert job.execute(repeated).materialized == [DAG]
    assert len(airflow_v2.database.runs) == 2


@pytest.mark.parametrize("has_dag", [False, True])
def test_each_new_version_of_an_observable_asset_leads_to_a_run(
    airflow_v2: Airflow, instance: dg.DagsterInstance, has_dag: bool
) -> None:
    files = dg.AssetKey(["lake", "files"])
    airflow_v2.database.add_dag(DAG, polls=0)
    if has_dag:
        update(instance)
    depends_on = [{"asset": list(files.path)}, *(["warehouse/load_customers"] * has_dag)]
    for version in ("one", "two"):
        instance.report_runless_asset_event(
            dg.AssetObservation(files, tags={"dagster/data_version": version})
        )
        dags = {DAG: {"depends_on": depends_on}}
        executed = materialize(airflow_v2.client, dags, instance, tags=TAGS)
        assert executed.materialized == [DAG]
