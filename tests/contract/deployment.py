"""A Dagster deployment of several processes: a daemon, and a code server for each project, which is
refused what Dagster+ refuses in user code. The tests ask GraphQL without a webserver."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster_graphql.schema import create_schema

from federation_defs.dagster_io.code_locations import (
    fetch_sensor_state,
    find_seconds_until_conditions,
)
from federation_defs.timing import Timing
from tests.conftest import ROOT
from tests.contract.dagster_plus import IN_USER_CODE
from tests.contract.storages import CLOUD, NO_COMPUTE_LOGS
from tests.live.dagster_api import DagsterApi, count_evaluations
from tests.processes import LoggedProcess, find_free_port
from tests.waiting import wait_for

_BIN = Path(sys.executable).parent
_UNREACHABLE = "DagsterUserCodeUnreachableError"
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
        settings = yaml.safe_load((ROOT / "deployment" / "dagster.yaml").read_text())
        settings |= CLOUD | NO_COMPUTE_LOGS
        (self.home / "dagster.yaml").write_text(yaml.safe_dump(settings))
        self.env = {**env, "DAGSTER_HOME": str(self.home)}
        self._schema = create_schema()
        self._workspace: WorkspaceProcessContext | None = None
        # Before the others start: processes that create a SQLite storage at the same time get in
        # each other's way (1.13).
        self._instance = self._open_instance()

    def close(self) -> None:
        self._instance.dispose()

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
                stack.callback(_stop, self._start(f"code {name}", command, path, "1"))
            workspace = self.folder / "workspace.yaml"
            entries = [
                {"grpc_server": {"host": "127.0.0.1", "port": port, "location_name": name}}
                for name, port in servers.items()
            ]
            workspace.write_text(yaml.safe_dump({"load_from": entries}))
            target = WorkspaceFileTarget([str(workspace)])
            self._workspace = stack.enter_context(WorkspaceProcessContext(self._instance, target))
            self._wait_until_loaded(self._workspace, set(broken))
            command = ["dagster-daemon", "run", "-w", str(workspace)]
            stack.callback(_stop, self._start("daemon", command, self.folder))
            yield

    def query(self, query: str, **variables: Any) -> dict[str, Any]:
        """Return the data of a GraphQL response without errors."""
        assert self._workspace
        context = self._workspace.create_request_context()
        execution = self._schema.execute_async(
            query, context_value=context, variable_values=variables
        )
        result = asyncio.run(execution)
        assert not result.errors, result.errors
        assert result.data
        return result.data

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

    def measure_conditions(self, sensor: str, location: str) -> float:
        """Return the seconds from when our sensors expect the next evaluation of automation
        conditions to when the daemon evaluates them, which it does every five seconds."""

        def find() -> tuple[float, float] | None:
            state = fetch_sensor_state(self._instance, sensor, location)
            began_at = state.instigator_data.last_tick_start_timestamp
            found_s = find_seconds_until_conditions(self._instance, began_at, Timing())
            return None if found_s is None else (began_at, found_s)

        began_at, found_s = wait_for(find, "the loop of conditions is known")
        now = time.time()

        def find_next() -> float | None:
            last = max(tick.timestamp for tick in self._fetch_ticks("metrics__automation"))
            return last if last > now else None

        late_s = wait_for(find_next, "conditions are evaluated", interval_s=0.2)
        late_s -= began_at + found_s
        return (late_s + 2.5) % 5 - 2.5

    def wait_for_ticks(self, *names: str, count: int = 2) -> None:
        """Return when sensors of these names were evaluated this many times from now on."""
        begin = time.time()

        def has_ticked(name: str) -> bool:
            return count_evaluations(self._fetch_ticks(name), begin) >= count

        for name in names:
            wait_for(lambda name=name: has_ticked(name), f"{name} was evaluated {count} times")

    def _fetch_ticks(self, name: str) -> list[Any]:
        instance = self._instance
        return [
            tick
            for state in instance.all_instigator_state()
            if state.instigator_name == name
            for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=10)
        ]

    def _open_instance(self) -> dg.DagsterInstance:
        """Open its Dagster instance in this process, as a webserver does."""
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv(IN_USER_CODE, raising=False)
            return dg.DagsterInstance.from_config(str(self.home))

    def _start(
        self, name: str, command: Sequence[str], folder: Path, is_user_code: str = ""
    ) -> LoggedProcess:
        paths = f"{folder}{os.pathsep}{ROOT}"
        env = {**self.env, "PYTHONPATH": paths, IN_USER_CODE: is_user_code}
        log = self.folder / f"{name}.log"
        return LoggedProcess([_BIN / command[0], *command[1:]], log, cwd=folder, env=env)

    def _wait_until_loaded(self, workspace: WorkspaceProcessContext, broken: set[str]) -> None:
        def is_loaded() -> bool:
            entries = workspace.create_request_context().get_code_location_entries()
            failed = {name: each.load_error for name, each in entries.items() if each.load_error}
            starting = {name for name, why in failed.items() if _UNREACHABLE in why.to_string()}
            for name in starting:
                workspace.refresh_code_location(name)
            if starting:
                return False
            assert failed.keys() == broken, failed
            return True

        wait_for(is_loaded, "the code locations are loaded", timeout_s=240)


def _stop(process: LoggedProcess) -> None:
    process.kill_tree()
