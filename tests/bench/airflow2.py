"""A real Airflow 2.11 with many DAGs, as its webserver comes: four workers, both back ends that
Airflow's own docker-compose.yaml has for the API, SQLite."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import requests

from tests.bench.contender import PASSWORD, USERNAME
from tests.contract.fault_proxy import FaultProxy
from tests.processes import LoggedProcess, find_free_port
from tests.waiting import wait_for

_PROJECT = Path(__file__).parents[2] / "airflow_instances" / "warehouse"
_PROGRAMS = _PROJECT / ".venv" / "bin"
_HEAD = """\
from datetime import datetime

from airflow.decorators import dag, task
"""
_DAG = """

@dag(schedule=None, start_date=datetime(2026, 1, 1), tags=["bench"])
def {dag_id}():
    @task
    def load(): ...

    load()


{dag_id}()
"""


class CountingAirflow:
    """An Airflow behind a proxy that counts."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy
        self.url = proxy.url

    @property
    def most_connections(self) -> int:
        """At a time, since it was made."""
        return self._proxy.peak

    def count_requests(self) -> int:
        return len(re.findall(rb"(?m)^(?:GET|POST) \S+ HTTP/1\.1\r?$", bytes(self._proxy.received)))

    def has_seen(self, path: bytes) -> bool:
        """Whether it was asked for something in whose address this is."""
        return path in self._proxy.received

    def forget(self) -> None:
        self._proxy.received.clear()
        self._proxy.peak = 0


@contextmanager
def running_airflow(home: Path, dags: int, files: int) -> Iterator[CountingAirflow]:
    """An Airflow with so many DAGs, defined in so many files."""
    _write_dags(home / "dags", dags, files)
    env = _build_environment(home)
    _prepare(home, env)
    port = find_free_port()
    command = [_PROGRAMS / "airflow", "webserver", "--hostname", "127.0.0.1", "--port", str(port)]
    server = LoggedProcess(command, home / "webserver.log", home, env)
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        assert server.is_running, server.read_log()
        try:
            return requests.get(f"{url}/api/v1/version", timeout=10).ok
        except requests.ConnectionError:
            return False

    try:
        wait_for(is_ready, "Airflow answers", timeout_s=120)
        with FaultProxy(url) as proxy:
            yield CountingAirflow(proxy)
    finally:
        server.terminate()


def _write_dags(folder: Path, dags: int, files: int) -> None:
    folder.mkdir(parents=True)
    for file in range(files):
        own = [_DAG.format(dag_id=f"dag_{number:03}") for number in range(file, dags, files)]
        (folder / f"file_{file:03}.py").write_text(_HEAD + "".join(own))


def _build_environment(home: Path) -> dict[str, str]:
    return {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__API__AUTH_BACKENDS": (
            "airflow.api.auth.backend.basic_auth,airflow.api.auth.backend.session"
        ),
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db?timeout=30",
        "AIRFLOW__WEBSERVER__WARN_DEPLOYMENT_EXPOSURE": "False",
        "GUNICORN_CMD_ARGS": "--no-control-socket",
        "PATH": f"{_PROGRAMS}{os.pathsep}{os.environ['PATH']}",
    }


def _prepare(home: Path, env: dict[str, str]) -> None:
    def run(command: list[str], given: str = "") -> None:
        ran = subprocess.run(
            [_PROGRAMS / command[0], *command[1:]],
            cwd=home,
            env={**os.environ, **env},
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr

    run(["airflow", "db", "migrate"])
    account = json.dumps({"username": USERNAME, "password": PASSWORD})
    run(["python", str(_PROJECT / "make_account.py")], account)
    with closing(sqlite3.connect(home / "airflow.db")) as database:
        database.execute("PRAGMA journal_mode = WAL")  # each request writes, as a sign-in
    run(["airflow", "dags", "reserialize"])
