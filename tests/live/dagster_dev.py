"""A running `dagster dev` over a copy of the project."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import requests
import yaml

from tests.conftest import ROOT
from tests.contract.storages import NO_COMPUTE_LOGS
from tests.live.dagster_api import DagsterApi
from tests.processes import LoggedProcess, find_free_port
from tests.waiting import wait_for


def copy_project(folder: Path) -> Path:
    """Copy the project without its state, and return the copy's folder."""
    project = folder / "project"
    ignore = shutil.ignore_patterns(".local_defs_state", "__pycache__")
    shutil.copytree(ROOT / "federation_defs", project / "federation_defs", ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", project)
    shutil.copy(ROOT / ".env.example", project / ".env")
    return project


@contextmanager
def editing_declaration(project: Path, name: str) -> Iterator[dict[str, Any]]:
    """Write what is declared about an instance after it was changed."""
    path = project / "federation_defs" / "defs" / name / "defs.yaml"
    declared: dict[str, Any] = yaml.safe_load(path.read_text())
    yield declared["attributes"]
    path.write_text(yaml.safe_dump(declared))


def declare_dags(project: Path, texts: Mapping[str, str]) -> None:
    """Add DAGs to the declarations of instances, each as YAML, by the instances' names."""
    for name, text in texts.items():
        with editing_declaration(project, name) as declared:
            declared["dags"] |= yaml.safe_load(text)


class DagsterDev(DagsterApi):
    """`dagster dev`, as a whole or in parts to be killed and started again.

    Args:
        folder: A scratch folder. It gets the copy of the project, DAGSTER_HOME and the log.
        env: The addresses and accounts of the Airflows.

    Attributes:
        options: More options of `dagster dev`.
        has_teams: Whether each instance is in a code location of its own.
    """

    options: Sequence[str] = ()
    has_teams = False

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.project = copy_project(folder)
        self.home = folder / "dagster"
        self.home.mkdir()
        settings = yaml.safe_load((ROOT / "deployment" / "dagster.yaml").read_text())
        (self.home / "dagster.yaml").write_text(yaml.safe_dump(settings | NO_COMPUTE_LOGS))
        self.port = find_free_port()
        self.env = {**env, "DAGSTER_HOME": str(self.home), "PYTHONPATH": str(self.project)}
        self.log = folder / "dagster.log"
        self.process: LoggedProcess | None = None

    def build_command(self) -> list[str | Path]:
        dagster = Path(sys.executable).with_name("dagster")
        return [dagster, "dev", "--host", "127.0.0.1", "--port", str(self.port), *self.options]

    def start(self) -> None:
        """Start it, and return when all code locations are loaded."""
        self.process = LoggedProcess(self.build_command(), self.log, cwd=self.project, env=self.env)
        self.wait_until_loaded("Dagster has loaded the project")

    def wait_until_loaded(self, what: str, timeout_s: float = 240) -> None:
        """Return when all code locations are loaded. `what` is for the error."""
        wait_for(self.is_loaded, what, timeout_s)

    def is_loaded(self) -> bool:
        """Whether all code locations are loaded. An error of one fails the test."""
        assert self.process
        assert self.process.is_running, self.process.read_log()[-5000:]
        try:
            entries = self.fetch_locations()
        except requests.ConnectionError:
            return False
        for entry in entries:
            error = entry["locationOrLoadError"]
            assert not error or error["__typename"] != "PythonError", error
        return bool(entries) and all(entry["loadStatus"] == "LOADED" for entry in entries)

    def stop(self) -> None:
        assert self.process
        self.process.terminate()

    def kill(self) -> None:
        """Kill the webserver, the daemon, the code server and all run workers at once."""
        assert self.process
        self.process.kill_tree()

    def find_workers(self) -> list[psutil.Process]:
        """Return the run workers, in which the in-process executor runs the steps too."""
        return self._find_processes("multiprocessing.spawn")

    def close(self) -> None:
        """Leave nothing running."""
        # `dagster dev` leaves processes of a code server running that it restarted (1.13).
        if self.process and self.process.is_running:
            self.kill()

    @contextmanager
    def open_instance(self) -> Iterator[dg.DagsterInstance]:
        """Open its Dagster instance in this process."""
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            yield instance

    def kill_code_server(self) -> None:
        """Kill the code servers, and return when they are started again and loaded."""
        killed = self._fetch_updates()
        # Two processes: the one that Dagster talks to, and the one that has the code.
        for process in self._find_processes("code-server start", "dagster api grpc"):
            process.kill()

        def are_back() -> bool:
            updates = self._fetch_updates()
            return all(
                updates.get(name, updated_at) > updated_at for name, updated_at in killed.items()
            )

        wait_for(are_back, "the code locations are loaded again", timeout_s=240)

    def _find_processes(self, *names: str) -> list[psutil.Process]:
        assert self.process
        found = []
        for process in self.process.find_processes():
            try:
                command = " ".join(process.cmdline())
            except psutil.Error:  # it has ended meanwhile
                continue
            if any(name in command for name in names):
                found.append(process)
        return found

    def _fetch_updates(self) -> dict[str, float]:
        """Return when each code location that is loaded was last updated."""
        return {
            entry["name"]: entry["updatedTimestamp"]
            for entry in self.fetch_locations()
            if (entry["locationOrLoadError"] or {}).get("__typename") == "RepositoryLocation"
        }
