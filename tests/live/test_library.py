"""The package as a library in another Dagster project, without the demo."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.processes import find_free_port

PYPROJECT = """\
[project]
name = "sales_platform"
version = "0"

[tool.dg]
directory_type = "project"

[tool.dg.project]
root_module = "sales_platform"
"""
DEFINITIONS = """\
from pathlib import Path

import dagster as dg
from federation_defs import load_federation


@dg.definitions
def defs() -> dg.Definitions:
    return load_federation(Path(__file__).parent)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "sales_platform" / "defs").mkdir(parents=True)
    (tmp_path / "sales_platform" / "__init__.py").touch()
    (tmp_path / "sales_platform" / "defs" / "__init__.py").touch()
    (tmp_path / "sales_platform" / "definitions.py").write_text(DEFINITIONS)
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    return tmp_path


def run_dg(project: Path, *arguments: str, **env: str) -> str:
    finished = subprocess.run(
        [Path(sys.executable).with_name("dg"), *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project), "COLUMNS": "250", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


def test_the_wheel_contains_the_library_and_not_the_demo(tmp_path: Path) -> None:
    uv = os.environ.get("UV") or shutil.which("uv")  # set by `uv run`
    assert uv
    build = [uv, "build", "--quiet", "--wheel", "--out-dir", tmp_path, ROOT]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "federation_defs/component.py" in names
    assert "federation_defs/py.typed" in names
    assert "federation_defs/definitions.py" not in names
    assert not [name for name in names if name.startswith("federation_defs/defs/")]


def test_dg_scaffolds_and_loads_the_component(project: Path) -> None:
    run_dg(project, "scaffold", "defs", "federation_defs.FederatedAirflow", "sales")
    declared = (project / "sales_platform" / "defs" / "sales" / "defs.yaml").read_text()
    assert "name: sales" in declared
    assert '"{{ env.SALES_AIRFLOW_URL }}"' in declared

    account = {"SALES_AIRFLOW_USERNAME": "me", "SALES_AIRFLOW_PASSWORD": "s3cret"}
    url = f"http://127.0.0.1:{find_free_port()}"
    listed = run_dg(project, "list", "defs", SALES_AIRFLOW_URL=url, **account)
    assert f"Airflow 'sales' did not answer at {url}" in listed
    assert "sales__observation" in listed
    assert "warehouse" not in listed
