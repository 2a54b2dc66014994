"""The contenders of `execute` and `federating`: `dagster dev` over a project of its own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.bench.contender import PASSWORD, USERNAME
from tests.conftest import ROOT
from tests.live.dagster_api import FINISHED
from tests.live.dagster_dev import DagsterDev
from tests.processes import find_free_port
from tests.unit.project import DEFINITIONS, PYPROJECT
from tests.waiting import wait_for

OURS = "sales_platform.definitions"  # in a user's project
_MODULE = """
[tool.dagster]
module_name = "{}"
code_location_name = "project"
"""
SHIPPED = (ROOT / "deployment" / "dagster.yaml").read_text()
DEFAULTS = "telemetry: {enabled: false}\n"

_REPOSITORIES = """
query { repositoriesOrError { ... on RepositoryConnection { nodes {
  sensors { id sensorState { ticks(limit: 1) { status } } } } } } }
"""
_MESSAGES = """
query ($run: ID!) { logsForRun(runId: $run) { ... on EventConnection { events {
  ... on MessageEvent { message } } } } }
"""


class Contender(DagsterDev):
    """`dagster dev` over a scratch project.

    Args:
        folder: Created for all that it writes.
        module: The definitions: `OURS`, or airlift's.
        env: The variables that the definitions read.
        settings: The dagster.yaml.
    """

    def __init__(
        self, folder: Path, module: str, env: Mapping[str, str], settings: str = SHIPPED
    ) -> None:
        self.project, self.home = folder / "project", folder / "dagster"
        self.project.mkdir(parents=True)
        project = PYPROJECT.format(module="sales_platform") + _MODULE.format(module)
        (self.project / "pyproject.toml").write_text(project)
        self.home.mkdir()
        (self.home / "dagster.yaml").write_text(settings)
        self.port = find_free_port()
        path = f"{self.project}{os.pathsep}{ROOT}"
        self.env = {
            **env,
            "DAGSTER_HOME": str(self.home),
            "PYTHONPATH": path,
            # Keep compiled modules, which many containers forbid: compiling them again is half of
            # a run worker's start.
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": str(folder / "compiled"),
        }
        self.log = folder / "dagster.log"
        self.process = None

    def declare(self, instances: Iterable[Mapping[str, Any]]) -> None:
        """Write a project as in the README, with a defs.yaml for each instance."""
        package = self.project / "sales_platform"
        (package / "defs").mkdir(parents=True)
        for module in (package, package / "defs"):
            (module / "__init__.py").touch()
        (package / "definitions.py").write_text(DEFINITIONS)
        auth = {"type": "basic", "username": USERNAME, "password": PASSWORD}
        for attributes in instances:
            folder = package / "defs" / attributes["name"]
            folder.mkdir()
            declared = {
                "type": "federation_defs.FederatedAirflow",
                "attributes": {**attributes, "auth": auth},
            }
            (folder / "defs.yaml").write_text(yaml.safe_dump(declared))

    def stop_sensors(self) -> None:
        mutation = "mutation ($id: String!) { stopSensor(id: $id) { __typename } }"
        for sensor in self._fetch_repository()["sensors"]:
            stopped = self.query(mutation, id=sensor["id"])["stopSensor"]["__typename"]
            assert stopped == "StopSensorMutationResult", stopped

    def wait_for_sensors(self) -> None:
        """Return when each sensor has ticked once.

        Only after the first start: after later ones GraphQL has no ticks (Dagster 1.13).
        """

        def have_ticked() -> bool:
            sensors = self._fetch_repository()["sensors"]
            ticks = [tick for sensor in sensors for tick in sensor["sensorState"]["ticks"]]
            return len(ticks) == len(sensors) and all(tick["status"] != "STARTED" for tick in ticks)

        wait_for(have_ticked, "every sensor has ticked", timeout_s=240)

    def is_finished(self, run_id: str) -> bool:
        return self.fetch_status(run_id) in FINISHED

    def fetch_messages(self, run_id: str) -> str:
        """Return the messages of a run's log."""
        events = self.query(_MESSAGES, run=run_id)["logsForRun"]["events"]
        return "\n".join(event["message"] for event in events)

    def _fetch_repository(self) -> dict[str, Any]:
        return self.query(_REPOSITORIES)["repositoriesOrError"]["nodes"][0]


@contextmanager
def running(contender: Contender) -> Iterator[Contender]:
    """Run a contender. On an error, kill it and all its descendants."""
    try:
        contender.start()
        yield contender
    except BaseException:
        if contender.process and contender.process.is_running:
            contender.kill()
        raise
    contender.stop()
