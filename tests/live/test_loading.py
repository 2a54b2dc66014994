"""The `dg` commands load the demo while one of its Airflows is down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import Airflows
from tests.live.dagster_dev import copy_project
from tests.processes import find_free_port

DOWNSTREAM = "metrics/dag/customer_metrics"
ASSETS = {
    *(f"warehouse/dag/load_{s}" for s in ("customers", "orders", "payments", "products", "sales")),
    *(f"metrics/dag/{s}_metrics" for s in ("customer", "order", "payment", "product", "sales")),
    "metrics/dag/category_metrics",
    "metrics/dag/price_history",
    "metrics/dag/remove_order_metrics",
    "warehouse/dag/export_category_metrics",
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

    def list_assets(self, **env: str) -> tuple[str, dict[str, dict[str, Any]]]:
        """Return what `dg list defs` prints, and the assets that it lists, by key as "a/b/c"."""
        listed = self.run_dg("list", "defs", "--json", **env)
        assert listed.returncode == 0, listed.stdout
        content = json.loads(listed.stdout[listed.stdout.index("{\n") :])
        return listed.stdout, {asset["asset_key"]: asset for asset in content["assets"]}


def test_dg_loads_all_assets_with_one_airflow_down(airflows: Airflows, tmp_path: Path) -> None:
    project, port = Project(tmp_path, airflows.env), str(find_free_port())
    reason = f"Airflow 'metrics' did not answer at http://127.0.0.1:{port}"

    loaded, assets = project.list_assets(METRICS_PORT=port)
    assert reason in loaded
    assert set(assets) == ASSETS
    assert assets[DOWNSTREAM]["owners"] == []  # only a state has them

    refreshed = project.run_dg("utils", "refresh-defs-state")
    assert refreshed.returncode == 0, refreshed.stdout
    refreshed = project.run_dg("utils", "refresh-defs-state", METRICS_PORT=port)
    assert refreshed.returncode != 0
    assert reason in refreshed.stdout

    _, assets = project.list_assets(METRICS_PORT=port)
    assert set(assets) == ASSETS
    assert assets[DOWNSTREAM]["owners"] == [{"team": "analytics"}]


def test_dg_refuses_an_unknown_key_with_file_and_line(airflows: Airflows, tmp_path: Path) -> None:
    project = Project(tmp_path, airflows.env)
    folder = Path("federation_defs", "defs", "metrics")
    declared = project.path / folder / "defs.yaml"
    declared.write_text(declared.read_text().replace("depends_on: [w", "depend_on: [w", 1))
    # By folder, because dg 1.13 checks only the last file of each component type.
    checked = project.run_dg("check", "yaml", str(folder))
    assert checked.returncode != 0
    assert "depend_on" in checked.stdout
    assert "metrics/defs.yaml:" in checked.stdout
