"""What `dg scaffold` writes for an instance, and the next steps that it prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from dagster.components import ScaffoldRequest
from dagster.components.scaffold.scaffold import NoParams

from federation_defs.scaffolder import AirflowScaffolder
from tests.contract.clients import ACCOUNT
from tests.contract.fakes.airflow import FakeAirflow
from tests.unit.project import Project, build_keys

# Dagster 1.13 itself uses a deprecated function of pydantic.
pytestmark = pytest.mark.filterwarnings("ignore:.parse_obj_as. is deprecated")


RUN_DG = """
import shlex, sys
from importlib.metadata import entry_points

(dg,) = entry_points(group="console_scripts", name="dg")
for command in sys.argv[1:]:
    sys.argv = shlex.split(command)
    try:
        dg.load()()
    except SystemExit as ended:
        if ended.code:
            raise
"""


def read_variables(printed: str, url: str) -> dict[str, str]:
    """Return the variables that the scaffolder names, with the values of a fake Airflow."""
    values = {"URL": url, "USERNAME": ACCOUNT["username"], "PASSWORD": ACCOUNT["password"]}
    names = re.findall(r"[A-Z]\w*_AIRFLOW_(?:URL|USERNAME|PASSWORD)", printed)
    return {name: values[name.rpartition("_")[2]] for name in names}


@pytest.mark.parametrize(
    ("folder", "instance"),
    [
        ("sales", "sales"),
        ("a-b", "a_b"),
        ("2fast", "2fast"),
        ("2026", "2026"),
        ("no", "no"),
        ("my.dag", "my_dag"),
        ("süd", "sud"),
        ("日本", "airflow"),
        ("two words", "two_words"),
        ("x" * 60, "x" * 50),
    ],
)
def test_any_folder_is_scaffolded_as_an_instance_that_loads(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: str,
    instance: str,
) -> None:
    request = ScaffoldRequest(
        type_name="federation_defs.FederatedAirflow",
        target_path=project.defs / folder,
        scaffold_format="yaml",
        project_root=project.path,
        params=NoParams(),
    )
    with FakeAirflow("v2") as server:
        server.database.add_dag("load")
        AirflowScaffolder().scaffold(request)
        monkeypatch.setenv("DAGSTER_IS_DEV_CLI", "1")
        for name, value in read_variables(capsys.readouterr().out, server.url).items():
            monkeypatch.setenv(name, value)
        assert project.load_asset_keys() == build_keys(f"{instance}/load")


def test_the_printed_steps_work(project: Project) -> None:
    def run_dg(*commands: str, **env: str) -> str:
        """Run `dg` commands in one process, as each import of Dagster takes seconds."""
        paths = os.pathsep.join([str(project.path), str(Path(__file__).parents[2])])
        finished = subprocess.run(
            [sys.executable, "-c", RUN_DG, *commands],
            cwd=project.path,
            env={**os.environ, **env, "PYTHONPATH": paths, "COLUMNS": "250"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert finished.returncode == 0, f"{commands}: {finished.stdout}{finished.stderr}"
        return finished.stdout

    with FakeAirflow("v2") as server:
        server.database.add_dag("load_customers")
        printed = run_dg("dg scaffold defs federation_defs.FederatedAirflow 'two words'")
        variables = read_variables(printed, server.url)
        assert len(variables) == 3
        commands = re.findall(r"^\d\. (dg [^#\n]+)", printed, re.MULTILINE)
        assert len(commands) == 4
        assert "two_words/dag/load_customers" in run_dg(*commands, **variables)
