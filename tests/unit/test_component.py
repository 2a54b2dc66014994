"""Loading the components of a project, without a refresh of their states."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
import pytest

from federation_defs import DeclarationError, FederatedAirflow
from tests.unit.project import Project, build_keys

# Dagster 1.13 itself uses a deprecated function of pydantic.
pytestmark = pytest.mark.filterwarnings("ignore:.parse_obj_as. is deprecated")


@contextmanager
def expect_refusal() -> Iterator[list[str]]:
    """Collect the problems of the DeclarationError that the body raises."""
    problems: list[str] = []
    try:
        yield problems
    except Exception as raised:
        error: BaseException | None = raised
        while error is not None and not isinstance(error, DeclarationError):
            error = error.__cause__  # Dagster wraps errors in its own
        if error is None:
            raise
        problems += error.problems
    else:
        pytest.fail("The declarations were accepted.")


def test_instances_are_loaded_from_their_last_known_states(project: Project) -> None:
    project.declare("warehouse")
    project.keep_state("warehouse", "load_customers", "load_orders")
    project.declare("metrics", customer_metrics=["warehouse/load_customers"])
    project.keep_state("metrics", "customer_metrics")
    assert project.load_asset_keys() == build_keys(
        "warehouse/load_customers", "warehouse/load_orders", "metrics/customer_metrics"
    )


def test_an_instance_knows_what_is_wrong_with_the_dags_of_others(project: Project) -> None:
    project.declare("metrics", customer_metrics=["warehouse/load_custmers"])
    project.declare("warehouse")
    project.keep_state("warehouse", "load_customers")
    tree = dg.ComponentTree.for_project(project.path)
    dg.Definitions.validate_loadable(tree.build_defs(tree.defs_module_path))
    for component in tree.get_all_components(FederatedAirflow):
        problem = component.find_problem("warehouse", "load_custmers")
        assert problem == "has vanished from its Airflow (as of 2026-01-01T00:00:00+00:00)"
        assert component.find_problem("warehouse", "load_customers") is None
        assert component.find_problem("metrics", "customer_metrics") is None  # never reached


def test_instances_without_a_state_have_the_assets_that_are_declared(project: Project) -> None:
    project.declare("warehouse")
    project.declare("metrics", customer_metrics=["warehouse/load_customers"])
    assert project.load_asset_keys() == build_keys(
        "warehouse/load_customers", "metrics/customer_metrics"
    )


def test_an_error_names_the_problems_of_all_instances(project: Project) -> None:
    project.declare("warehouse", load_orders=["nowhere/extract"])
    project.declare("metrics", customer_metrics=["warehose/load_customers"], a=["metrics/b"])
    with expect_refusal() as problems:
        project.load_asset_keys()
    folder = f"{project.defs.parent.name}/defs"
    assert sorted(problem.split(": ")[:2] for problem in problems) == [
        [f"{folder}/metrics/defs.yaml", "dags.customer_metrics.depends_on"],
        [f"{folder}/warehouse/defs.yaml", "dags.load_orders.depends_on"],
    ]


def test_a_deep_chain_is_one_warning_also_in_strict_mode(
    project: Project, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDERATION_STRICT", "true")
    numbers = range(2, 6)
    chain = {f"b{number}": {"depends_on": [f"second/b{number - 1}"]} for number in numbers}
    project.declare("first", top=["second/b5"])
    project.declare("second", more={"dags": {"b1": {"depends_on": ["second/b0"]}, **chain}})
    project.load_asset_keys()
    (warning,) = caplog.messages
    assert (
        "second/b0 → second/b1 → second/b2 → second/b3 → second/b4 → second/b5 → first/" in warning
    )


@pytest.fixture
def typing_error(project: Project) -> Project:
    project.declare("warehouse")
    project.keep_state("warehouse", "load_customers")
    project.declare("metrics", customer_metrics=["warehouse/load_custmers"])
    project.keep_state("metrics", "customer_metrics")
    return project


WARNING = (
    "dags.customer_metrics.depends_on: Airflow 'warehouse' has no DAG 'load_custmers'; did you "
    "mean 'load_customers'?"
)


@pytest.mark.parametrize("value", ["", "false", "0"])
def test_a_dag_that_an_airflow_does_not_have_is_a_warning_and_an_asset(
    typing_error: Project,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    value: str,
) -> None:
    monkeypatch.setenv("FEDERATION_STRICT", value)
    assert typing_error.load_asset_keys() == build_keys(
        "warehouse/load_customers", "warehouse/load_custmers", "metrics/customer_metrics"
    )
    assert WARNING in caplog.text


def test_a_dag_that_an_airflow_does_not_have_is_an_error_in_strict_mode(
    typing_error: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDERATION_STRICT", "true")
    with expect_refusal() as problems:
        typing_error.load_asset_keys()
    (problem,) = problems
    assert WARNING in problem


def test_a_strictness_that_is_none_is_refused(
    typing_error: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDERATION_STRICT", "very")
    with expect_refusal() as problems:
        typing_error.load_asset_keys()
    assert problems == ["FEDERATION_STRICT is 'very': write true or false."]


def test_a_reloaded_state_lacks_a_dag_that_others_depend_on(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    project.declare("warehouse")
    project.keep_state("warehouse", "load_customers")
    project.declare("metrics", customer_metrics=["warehouse/load_customers"])
    tree = dg.ComponentTree.for_project(project.path)
    tree.build_defs(tree.defs_module_path)
    assert caplog.text == ""
    project.keep_state("warehouse", "load_clients")
    defs = tree.reload_with_state(["FederatedAirflow[warehouse]"])
    assert set(defs.resolve_asset_graph().get_all_asset_keys()) == build_keys(
        "warehouse/load_customers", "warehouse/load_clients", "metrics/customer_metrics"
    )
    assert "Airflow 'warehouse' has no DAG 'load_customers'" in caplog.text


@pytest.mark.parametrize(
    "auth",
    [
        {"type": "password", "username": "me", "password": ["s3cret-word"]},
        {"type": "password", "username": "me", "password": "s3cret-word", "host": "h"},
        {"type": "token", "token_command": "s3cret-word"},
        {"password": "s3cret-word"},
    ],
    ids=["a list", "an unknown key", "a text", "no type"],
)
def test_an_error_of_dagsters_about_a_key_quotes_no_secret(
    project: Project, auth: dict[str, Any]
) -> None:
    """Dagster builds it from ours, adds the line in the file, and shows the inputs (1.13)."""
    project.declare("warehouse", auth=auth)
    with pytest.raises(Exception, match="Error while loading component") as refused:
        project.load_asset_keys()
    message = "".join(traceback.format_exception(refused.value))
    assert "defs.yaml:" in message
    assert "auth" in message
    assert "s3cret-word" not in message
