"""Real Airflows 2.11, with many DAGs or with a scheduler.

They have SQLite, the default four workers of the webserver, and the API back ends of Airflow's
docker-compose.yaml.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import quote

import requests

from tests.bench.contender import PASSWORD, USERNAME
from tests.contract.fakes.fault_proxy import FaultProxy
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
    """An Airflow behind a proxy that counts requests."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy
        self.url = proxy.url

    @property
    def most_connections(self) -> int:
        """The most connections at a time."""
        return self._proxy.peak

    def count_requests(self) -> int:
        return len(re.findall(rb"(?m)^(?:GET|POST) \S+ HTTP/1\.1\r?$", bytes(self._proxy.received)))

    def has_received(self, path: bytes) -> bool:
        """Whether a request had this in its path."""
        return path in self._proxy.received

    def reset(self) -> None:
        """Count from zero."""
        self._proxy.received.clear()
        self._proxy.peak = 0


@dataclass(frozen=True)
class RunRow:
    """A DAG run as in the database, with times in seconds since 1970."""

    dag_id: str
    run_id: str
    state: str
    queued_at: float | None
    start: float | None
    end: float | None


class SchedulingAirflow:
    """An Airflow with a scheduler. Its database is read directly, to keep the API idle.

    Args:
        url: Its own address, not that of a proxy.
    """

    def __init__(self, url: str, home: Path) -> None:
        self.url = url
        self._database = home / "airflow.db"

    def trigger(self, dag_id: str, run_id: str) -> None:
        self._request("POST", f"dags/{dag_id}/dagRuns", {"dag_run_id": run_id})

    def read_runs(self, dag_id: str = "%") -> list[RunRow]:
        """Return the runs in the order of their creation."""
        sql = """SELECT dag_id, run_id, state, queued_at, start_date, end_date FROM dag_run
            WHERE dag_id LIKE ? ORDER BY id"""
        with closing(sqlite3.connect(self._database, timeout=60)) as database:
            rows = database.execute(sql, (dag_id,)).fetchall()
        return [RunRow(*row[:3], *map(_parse_time, row[3:])) for row in rows]

    def end_runs(self) -> None:
        """Mark all unfinished runs as successes."""
        now = f"{datetime.now(timezone.utc):%F %T.%f}"
        sql = """UPDATE dag_run SET state = 'success', end_date = ?, updated_at = ?
            WHERE state IN ('queued', 'running')"""
        with closing(sqlite3.connect(self._database, timeout=60)) as database, database:
            database.execute(sql, (now, now))

    def delete_runs(self) -> None:
        for run in self.read_runs():
            self._request("DELETE", f"dags/{run.dag_id}/dagRuns/{quote(run.run_id)}")

    def _request(self, method: str, path: str, body: dict[str, str] | None = None) -> None:
        requests.request(
            method, f"{self.url}/api/v1/{path}", json=body, auth=(USERNAME, PASSWORD), timeout=60
        ).raise_for_status()


@contextmanager
def running_airflow(home: Path, dags: int, files: int) -> Iterator[CountingAirflow]:
    """Run an Airflow without a scheduler, with this many DAGs in this many files."""
    dag_ids = [f"dag_{number:03}" for number in range(dags)]
    _write_dags(home / "dags", [dag_ids[file::files] for file in range(files)])
    env = _build_environment(home)
    _prepare(home, env)
    with _serving(home, env) as url, FaultProxy(url) as proxy:
        yield CountingAirflow(proxy)


@contextmanager
def scheduling_airflow(
    home: Path, dag_ids: Sequence[str], settings: Mapping[str, str]
) -> Iterator[SchedulingAirflow]:
    """Run an Airflow that runs these DAGs of one task each.

    Args:
        settings: More settings, as environment variables.
    """
    _write_dags(home / "dags", [dag_ids])
    env = {
        **_build_environment(home),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
        **settings,
    }
    _prepare(home, env)
    command = [_PROGRAMS / "airflow", "scheduler", "--skip-serve-logs"]
    scheduler = LoggedProcess(command, home / "scheduler.log", home, env)

    def is_scheduling() -> bool:
        assert scheduler.is_running, scheduler.read_log()
        health = requests.get(f"{url}/health", timeout=10).json()
        return health["scheduler"]["status"] == "healthy"

    try:
        with _serving(home, env) as url:
            wait_for(is_scheduling, "the scheduler works", timeout_s=240)
            yield SchedulingAirflow(url, home)
    finally:
        scheduler.terminate()


@contextmanager
def _serving(home: Path, env: Mapping[str, str]) -> Iterator[str]:
    """Run a webserver, and give its address."""
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
        wait_for(is_ready, "Airflow answers", timeout_s=240)
        yield url
    finally:
        server.terminate()


def _parse_time(text: str | None) -> float | None:
    if text is None:
        return None
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()


def _write_dags(folder: Path, files: Sequence[Sequence[str]]) -> None:
    folder.mkdir(parents=True)
    for number, dag_ids in enumerate(files):
        dags = [_DAG.format(dag_id=dag_id) for dag_id in dag_ids]
        (folder / f"file_{number:03}.py").write_text(_HEAD + "".join(dags))


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
    def run(command: list[str], text: str = "") -> None:
        finished = subprocess.run(
            [_PROGRAMS / command[0], *command[1:]],
            cwd=home,
            env={**os.environ, **env},
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr

    run(["airflow", "db", "migrate"])
    account = json.dumps({"username": USERNAME, "password": PASSWORD})
    run(["python", str(_PROJECT / "create_account.py")], account)
    with closing(sqlite3.connect(home / "airflow.db")) as database:
        database.execute("PRAGMA journal_mode = WAL")  # each request writes its sign-in
    run(["airflow", "dags", "reserialize"])
