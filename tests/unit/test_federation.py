"""Instances that are declared in Python are what they would be in YAML."""

from __future__ import annotations

import json
from typing import Any

import dagster as dg
import pytest
from dagster._core.remote_representation.external_data import RepositorySnap
from dagster_shared.serdes import serialize_value

from federation_defs import (
    DeclarationError,
    InstanceDeclaration,
    build_federation,
    load_federation,
)
from federation_defs.declaration import DagDeclaration, DependencyDeclaration
from tests.unit.project import Project, build_keys

# Dagster 1.13 itself uses a deprecated function of pydantic.
pytestmark = pytest.mark.filterwarnings("ignore:.parse_obj_as. is deprecated")

ACCOUNT = {"type": "password", "username": "me", "password": "{{ env.METRICS_PASSWORD }}"}
DAILY = {"cron": "@daily", "start": "2026-01-01"}
WAREHOUSE = {
    "load_orders": {"deadline": {"cron": "0 6 * * *", "within": "3h"}, "max_duration": "2h"},
    "load_sales": {"partitions": DAILY},
}
METRICS = {
    "sales": {"depends_on": ["warehouse/load_sales"], "partitions": DAILY},
    "orders": {
        "depends_on": ["warehouse/load_orders", "warehouse/load_customers"],
        "trigger": {"when": "all", "conf": {"source": "federation"}, "wait": False},
        "success_when": {"all_except": ["clean_up"]},
    },
    "clean_up": {"depends_on": [{"dag": "warehouse/load_orders", "state": "late"}]},
    "each": {
        "depends_on": ["warehouse/load_customers", {"asset": ["targets"]}],
        "trigger": {"runs": "each"},
    },
}


