"""PgBouncer in front of a PostgreSQL server.

Dagster's daemon opens a connection for each query (1.13, `NullPool`), about fifty in a sensor tick,
and PostgreSQL starts a process for each of them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.contract.postgres import PostgresServer, run_unprivileged
from tests.processes import LoggedProcess
from tests.waiting import wait_for

_PORT = 6432  # of the socket's name; nothing listens on the network
_SETTINGS = """\
[databases]
* = host={server} user=postgres

[pgbouncer]
listen_addr =
listen_port = {port}
unix_socket_dir = {folder}
auth_type = any
pool_mode = session
default_pool_size = 40
max_client_conn = 1000
# The statement time-out of Dagster's webserver.
ignore_startup_parameters = options
"""


@dataclass(frozen=True)
class PooledServer(PostgresServer):
    """A server whose databases are used through PgBouncer."""

    pooler: Path

    def build_url(self, database: str) -> str:
        url = super().build_url(database)
        is_own = database == "postgres"  # to create databases
        return url if is_own else f"{url.partition('?')[0]}?host={self.pooler}&port={_PORT}"


class PoolerMissingError(SystemExit):
    """PgBouncer is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "PgBouncer is not installed: `apt-get install pgbouncer`, or measure without it "
            "(--without-pooler)."
        )


@contextmanager
def start_pooler(server: PostgresServer) -> Iterator[PooledServer]:
    """Run PgBouncer for all databases of a server.

    Raises:
        PoolerMissingError: It is not installed.
    """
    search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    if (program := shutil.which("pgbouncer", path=search)) is None:
        raise PoolerMissingError
    folder = server.folder / "pooler"
    folder.mkdir()
    shutil.chown(folder, server.folder.stat().st_uid)
    settings = folder / "pgbouncer.ini"
    settings.write_text(_SETTINGS.format(server=server.folder, folder=folder, port=_PORT))
    command = run_unprivileged([program, "--quiet", settings])
    process = LoggedProcess(command, folder / "log", folder, env={})

    def is_ready() -> bool:
        assert process.is_running, process.read_log()
        return (folder / f".s.PGSQL.{_PORT}").exists()

    try:
        wait_for(is_ready, "PgBouncer listens", interval_s=0.05)
        yield PooledServer(server.folder, folder)
    finally:
        process.terminate()
