"""A running `dagster dev` over a copy of the project."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import requests
import yaml

from tests.conftest import ROOT
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
    """

    options: Sequence[str] = ()

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.project = copy_project(folder)
        self.home = folder / "dagster"
        self.home.mkdir()
        shutil.copy(ROOT / "deployment" / "dagster.yaml", self.home)
        self.port = find_free_port()
        self.env = {**env, "DAGSTER_HOME": str(self.home), "PYTHONPATH": str(self.project)}
        self.log = folder / "dagster.log"
        self.process: LoggedProcess | None = None

    def start(self) -> None:
        """Start it, and return when the code location is loaded."""
        dagster = Path(sys.executable).with_name("dagster")
        address = ["--host", "127.0.0.1", "--port", str(self.port)]
        command = [dagster, "dev", *address, *self.options]
        process = LoggedProcess(command, self.log, cwd=self.project, env=self.env)
        self.process = process

        def is_loaded() -> bool:
            assert process.is_running, process.read_log()[-5000:]
            try:
                entries = self.fetch_locations()
            except requests.ConnectionError:
                return False
            for entry in entries:
                error = entry["locationOrLoadError"]
                assert not error or error["__typename"] != "PythonError", error
            return bool(entries) and all(entry["loadStatus"] == "LOADED" for entry in entries)

        wait_for(is_loaded, "dagster dev has loaded the project", timeout_s=240)

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

    def kill_code_server(self) -> None:
        """Kill the code server, and return when Dagster has started it again and loaded it."""
        killed = self._fetch_location()
        # Two processes: the one that Dagster talks to, and the one that has the code.
        for process in self._find_processes("code-server start", "dagster api grpc"):
            process.kill()

        def is_back() -> bool:
            location = self._fetch_location()
            return location[1] == "RepositoryLocation" and location != killed

        wait_for(is_back, "the code location is loaded again", timeout_s=240)

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

    def _fetch_location(self) -> tuple[float, str]:
        """Return when the only code location was last updated, and the type of the result."""
        (entry,) = self.fetch_locations()
        return entry["updatedTimestamp"], (entry["locationOrLoadError"] or {}).get("__typename", "")
