"""The code location loads with Airflows down, and reports wrong declarations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Airflows
from tests.live.dagster_dev import DagsterDev, copy_project
from tests.processes import find_free_port

UPSTREAM = "warehouse/dag/load_customers"
DOWNSTREAM = "metrics/dag/customer_metrics"
ASSETS = {
    *(f"warehouse/dag/load_{s}" for s in ("customers", "orders", "payments", "products", "sales")),
    *(f"metrics/dag/{s}_metrics" for s in ("customer", "order", "payment", "product", "sales")),
}


class Project:
    """A copy of the project, and `dg` commands in it."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.path = copy_project(folder)
        self.env = env

    def run_dg(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command. Its standard error is part of its output."""
        return subprocess.run(
            [Path(sys.executable).with_name("dg"), *arguments],
            cwd=self.path,
            env={**os.environ, **self.env, **env, "PYTHONPATH": str(self.path), "COLUMNS": "250"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,  # only a command that hangs takes so long, even on a busy machine
            check=False,
        )

    def list_assets(self, **env: str) -> dict[str, dict[str, Any]]:
        """Return the assets that `dg list defs` lists, by key as "a/b/c"."""
        listed = self.run_dg("list", "defs", "--json", **env)
        assert listed.returncode == 0, listed.stdout
        content = json.loads(listed.stdout[listed.stdout.index("{\n") :])
        return {asset["asset_key"]: asset for asset in content["assets"]}

    def declare(self, instance: str, old: str, new: str) -> None:
        """Replace text in an instance's defs.yaml."""
        path = self.path / "federation_defs" / "defs" / instance / "defs.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


@pytest.fixture
def project(airflows: Airflows, tmp_path: Path) -> Project:
    return Project(tmp_path, airflows.env)


def test_dg_checks_and_lists_the_demo(project: Project) -> None:
    for check in ("yaml", "defs"):
        checked = project.run_dg("check", check)
        assert checked.returncode == 0, checked.stdout
    listed = project.run_dg("list", "defs")
    assert listed.returncode == 0, listed.stdout
    for name in (*ASSETS, "warehouse__observation", "metrics__observation", "metrics__automation"):
        assert name in listed.stdout


@pytest.mark.parametrize("known_before", [True, False])
def test_with_one_airflow_down_all_assets_load_and_a_warning_names_it(
    project: Project, known_before: bool
) -> None:
    if known_before:
        assert project.run_dg("utils", "refresh-defs-state").returncode == 0
    port = str(find_free_port())
    checked = project.run_dg("check", "defs", METRICS_PORT=port)
    assert checked.returncode == 0, checked.stdout
    assert f"Airflow 'metrics' did not answer at http://127.0.0.1:{port}" in checked.stdout
    assets = project.list_assets(METRICS_PORT=port)
    assert set(assets) == ASSETS
    # Only a state has the owners.
    assert assets[DOWNSTREAM]["owners"] == ([{"team": "analytics"}] if known_before else [])


def test_a_failed_refresh_is_reported_and_keeps_the_last_state(project: Project) -> None:
    assert project.run_dg("utils", "refresh-defs-state").returncode == 0
    refreshed = project.run_dg("utils", "refresh-defs-state", METRICS_PORT=str(find_free_port()))
    assert refreshed.returncode != 0
    assert "Airflow 'metrics' did not answer" in refreshed.stdout
    assets = project.list_assets(METRICS_PORT=str(find_free_port()))
    assert assets[DOWNSTREAM]["owners"] == [{"team": "analytics"}]


@pytest.mark.parametrize(
    ("instance", "refused"),
    [
        ("warehouse", "forbids GET /api/v1/dags (403)"),
        ("metrics", "refused POST /auth/token (401)"),
    ],
)
def test_a_wrong_password_is_reported_with_the_instance_and_its_variables(
    project: Project, instance: str, refused: str
) -> None:
    prefix = instance.upper()
    checked = project.run_dg("check", "defs", **{f"{prefix}_PASSWORD": "wr0ng-s3cret"})
    assert checked.returncode == 0, checked.stdout
    assert (
        f"Airflow '{instance}' {refused}. "
        f"Check {prefix}_AIRFLOW_USERNAME and {prefix}_AIRFLOW_PASSWORD" in checked.stdout
    )
    assert "wr0ng-s3cret" not in checked.stdout


@pytest.mark.parametrize(
    ("upstream", "problem"),
    [
        (
            "warehose/load_customers",
            "there is no Airflow instance 'warehose'; did you mean 'warehouse'?",
        ),
        (
            "warehouse/load_custmers",
            "Airflow 'warehouse' has no DAG 'load_custmers'; did you mean 'load_customers'?",
        ),
    ],
)
def test_a_dependency_on_an_unknown_dag_is_refused_with_a_similar_name(
    project: Project, upstream: str, problem: str
) -> None:
    project.declare("metrics", "warehouse/load_customers", upstream)
    checked = project.run_dg("check", "defs")
    assert checked.returncode != 0
    where = "federation_defs/defs/metrics/defs.yaml: dags.customer_metrics.depends_on: "
    assert where + problem in checked.stdout


def test_an_unknown_key_is_refused_with_file_and_line(project: Project) -> None:
    project.declare("metrics", "depends_on: [warehouse/load_customers]", "depend_on: []")
    # By folder, because dg 1.13 checks only the last file of each component type.
    for check in (("yaml", "federation_defs/defs/metrics"), ("defs",)):
        checked = project.run_dg("check", *check)
        assert checked.returncode != 0
        assert "depend_on" in checked.stdout
        assert "metrics/defs.yaml:" in checked.stdout


@pytest.fixture
def dagster_without_metrics(airflows: Airflows, tmp_path: Path) -> Iterator[DagsterDev]:
    dagster = DagsterDev(tmp_path, {**airflows.env, "METRICS_PORT": str(find_free_port())})
    dagster.start()
    try:
        yield dagster
    finally:
        dagster.stop()


def test_dagster_dev_loads_all_assets_with_one_airflow_down(
    airflows: Airflows, dagster_without_metrics: DagsterDev
) -> None:
    assets = dagster_without_metrics.fetch_assets()
    assert set(assets) == ASSETS
    upstream = assets[UPSTREAM]
    assert not upstream["isExecutable"]
    assert upstream["groupName"] == "warehouse"
    assert upstream["owners"] == [{"team": "warehouse-team"}]
    assert set(upstream["kinds"]) == {"airflow", "dag"}
    assert {"key": "federated", "value": ""} in upstream["tags"]
    links = {entry["label"]: entry.get("url") for entry in upstream["metadataEntries"]}
    assert links["Link to DAG"] == f"{airflows.warehouse.url}/dags/load_customers/grid"

    downstream = assets[DOWNSTREAM]
    assert downstream["isExecutable"]
    assert downstream["dependencyKeys"] == [{"path": ["warehouse", "dag", "load_customers"]}]
