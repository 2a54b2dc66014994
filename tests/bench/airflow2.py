"""A real Airflow 2.11, as its webserver comes: four workers, both back ends that Airflow's own
docker-compose.yaml has for the API, SQLite. With many DAGs, or with a scheduler that runs them."""

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


@dataclass(frozen=True)
class RunRow:
    """A DAG run, as it is in the database; times in seconds since 1970."""

    dag_id: str
    run_id: str
    state: str
    queued_at: float | None
    start: float | None
    end: float | None


class SchedulingAirflow:
    """An Airflow with a scheduler. Its database is read, for asking the API would keep it busy.

    Args:
        url: Its own address; behind it is nothing that counts.
    """

    def __init__(self, url: str, home: Path) -> None:
        self.url = url
        self._database = home / "airflow.db"

    def trigger(self, dag_id: str, run_id: str) -> None:
        self._ask("POST", f"dags/{dag_id}/dagRuns", {"dag_run_id": run_id})

    def read_runs(self, dag_id: str = "%") -> list[RunRow]:
        """In the order in which they came to be."""
        sql = """SELECT dag_id, run_id, state, queued_at, start_date, end_date FROM dag_run
            WHERE dag_id LIKE ? ORDER BY id"""
        with closing(sqlite3.connect(self._database, timeout=60)) as database:
            rows = database.execute(sql, (dag_id,)).fetchall()
        return [RunRow(*row[:3], *map(_parse_time, row[3:])) for row in rows]

    def end_runs(self) -> None:
        """Every run that goes on is a success, as if its tasks had come to their end."""
        now = f"{datetime.now(timezone.utc):%F %T.%f}"
        sql = """UPDATE dag_run SET state = 'success', end_date = ?, updated_at = ?
            WHERE state IN ('queued', 'running')"""
        with closing(sqlite3.connect(self._database, timeout=60)) as database, database:
            database.execute(sql, (now, now))

    def forget_runs(self) -> None:
        """As if it had never run anything."""
        for run in self.read_runs():
            self._ask("DELETE", f"dags/{run.dag_id}/dagRuns/{quote(run.run_id)}")

    def _ask(self, method: str, path: str, body: dict[str, str] | None = None) -> None:
        requests.request(
            method, f"{self.url}/api/v1/{path}", json=body, auth=(USERNAME, PASSWORD), timeout=60
        ).raise_for_status()


@contextmanager
def running_airflow(home: Path, dags: int, files: int) -> Iterator[CountingAirflow]:
    """An Airflow with so many DAGs, defined in so many files."""
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
    """An Airflow that has these DAGs, of one task each, and runs them.

    Args:
        settings: Its own, as environment variables.
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
            wait_for(is_scheduling, "the scheduler is at work", timeout_s=120)
            yield SchedulingAirflow(url, home)
    finally:
        scheduler.terminate()


@contextmanager
def _serving(home: Path, env: Mapping[str, str]) -> Iterator[str]:
    """The address of its webserver."""
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
        own = [_DAG.format(dag_id=dag_id) for dag_id in dag_ids]
        (folder / f"file_{number:03}.py").write_text(_HEAD + "".join(own))


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
    run(["python", str(_PROJECT / "create_account.py")], account)
    with closing(sqlite3.connect(home / "airflow.db")) as database:
        database.execute("PRAGMA journal_mode = WAL")  # each request writes, as a sign-in
    run(["airflow", "dags", "reserialize"])
