"""A Dagster deployment of several processes: a code server for each project, a webserver and a
daemon."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import requests
import yaml

from tests.conftest import ROOT
from tests.live.dagster_api import DagsterApi
from tests.processes import LoggedProcess, find_free_port
from tests.waiting import wait_for

_BIN = Path(sys.executable).parent
_CHECKS = """
query ($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
  assetChecksOrError { ... on AssetChecks { checks { name executionForLatestMaterialization {
    evaluation { description } } } } } } } }
"""


class Deployment(DagsterApi):
    """The parts of a deployment, each a process of its own.

    Args:
        folder: A scratch folder, which gets DAGSTER_HOME and the logs.
        env: Added to the environment of all processes.
    """

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder = folder
        self.home = folder / "dagster"
        self.home.mkdir()
        shutil.copy(ROOT / "deployment" / "dagster.yaml", self.home)
        self.env = {**env, "DAGSTER_HOME": str(self.home)}
        # Processes that create a SQLite storage at the same time get in each other's way (1.13).
        dg.DagsterInstance.from_config(str(self.home)).dispose()

    @contextmanager
    def run(self, projects: Mapping[str, Path], broken: Iterable[str] = ()) -> Iterator[None]:
        """Run the deployment.

        Args:
            projects: The folders of the projects, by the name of their code location, in the order
                of the workspace. Each has the module that it is named after.
            broken: Locations that can't be loaded.
        """
        with ExitStack() as stack:
            servers = {name: find_free_port() for name in projects}
            for name, port in servers.items():
                path = projects[name]
                address = ["--host", "127.0.0.1", "--port", str(port), "--location-name", name]
                module = ["--module-name", f"{path.name}.definitions"]
                command = ["dagster", "api", "grpc", *address, *module, "--lazy-load-user-code"]
                stack.callback(_stop, self._start(f"code {name}", command, path))
            workspace = self.folder / "workspace.yaml"
            entries = [
                {"grpc_server": {"host": "127.0.0.1", "port": port, "location_name": name}}
                for name, port in servers.items()
            ]
            workspace.write_text(yaml.safe_dump({"load_from": entries}))
            self.port = find_free_port()
            address = ["--host", "127.0.0.1", "--port", str(self.port)]
            command = ["dagster-webserver", "-w", str(workspace), *address]
            webserver = self._start("webserver", command, self.folder)
            stack.callback(_stop, webserver)
            self._wait_until_loaded(webserver, set(broken))
            command = ["dagster-daemon", "run", "-w", str(workspace)]
            stack.callback(_stop, self._start("daemon", command, self.folder))
            yield

    def fetch_check(self, instance: str, dag_id: str, name: str) -> str | None:
        """Return what the last evaluation of a DAG's check says; None if there is none."""
        node = self.query(_CHECKS, key={"path": [instance, "dag", dag_id]})["assetNodeOrError"]
        found = {each["name"]: each for each in node["assetChecksOrError"]["checks"]}
        last = found[name]["executionForLatestMaterialization"]
        return last and last["evaluation"]["description"]

    def fetch_tick_errors(self, name: str) -> list[str]:
        """Return the errors of the last ticks of sensors of this name, of all locations."""
        ticks = self._fetch_ticks(name)
        return [tick.error.to_string() for tick in ticks if tick.error]

    def wait_for_ticks(self, *names: str, count: int = 2) -> None:
        """Return when sensors of these names have begun and ended this many ticks from now on."""
        begin = time.time()

        def have_ticked() -> bool:
            return all(
                sum(
                    tick.timestamp > begin and tick.status.value != "STARTED"
                    for tick in self._fetch_ticks(name)
                )
                >= count
                for name in names
            )

        wait_for(have_ticked, f"{names} have ended {count} ticks")

    def _fetch_ticks(self, name: str) -> list[Any]:
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            return [
                tick
                for state in instance.all_instigator_state()
                if state.instigator_name == name
                for tick in instance.get_ticks(
                    state.instigator_origin_id, state.selector_id, limit=10
                )
            ]

    def _start(self, name: str, command: Sequence[str], folder: Path) -> LoggedProcess:
        env = {**self.env, "PYTHONPATH": str(folder)}
        log = self.folder / f"{name}.log"
        return LoggedProcess([_BIN / command[0], *command[1:]], log, cwd=folder, env=env)

    def _wait_until_loaded(self, webserver: LoggedProcess, broken: set[str]) -> None:
        def is_loaded() -> bool:
            assert webserver.is_running, webserver.read_log()[-3000:]
            try:
                entries = self.fetch_locations()
            except requests.ConnectionError:
                return False
            results = {each["name"]: each["locationOrLoadError"] for each in entries}
            failed = {
                name: each["message"]
                for name, each in results.items()
                if each and each["__typename"] == "PythonError"
            }
            if any("DagsterUserCodeUnreachableError" in each for each in failed.values()):
                return False  # a code server that starts
            assert failed.keys() <= broken, results
            return failed.keys() == broken and all(results.values())

        wait_for(is_loaded, "the code locations are loaded", timeout_s=240)


def _stop(process: LoggedProcess) -> None:
    process.kill_tree()
