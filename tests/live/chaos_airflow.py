"""Real Airflows of a test's own, whose parts can be killed and started again."""

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
from tests.live.chaos import APIS, PACED, STORM, connect_as_demo
from tests.processes import LoggedProcess, find_free_port
from tests.waiting import wait_for

_SERVERS = ("webserver", "api-server")
# How the demo starts its Airflows, told by the demo itself once their databases are made.
_TELL = """
import json
from instances import build_instances
from settings import read_settings
from start import prepare_all

instances = build_instances(read_settings())
prepare_all(instances)
told = [
    {"name": one.name, "home": str(one.home), "url": one.settings.url, "programs":
     str(one.programs), "components": one.components, "env": one.environment()}
    for one in instances
]
print(json.dumps(told))
"""


@dataclass
class MortalAirflow:
    """An Airflow as the demo has it, its parts apart.

    Attributes:
        client: With the demo's account.
    """

    client: AirflowClient
    home: Path
    programs: Path
    components: Mapping[str, list[str]]
    env: Mapping[str, str]
    running: dict[str, LoggedProcess] = field(default_factory=dict)

    def start(self, *names: str) -> None:
        """Starts parts of it; or all of them."""
        for name in names or self.components:
            command = [self.programs / "airflow", *self.components[name]]
            log = self.home / "logs" / f"{name}.log"
            self.running[name] = LoggedProcess(command, log, self.home, self.env)

    def kill(self, *names: str) -> None:
        """Kills parts of it, with all that they started; or all of them."""
        for name in names or list(self.running):
            self.running.pop(name).kill_tree()

    @property
    def server(self) -> str:
        """The name of the part that has the API."""
        return next(name for name in self.components if name in _SERVERS)

    def is_answering(self) -> bool:
        assert all(one.is_running for one in self.running.values()), f"see the logs in {self.home}"
        path = f"/api/{APIS[self.client.instance]}/version"
        try:
            return requests.get(self.client.url + path, timeout=10).ok
        except requests.RequestException:
            return False

    def knows_its_dags(self) -> bool:
        return {PACED, *STORM} <= {dag.dag_id for dag in self.client.fetch_dags(tags=["chaos"])}

    def is_pacing(self, run_id: str) -> bool:
        """Whether the task of a run of `paced` has begun to take its time."""
        logs = (self.home / "logs" / f"dag_id={PACED}" / f"run_id={run_id}").rglob("*.log")
        return any("asks this task to take" in log.read_text() for log in logs)

    def read_state(self, run_id: str) -> str | None:
        """The state of a run, by the database, which can be asked while the API is away."""
        with closing(sqlite3.connect(self.home / "airflow.db", timeout=30)) as database:
            query = "SELECT state FROM dag_run WHERE run_id = ?"
            row = database.execute(query, (run_id,)).fetchone()
        return row[0] if row else None


@contextmanager
def start_airflows(airflows: Airflows, home: Path) -> Iterator[dict[str, MortalAirflow]]:
    """One of each version, with the demo's accounts and DAGs; they know the chaos DAGs."""
    started = {told["name"]: _build(airflows, told) for told in _prepare(airflows, home)}
    try:
        for airflow in started.values():
            airflow.start()
        for name, airflow in started.items():
            wait_for(airflow.is_answering, f"{name} answers", timeout_s=120)
            wait_for(airflow.knows_its_dags, f"{name} has read its DAGs", timeout_s=120)
        yield started
    finally:
        for airflow in started.values():
            airflow.kill()


def _prepare(airflows: Airflows, home: Path) -> list[dict[str, Any]]:
    ports = {name: str(find_free_port()) for name in APIS}
    own = {f"{name.upper()}_PORT": port for name, port in ports.items()}
    own |= {f"{name.upper()}_AIRFLOW_URL": f"http://127.0.0.1:{ports[name]}" for name in APIS}
    asked = subprocess.run(
        [sys.executable, "-c", _TELL],
        cwd=ROOT / "airflow_instances",
        env={**os.environ, **airflows.env, **own, "DEMO_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert asked.returncode == 0, asked.stdout + asked.stderr
    return json.loads(asked.stdout.splitlines()[-1])


def _build(airflows: Airflows, told: Mapping[str, Any]) -> MortalAirflow:
    # A task of 3.3 can neither live nor end without its API for longer than so many tries. And the
    # webserver of 2.11 ends itself two minutes after a start that took it too long.
    patience = {
        "AIRFLOW__WEBSERVER__WEB_SERVER_MASTER_TIMEOUT": "3600",
        "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "300",
        "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "60",
        "AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MAX": "2",
    }
    return MortalAirflow(
        client=connect_as_demo(airflows, told["name"], told["url"]),
        home=Path(told["home"]),
        programs=Path(told["programs"]),
        components=told["components"],
        env=told["env"] | patience,
    )
