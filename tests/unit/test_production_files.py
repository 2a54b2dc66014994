"""What `make demo-production` writes and checks before it starts anything, and what the live tests
say of a code location that it can't load. `make soak` runs it."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from supervisor.options import ServerOptions

from federation_defs.command import main
from tests.conftest import ROOT
from tests.live.production import DagsterProduction
from tests.processes import LoggedProcess

WRITE = """
import sys
from pathlib import Path
from production import Production, create_projects, write_settings

home, database, project = map(Path, sys.argv[1:])
production = Production(home, database, project, 3000)
create_projects(production)
write_settings(production, "pgbouncer")
"""
DEFS = ROOT / "federation_defs" / "defs"


class Written:
    """A deployment that is not started."""

    def __init__(self, folder: Path, project: Path = ROOT) -> None:
        self.home, self.database = folder / "home", folder / "database"
        self.database.mkdir(parents=True)
        (self.database / "password").write_text("secret")
        self.project = project
        self.write()

    def write(self) -> None:
        subprocess.run(
            [sys.executable, "-c", WRITE, self.home, self.database, self.project],
            cwd=ROOT / "airflow_instances",
            check=True,
            timeout=60,
        )

    def list_instances(self, team: str) -> dict[str, list[str]]:
        """Return which instances a team declares, and which it names as those of others."""
        folder = self.home / "projects" / team / f"{team}_team" / "defs"
        return {
            path.parent.name: yaml.safe_load(path.read_text())["attributes"]["elsewhere"]
            for path in folder.glob("*/defs.yaml")
        }


def test_the_projects_of_the_teams_are_one_federation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = Written(tmp_path)
    projects = [str(written.home / "projects" / team) for team in ("warehouse", "metrics")]
    assert main(["check", *projects]) == 0
    assert capsys.readouterr().out.startswith("Projects: 2. Instances: 2. ")


def test_an_instance_that_a_person_added_to_the_demo_belongs_to_the_first_team(
    tmp_path: Path,
) -> None:
    defs = tmp_path / "project" / "federation_defs" / "defs"
    for name in ("warehouse", "metrics", "sales"):
        (defs / name).mkdir(parents=True)
        text = (DEFS / "warehouse" / "defs.yaml").read_text()
        (defs / name / "defs.yaml").write_text(text)
    (defs / "jobs.py").write_text("")
    written = Written(tmp_path, tmp_path / "project")
    assert written.list_instances("warehouse") == {"warehouse": ["metrics"], "sales": ["metrics"]}
    assert written.list_instances("metrics") == {"metrics": ["sales", "warehouse"]}
    first = written.home / "projects" / "warehouse"
    assert (first / "warehouse_team" / "defs" / "jobs.py").exists()


def test_supervisord_reads_paths_with_a_percent_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Written(tmp_path / "100%")
    (written.home / "logs").mkdir()
    monkeypatch.chdir(written.home)
    options = ServerOptions()
    options.realize(["--configuration", str(written.home / "supervisord.ini")])
    programs = {
        program.name: program
        for group in options.process_group_configs
        for program in group.process_configs
    }
    assert str(written.home) in programs["webserver"].command
    assert programs["code-metrics"].directory == str(written.home / "projects" / "metrics")


def test_only_its_user_can_read_what_has_the_password_of_the_database(tmp_path: Path) -> None:
    written = Written(tmp_path)
    users = written.database / "userlist.txt"
    users.chmod(0o644)
    written.write()
    assert users.stat().st_mode & 0o777 == 0o600


def test_a_taken_port_is_named_with_the_variable_that_sets_another(tmp_path: Path) -> None:
    program = ROOT / "airflow_instances" / "production.py"
    folders = ["--home", tmp_path / "home", "--project", ROOT]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ended = subprocess.run(
            [sys.executable, program, *folders, "--port", str(port)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    expected = (
        rf"Port {port}, meant for dagster, is taken. "
        r"Choose another with 'make demo-production DAGSTER_PORT=\d+'.\n"
    )
    assert re.fullmatch(expected, ended.stderr)
    assert ended.returncode == 2
    assert not (tmp_path / "home").exists()


class Unloadable(DagsterProduction):
    """A deployment with a code location that can't be loaded."""

    def fetch_locations(self) -> list[dict[str, Any]]:
        error = {"__typename": "PythonError", "message": "there is no instance 'warehose'"}
        return [{"name": "metrics", "loadStatus": "LOADED", "locationOrLoadError": error}]


def test_a_code_location_that_can_not_be_loaded_is_reported_with_its_error(tmp_path: Path) -> None:
    dagster = Unloadable(tmp_path, {})
    dagster.process = LoggedProcess(["sleep", "600"], dagster.log, tmp_path, {})
    try:
        with pytest.raises(AssertionError, match=r"all is loaded\. The last error .*'warehose'"):
            dagster.wait_until_loaded("all is loaded", timeout_s=0)
    finally:
        dagster.close()
