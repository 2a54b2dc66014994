"""Loading the components of a project, without a refresh of their states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest

from federation_defs import DeclarationError
from tests.unit.project import Project, build_keys

# Dagster 1.13 itself uses a deprecated function of pydantic.
pytestmark = pytest.mark.filterwarnings("ignore:.parse_obj_as. is deprecated")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.syspath_prepend(tmp_path)
    return Project(tmp_path, f"project_of_{tmp_path.name}")


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


def test_instances_without_a_state_have_the_assets_that_are_declared(project: Project) -> None:
    project.declare("warehouse")
    project.declare("metrics", customer_metrics=["warehouse/load_customers"])
    assert project.load_asset_keys() == build_keys(
        "warehouse/load_customers", "metrics/customer_metrics"
    )


def test_an_error_names_the_problems_of_all_instances(project: Project) -> None:
    project.declare("warehouse", load_orders=["nowhere/extract"])
    project.keep_state("warehouse", "load_orders", "load_customers")
    project.declare("metrics", customer_metrics=["warehouse/load_custmers"], typo=["metrics/x"])
    project.keep_state("metrics", "customer_metrics")
    with expect_refusal() as problems:
        project.load_asset_keys()
    folder = f"{project.defs.parent.name}/defs"
    assert sorted(problem.split(": ")[:2] for problem in problems) == [
        [f"{folder}/metrics/defs.yaml", "dags.customer_metrics.depends_on"],
        [f"{folder}/metrics/defs.yaml", "dags.typo"],
        [f"{folder}/metrics/defs.yaml", "dags.typo.depends_on"],
        [f"{folder}/warehouse/defs.yaml", "dags.load_orders.depends_on"],
    ]


def test_a_reloaded_state_is_validated_against_the_others(project: Project) -> None:
    project.declare("warehouse")
    project.keep_state("warehouse", "load_customers")
    project.declare("metrics", customer_metrics=["warehouse/load_customers"])
    tree = dg.ComponentTree.for_project(project.path)
    tree.build_defs(tree.defs_module_path)
    project.keep_state("warehouse", "load_clients")
    with expect_refusal() as problems:
        tree.reload_with_state(["FederatedAirflow[warehouse]"])
    assert "Airflow 'warehouse' has no DAG 'load_customers'" in problems[0]
