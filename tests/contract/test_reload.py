"""The refresh job reloads a code server, over a real webserver and with a real run worker.

Code server and run worker are refused what Dagster+ refuses in user code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import dagster as dg
import pytest
import requests
import yaml

from federation_defs.naming import REFRESH_JOB_NAME, STATE_CHECK_NAME, build_state_asset_key
from tests.conftest import ROOT
from tests.contract.clients import SIGN_INS
from tests.contract.dagster_plus import IN_USER_CODE
from tests.contract.fakes.airflow import FakeAirflow
from tests.contract.storages import CLOUD, NO_COMPUTE_LOGS
from tests.live.dagster_api import DagsterApi
from tests.processes import LoggedProcess, find_free_port
from tests.unit.project import Project
from tests.waiting import wait_for

LOCATION = "core"
SETTINGS = {
    "run_coordinator": {"module": "dagster.core.run_coordinator", "class": "DefaultRunCoordinator"},
    "telemetry": {"enabled": False},
    **CLOUD,
    **NO_COMPUTE_LOGS,
}
VERSIONED = {"defs_state": {"management_type": "VERSIONED_STATE_STORAGE"}}
LAUNCH = """
mutation ($selector: JobOrPipelineSelector!) { launchRun(executionParams: {selector: $selector}) {
  __typename ... on LaunchRunSuccess { run { runId } } } }
"""


class Deployment(DagsterApi):
    """A webserver, and a code server that it did not start."""

    def __init__(self, folder: Path, project: Project) -> None:
        self.port, self._code_port = find_free_port(), find_free_port()
        self._folder = folder
        self.home = folder / "home"
        self.home.mkdir()
        (self.home / "dagster.yaml").write_text(yaml.safe_dump(SETTINGS))
        # Two processes that create the tables at the same time spoil them (dagster 1.13).
        dg.DagsterInstance.from_config(str(self.home)).dispose()
        server = {"host": "127.0.0.1", "port": self._code_port, "location_name": LOCATION}
        self.workspace = folder / "workspace.yaml"
        self.workspace.write_text(yaml.safe_dump({"load_from": [{"grpc_server": server}]}))
        self.module = f"{project.defs.parent.name}.definitions"
        self.env = {
            "DAGSTER_HOME": str(self.home),
            "PYTHONPATH": f"{project.path}{os.pathsep}{ROOT}",
            "FEDERATION_RELOAD_URL": self.url,
        }

    def start(self, stack: ExitStack, *code_server: str) -> None:
        """Start the code server by a command of Dagster, and the webserver."""
        at = ["-m", self.module, "-p", str(self._code_port)]
        self._start(stack, "dagster", *code_server, *at, **{IN_USER_CODE: "1"})
        address = ["-h", "127.0.0.1", "-p", str(self.port)]
        self._start(stack, "dagster-webserver", "-w", str(self.workspace), *address)

        def is_loaded() -> bool:
            try:
                (entry,) = self.fetch_locations()
            except requests.ConnectionError:
                return False
            loaded = (entry["locationOrLoadError"] or {}).get("__typename")
            if loaded == "PythonError":  # the webserver was faster
                self.query(
                    "mutation ($name: String!) { reloadRepositoryLocation("
                    "repositoryLocationName: $name) { __typename } }",
                    name=LOCATION,
                )
            return loaded == "RepositoryLocation"

        wait_for(is_loaded, "the code location is loaded", timeout_s=240)

    def _start(self, stack: ExitStack, command: str, *arguments: str, **env: str) -> None:
        path = Path(sys.executable).with_name(command)
        log = self._folder / f"{command}.log"
        process = LoggedProcess([path, *arguments], log, cwd=self._folder, env={**self.env, **env})
        stack.callback(process.kill_tree)

    def refresh(self) -> tuple[str, bool, str]:
        """Run the job; return how it ended, and what the check of `sales` says."""
        selector = {
            "repositoryLocationName": LOCATION,
            "repositoryName": "__repository__",
            "jobName": REFRESH_JOB_NAME,
        }
        launched = self.query(LAUNCH, selector=selector)["launchRun"]
        status = self.wait_for_run(launched["run"]["runId"], timeout_s=240)
        key = dg.AssetCheckKey(build_state_asset_key("sales"), STATE_CHECK_NAME)
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            storage = instance.event_log_storage
            record = storage.get_latest_asset_check_execution_by_key([key])[key]
        assert record.evaluation
        return status, record.evaluation.passed, record.evaluation.description or ""


@pytest.fixture
def airflow() -> Iterator[FakeAirflow]:
    with FakeAirflow("v2") as server:
        server.database.add_dag("load")
        yield server


@pytest.fixture
def deployment(tmp_path: Path, airflow: FakeAirflow) -> Deployment:
    project = Project(tmp_path / "project", "reloaded")
    project.declare("sales", airflow.url, SIGN_INS["v2"], VERSIONED)
    return Deployment(tmp_path, project)


def test_a_refresh_that_finds_new_dags_reloads_the_code_location(
    deployment: Deployment, airflow: FakeAirflow
) -> None:
    with ExitStack() as stack:
        deployment.start(stack, "code-server", "start")
        assert "sales/dag/load" not in deployment.fetch_assets()
        reloaded = "New: load. The code location was reloaded."
        assert deployment.refresh() == ("SUCCESS", True, reloaded)
        assert "sales/dag/load" in deployment.fetch_assets()

        airflow.database.add_dag("publish")
        assert deployment.refresh() == ("SUCCESS", True, reloaded.replace("load.", "publish.", 1))
        assert "sales/dag/publish" in deployment.fetch_assets()
        knows = "The code location has all 2 DAGs."
        assert deployment.refresh() == ("SUCCESS", True, knows)


@pytest.mark.soak
def test_a_code_server_that_can_not_reload_is_found_out_by_the_next_refresh(
    deployment: Deployment,
) -> None:
    with ExitStack() as stack:
        deployment.start(stack, "api", "grpc")
        deployment.refresh()
        assert "sales/dag/load" not in deployment.fetch_assets()
        status, passed, said = deployment.refresh()
        assert (status, passed) == ("SUCCESS", False)
        assert said.startswith("New: load. Reload the code location; until then it has the DAGs")
