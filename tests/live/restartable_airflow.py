"""Real Airflows of a test's own, whose components can be killed and started again."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from federation_defs.airflow.client import AirflowClient
from tests.conftest import ROOT, Airflows
from tests.live.federation import NAMES, PACED, UNWATCHED
from tests.processes import LoggedProcess, find_free_port
from tests.waiting import wait_for

_SERVERS = ("webserver", "api-server")
# Runs in the demo's folder: prepares the Airflows, and prints how the demo starts them.
_PREPARE = """
import json
from instances import build_instances
from settings import read_settings
from start import prepare_all

instances = build_instances(read_settings())
prepare_all(instances)
print(json.dumps([
    {"name": instance.name, "home": str(instance.home), "url": instance.settings.url, "programs":
     str(instance.programs), "components": instance.components, "env": instance.environment()}
    for instance in instances
]))
"""
# A task of 3.3 ends itself when the API is away for longer than these retries. The webserver of
# 2.11 ends itself when its start takes two minutes.
_ENV = {
    "AIRFLOW__WEBSERVER__WEB_SERVER_MASTER_TIMEOUT": "3600",
    "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "300",
    "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "60",
    "AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MAX": "2",
}


@dataclass
class RestartableAirflow:
    """An Airflow of the demo's version and settings, as separate components.

    Attributes:
        client: Has the demo's account.
        components: Name -> arguments of `airflow`.
    """

    client: AirflowClient
    home: Path
    programs: Path
    components: Mapping[str, list[str]]
    env: Mapping[str, str]
    running: dict[str, LoggedProcess] = field(default_factory=dict)

    @property
    def server(self) -> str:
        """The name of the component that serves the API."""
        return next(name for name in self.components if name in _SERVERS)

    def start(self, *names: str) -> None:
        """Start some components, or all if none is given."""
        for name in names or self.components:
            command = [self.programs / "airflow", *self.components[name]]
            log = self.home / "logs" / f"{name}.log"
            self.running[name] = LoggedProcess(command, log, self.home, self.env)

    def kill(self, *names: str) -> None:
        """Kill some components with their descendants, or all if none is given."""
        for name in names or list(self.running):
            self.running.pop(name).kill_tree()

    def is_answering(self) -> bool:
        for name, process in self.running.items():
            assert process.is_running, f"{name} has ended, see {process.log}"
        path = "/api/v1/version" if self.server == "webserver" else "/api/v2/version"
        try:
            return requests.get(self.client.url + path, timeout=10).ok
        except requests.RequestException:
            return False

    def has_parsed_its_dags(self) -> bool:
        dags = self.client.fetch_dags(tags=["chaos"])
        return {PACED, UNWATCHED} <= {dag.dag_id for dag in dags}

    def is_task_working(self, run_id: str) -> bool:
        """Whether the task of a run of `paced` has read how long it is to take."""
        logs = (self.home / "logs" / f"dag_id={PACED}" / f"run_id={run_id}").rglob("*.log")
        return any("asks this task to take" in log.read_text() for log in logs)

    def read_state(self, run_id: str) -> str | None:
        """Return the state of a run from the database, which works without the API."""
        with closing(sqlite3.connect(self.home / "airflow.db", timeout=30)) as database:
            query = "SELECT state FROM dag_run WHERE run_id = ?"
            row = database.execute(query, (run_id,)).fetchone()
        return row[0] if row else None


@contextmanager
def start_airflows(airflows: Airflows, home: Path) -> Iterator[dict[str, RestartableAirflow]]:
    """Run an Airflow of each version, with the accounts and DAGs of those that run already."""
    started: dict[str, RestartableAirflow] = {}
    for prepared in _prepare(airflows, home):
        started[prepared["name"]] = RestartableAirflow(
            client=airflows.connect(prepared["name"], prepared["url"]),
            home=Path(prepared["home"]),
            programs=Path(prepared["programs"]),
            components=prepared["components"],
            env=prepared["env"] | _ENV,
        )
    try:
        for airflow in started.values():
            airflow.start()
        for name, airflow in started.items():
            wait_for(airflow.is_answering, f"{name} answers", timeout_s=240)
            wait_for(airflow.has_parsed_its_dags, f"{name} has parsed its DAGs", timeout_s=240)
        yield started
    finally:
        for airflow in started.values():
            airflow.kill()


def _prepare(airflows: Airflows, home: Path) -> list[dict[str, Any]]:
    ports = {name.upper(): str(find_free_port()) for name in NAMES}
    env = {f"{name}_PORT": port for name, port in ports.items()}
    env |= {f"{name}_AIRFLOW_URL": f"http://127.0.0.1:{port}" for name, port in ports.items()}
    prepared = subprocess.run(
        [sys.executable, "-c", _PREPARE],
        cwd=ROOT / "airflow_instances",
        env={**os.environ, **airflows.env, **env, "DEMO_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert prepared.returncode == 0, prepared.stdout + prepared.stderr
    return json.loads(prepared.stdout.splitlines()[-1])
