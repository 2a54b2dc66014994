"""The `dg` commands load the demo while one of its Airflows is down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from tests.conftest import Airflows
from tests.live.dagster_dev import copy_project
from tests.processes import find_free_port

DEADLINE_S = 300  # only a command that hangs takes so long, even on a busy machine
DOWNSTREAM = "metrics/dag/customer_metrics"
ASSETS = {
    *(f"warehouse/dag/load_{s}" for s in ("customers", "orders", "payments", "products", "sales")),
    *(f"metrics/dag/{s}_metrics" for s in ("customer", "order", "payment", "product", "sales")),
    "metrics/dag/category_metrics",
    "metrics/dag/price_history",
    "metrics/dag/remove_order_metrics",
    "warehouse/dag/export_category_metrics",
}


@dataclass(frozen=True)
class Ended:
    """A `dg` command that has ended. Its standard error is part of its output."""

    returncode: int
    output: str


class Dg:
    """Runs `dg` commands in forks of one process: see `dg_forks.py`."""

    def __init__(self, process: subprocess.Popen[str], env: Mapping[str, str]) -> None:
        self._process = process
        self._env = env

    def run(self, folder: Path, *arguments: str, **env: str) -> Ended:
        """Run a command in a copy of the project."""
        command = {
            "argv": [str(Path(sys.executable).with_name("dg")), *arguments],
            "cwd": str(folder),
            "env": {**self._env, **env, "PYTHONPATH": str(folder)},
        }
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{json.dumps(command)}\n")
        self._process.stdin.flush()
        deadline = Timer(DEADLINE_S, os.killpg, [self._process.pid, signal.SIGKILL])
        deadline.start()
        try:
            ended = self._process.stdout.readline()
        finally:
            deadline.cancel()
        assert ended, f"no answer to dg {arguments} within {DEADLINE_S} s"
        return Ended(**json.loads(ended))


@pytest.fixture(scope="module")
def dg(airflows: Airflows) -> Iterator[Dg]:
    env = {**os.environ, **airflows.env, "COLUMNS": "250"}
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("dg_forks.py")],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield Dg(process, env)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


class Project:
    """A copy of the project, and `dg` commands in it."""

    def __init__(self, folder: Path, dg: Dg) -> None:
        self.path = copy_project(folder)
        self._dg = dg

    def run_dg(self, *arguments: str, **env: str) -> Ended:
        return self._dg.run(self.path, *arguments, **env)

    def list_assets(self, **env: str) -> tuple[str, dict[str, dict[str, Any]]]:
        """Return what `dg list defs` prints, and the assets that it lists, by key as "a/b/c"."""
        listed = self.run_dg("list", "defs", "--json", **env)
        assert listed.returncode == 0, listed.output
        content = json.loads(listed.output[listed.output.index("{\n") :])
        return listed.output, {asset["asset_key"]: asset for asset in content["assets"]}


def test_dg_loads_all_assets_with_one_airflow_down(dg: Dg, tmp_path: Path) -> None:
    project, port = Project(tmp_path, dg), str(find_free_port())
    reason = f"Airflow 'metrics' gave no usable answer at http://127.0.0.1:{port}"

    loaded, assets = project.list_assets(METRICS_PORT=port)
    assert reason in loaded
    assert set(assets) == ASSETS
    assert assets[DOWNSTREAM]["owners"] == []  # only a state has them

    refreshed = project.run_dg("utils", "refresh-defs-state")
    assert refreshed.returncode == 0, refreshed.output
    refreshed = project.run_dg("utils", "refresh-defs-state", METRICS_PORT=port)
    assert refreshed.returncode != 0
    assert reason in refreshed.output

    _, assets = project.list_assets(METRICS_PORT=port)
    assert set(assets) == ASSETS
    assert assets[DOWNSTREAM]["owners"] == [{"team": "analytics"}]


def test_dg_refuses_an_unknown_key_with_file_and_line(dg: Dg, tmp_path: Path) -> None:
    project = Project(tmp_path, dg)
    folder = Path("federation_defs", "defs", "metrics")
    declared = project.path / folder / "defs.yaml"
    declared.write_text(declared.read_text().replace("depends_on: [w", "depend_on: [w", 1))
    # By folder, because dg 1.13 checks only the last file of each component type.
    checked = project.run_dg("check", "yaml", str(folder))
    assert checked.returncode != 0
    assert "depend_on" in checked.output
    assert "metrics/defs.yaml:" in checked.output
