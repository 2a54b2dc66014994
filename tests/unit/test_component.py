"""Loading the components of a project. No test here connects to an Airflow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster.components.utils.project_paths import get_local_state_path

from federation_defs import DeclarationError, load_federation
from federation_defs.naming import build_asset_key
from federation_defs.state import write_snapshot
from tests.unit.build import build_snapshot

# Dagster 1.13 itself uses a deprecated function of pydantic.
pytestmark = pytest.mark.filterwarnings("ignore:.parse_obj_as. is deprecated")

PYPROJECT = """\
[tool.dg]
directory_type = "project"

[tool.dg.project]
root_module = "{module}"
"""


class Project:
    """A Dagster project with instances under its defs folder."""

    def __init__(self, path: Path, module: str) -> None:
        self.path = path
        self.defs = path / module / "defs"
        self.defs.mkdir(parents=True)
        (path / module / "__init__.py").touch()
        (path / "pyproject.toml").write_text(PYPROJECT.format(module=module))

    def declare(self, instance: str, **dags: list[str]) -> None:
        """Declare an instance with these dependencies by DAG id."""
        attributes: dict[str, Any] = {
            "name": instance,
            "url": "http://127.0.0.1:1",
            "auth": {"type": "none"},
            "dags": {dag_id: {"depends_on": upstreams} for dag_id, upstreams in dags.items()},
        }
        declared = {"type": "federation_defs.FederatedAirflow", "attributes": attributes}
        (self.defs / instance).mkdir()
        (self.defs / instance / "defs.yaml").write_text(yaml.safe_dump(declared))

    def keep_state(self, instance: str, *dag_ids: str) -> None:
        """Write the last known state of an instance."""
        path = get_local_state_path(f"FederatedAirflow[{instance}]", self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_snapshot(build_snapshot(*dag_ids), path)

    def load_asset_keys(self) -> set[dg.AssetKey]:
        graph = load_federation(self.path).resolve_asset_graph()
        return set(graph.get_all_asset_keys())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.syspath_prepend(tmp_path)
    return Project(tmp_path, f"project_of_{tmp_path.name}")


def build_keys(*names: str) -> set[dg.AssetKey]:
    return {build_asset_key(*name.split("/")) for name in names}


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
