"""The demo's Dagster as `make demo-production` runs it: each part of it is a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import dagster as dg
import psutil
import requests

from tests.conftest import ROOT
from tests.live.dagster_dev import DagsterDev, copy_project
from tests.processes import find_free_port

# The processes of each part, by what their command line has. A code server has two of them, and is
# the parent of run workers.
DAGSTER = {
    "webserver": ["dagster-webserver"],
    "daemon": ["dagster-daemon"],
    "code servers": ["code-server start", "dagster api grpc"],
    "run workers": ["multiprocessing.spawn"],
}
PARTS = {**DAGSTER, "pooler": ["pgbouncer"], "database": ["bin/postgres -D"]}
_PASSWORD = "DAGSTER_PG_PASSWORD"


class DagsterProduction(DagsterDev):
    """Dagster with PostgreSQL, PgBouncer and a code server per team.

    Args:
        folder: A scratch folder.
        env: The addresses and accounts of the Airflows.
    """

    has_teams = True

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.project = copy_project(folder)
        self.deployment = folder / "production"
        self.home = self.deployment / "dagster"
        # As root, the database is that of another user, who can't open the scratch folder.
        self.database = Path(tempfile.mkdtemp(prefix="production-"))
        self.port = find_free_port()
        self.env = {**env}
        self.log = folder / "production.log"
        self.process = None
        self.load_error = ""

    def build_command(self) -> list[str | Path]:
        program = ROOT / "airflow_instances" / "production.py"
        folders = ["--home", self.deployment, "--database", self.database]
        return [
            *(sys.executable, program, *folders),
            *("--project", self.project, "--port", str(self.port)),
        ]

    def is_loaded(self) -> bool:
        """Whether all code locations are loaded. An error may be that of a server that starts."""
        assert self.process
        assert self.process.is_running, self.process.read_log()[-5000:]
        try:
            return super().is_loaded()
        except (requests.RequestException, AssertionError) as error:
            self.load_error = str(error)
        return False

    def wait_until_loaded(self, what: str, timeout_s: float = 240) -> None:
        try:
            super().wait_until_loaded(what, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}. The last error was: {self.load_error}") from error

    def start(self) -> None:
        if self.process is None:
            super().start()
            return
        self._find_supervisor().send_signal(signal.SIGCONT)
        self.wait_until_loaded("Dagster has loaded the projects again")

    def kill(self) -> None:
        """Kill all of Dagster until it is started again. Its database goes on."""
        self._find_supervisor().send_signal(signal.SIGSTOP)
        for part in DAGSTER:
            self.kill_part(part)

    def close(self) -> None:
        if self.process and self.process.is_running:
            self.process.kill_tree()
        shutil.rmtree(self.database)

    @contextmanager
    def open_instance(self) -> Iterator[dg.DagsterInstance]:
        os.environ[_PASSWORD] = (self.database / "password").read_text()
        try:
            with super().open_instance() as instance:
                yield instance
        finally:
            del os.environ[_PASSWORD]

    def find_part(self, name: str) -> list[psutil.Process]:
        """Return the processes of a part."""
        return self._find_processes(*PARTS[name])

    def kill_part(self, name: str) -> int:
        """Kill the processes of a part, and return their number."""
        processes = self.find_part(name)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return len(processes)

    @contextmanager
    def keeping_down(self, name: str) -> Iterator[None]:
        """Kill a part that is started again only at the end of the block."""
        supervisor = self._find_supervisor()
        supervisor.send_signal(signal.SIGSTOP)
        try:
            self.kill_part(name)
            yield
        finally:
            supervisor.send_signal(signal.SIGCONT)

    def _find_supervisor(self) -> psutil.Process:
        """Return the process that starts the others again."""
        (supervisor,) = self._find_processes("bin/supervisord")
        return supervisor