@pytest.fixture
def project(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("METRICS_URL", "http://127.0.0.1:2")
    monkeypatch.setenv("METRICS_PASSWORD", "1_000")
    project.declare("warehouse", more={"dags": WAREHOUSE, "observe": {"interval": "30s"}})
    project.declare("metrics", "{{ env.METRICS_URL }}", ACCOUNT, more={"dags": METRICS})
    project.keep_state("warehouse", "load_orders", "load_sales", "load_customers", "other")
    return project


def snapshot(project: Project) -> Any:
    """Return what Dagster's UI and daemon know of a project, but for the lines that declare it."""
    repository = load_federation(project.path).get_repository_def()
    values = json.loads(serialize_value(RepositorySnap.from_def(repository)))
    del values["component_tree"]
    return remove_sources(values)


def remove_sources(value: Any) -> Any:
    """Remove the metadata that Dagster makes of the file of a component."""
    sources = ("dagster/code_references", "dagster/component_origin")
    if isinstance(value, dict):
        return {key: remove_sources(each) for key, each in value.items() if key not in sources}
    if isinstance(value, list):
        labels = (each.get("label") if isinstance(each, dict) else None for each in value)
        pairs = zip(value, labels, strict=True)
        return [remove_sources(each) for each, label in pairs if label not in sources]
    return value


def test_yaml_and_python_give_the_same_assets_checks_sensors_and_jobs(project: Project) -> None:
    expected = snapshot(project)
    assert len(expected["external_asset_graph_data"]) == 9
    assert len(expected["external_sensor_datas"]) >= 3
    project.move_to_python()
    assert snapshot(project) == expected


def test_yaml_and_python_give_the_same_connection(project: Project) -> None:
    project.move_to_python()
    components = dg.ComponentTree.for_project(project.path).get_all_components(
        dg.StateBackedComponent  # as `dg utils refresh-defs-state` finds them
    )
    assert {component.defs_state_config.key for component in components} == {
        "FederatedAirflow[metrics]",
        "FederatedAirflow[warehouse]",
    }
    (metrics,) = (each for each in components if "metrics" in each.defs_state_config.key)
    assert vars(metrics)["declaration"].url == "http://127.0.0.1:2"
    assert vars(metrics)["declaration"].auth.password.get_secret_value() == "1_000"


def test_instances_in_yaml_and_python_are_one_federation(project: Project) -> None:
    project.move_to_python()
    project.declare("finance", report=["metrics/orders"], y=["metrcs/orders"])
    with pytest.raises(Exception, match="Error while building") as refused:
        load_federation(project.path)
    assert "there is no Airflow instance 'metrcs'; did you mean 'metrics'?" in describe(
        refused.value
    )


def describe(error: BaseException | None) -> str:
    """Return the messages of an error and of its causes."""
    return "" if error is None else f"{error}\n{describe(error.__cause__)}"


def test_a_problem_is_named_with_the_file_and_the_instance(project: Project) -> None:
    project.declare("finance", report=["metrcs/orders"])
    project.move_to_python()
    with pytest.raises(Exception, match="Error while building") as refused:
        load_federation(project.path)
    assert (
        f"{project.defs.parent.name}/defs/instances.py (finance): dags.report.depends_on: there is "
        "no Airflow instance 'metrcs'; did you mean 'metrics'?"
    ) in describe(refused.value)


@pytest.mark.filterwarnings("ignore:Multiple components have the same defs state key")
def test_an_instance_of_a_name_that_another_one_has_is_refused(project: Project) -> None:
    project.move_to_python()
    project.declare("warehouse")
    with pytest.raises(Exception, match="Error while building") as refused:
        load_federation(project.path)
    assert "name: 'warehouse' is the name of" in describe(refused.value)


@pytest.mark.filterwarnings("ignore::dagster.PreviewWarning")
def test_a_state_that_changed_is_loaded_anew(project: Project) -> None:
    project.move_to_python()
    tree = dg.ComponentTree.for_project(project.path)
    tree.build_defs(tree.defs_module_path)
    project.keep_state("warehouse", "load_orders", "load_sales", "load_customers", "new")
    defs = tree.reload_with_state(["FederatedAirflow[warehouse]"])
    keys = set(defs.resolve_asset_graph().get_all_asset_keys())
    assert build_keys("warehouse/new") < keys
    assert not build_keys("warehouse/other") & keys


def test_all_problems_of_all_instances_are_named_at_once() -> None:
    with pytest.raises(DeclarationError) as refused:
        build_federation(
            [
                {"name": "a", "url": "http://h", "auth": {"type": "none"}, "dag": {}},
                {"name": "b", "url": "h", "auth": {"type": "none"}},
                {"url": "http://h", "auth": {"type": "none"}},
            ]
        )
    assert refused.value.problems == (
        "build_federation (a): unknown key 'dag'; did you mean 'dags'?",
        "build_federation (b): url: write a web address: https://airflow.example.com:8080",
        "build_federation (number 3): name: Field required",
    )


def test_two_instances_of_one_name_are_kept_to_be_refused() -> None:
    values = {"name": "a", "url": "http://h", "auth": {"type": "none"}}
    assert len(build_federation([values, values])) == 2


def test_an_error_quotes_no_secret() -> None:
    auth = {"type": "password", "username": "me", "password": ["s3cret-word"]}
    with pytest.raises(DeclarationError) as refused:
        build_federation([{"name": "a", "url": "http://h", "auth": auth}])
    assert "s3cret-word" not in str(refused.value)


def test_instances_may_be_mappings_or_types() -> None:
    mapping = {
        "name": "a",
        "url": "http://h",
        "auth": {"type": "none"},
        "dags": {"x": {"depends_on": [{"dag": "a/y", "state": "failure"}]}},
    }
    depends_on = [DependencyDeclaration(dag="a/y", state="failure")]
    typed = {**mapping, "dags": {"x": DagDeclaration(depends_on=depends_on)}}
    declared = [InstanceDeclaration.model_validate(each) for each in (mapping, typed)]
    assert declared[0] == declared[1]
    assert len(build_federation([mapping, typed, declared[0]])) == 3


@pytest.mark.parametrize("value", ["x", None, 5])
def test_what_is_no_instance_is_named_by_its_number(value: Any) -> None:
    with pytest.raises(DeclarationError, match=r"build_federation \(number 1\): Input should be"):
        build_federation([value])
