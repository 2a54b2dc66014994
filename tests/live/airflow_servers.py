"""Web servers of real Airflows that differ in how clients sign in.

The tests need no scheduler. Each server has a copy of a database that is made once per version. Two
servers start at a time while tests run on others.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Event

import requests

from federation_defs.airflow.client import AirflowClient, build_client
from federation_defs.declaration import InstanceDeclaration
from tests.live.airflow_setups import (
    ACCOUNTS,
    AIRFLOW_2,
    ASSET,
    DAG,
    FAB,
    HINT,
    SETUPS,
    Version,
    build_env,
    get_password,
)
from tests.processes import LoggedProcess, find_free_port
from tests.waiting import wait_for

_DAG_FILE = f"""
@dag(schedule=None)
def {DAG}():
    @task(outlets=[Asset("{ASSET}")])
    def write(): ...

    write()

{DAG}()
"""
# In one process: the same commands one by one would import Airflow six times, for most of a minute,
# and `airflow users create` of 2.11 finds no role but Admin.
_PREPARE = """
import json, sys
from airflow.cli.cli_parser import get_parser

for command in (["db", "migrate"], ["dags", "reserialize"]):
    arguments = get_parser().parse_args(command)
    arguments.func(arguments)

from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder

with get_application_builder() as builder:
    security = builder.sm
    security.sync_roles()
    for name, password in json.load(sys.stdin).items():
        role = security.find_role(name.capitalize())
        assert security.add_user(name, name, name, name, role, password), name
"""


class Server:
    """One Airflow's web server.

    Args:
        name: The name of its setup.
        home: Its AIRFLOW_HOME, which holds its database.
        is_closed: Set when the tests have ended.
    """

    def __init__(self, name: str, home: Path, is_closed: Event) -> None:
        self.name = name
        self.setup = SETUPS[name]
        self._home = home
        self._is_closed = is_closed
        self._port = find_free_port()
        self.root = f"http://127.0.0.1:{self._port}"
        self.url = self.root + self.setup.prefix
        self._more_env: dict[str, str] = {}
        self._process = self._start()

    def connect(self, url: str | None = None, **auth: object) -> AirflowClient:
        """Return a client, as a defs.yaml with this `auth` declares it."""
        http = {"max_requests_per_minute": 6000}
        declared = {"name": self.name, "url": url or self.url, "auth": auth, "http": http}
        return build_client(InstanceDeclaration.model_validate(declared), HINT)

    def connect_as(self, account: str, password: str | None = None, **more: str) -> AirflowClient:
        """Return a client that signs in with the account's password, or with another one."""
        kind = "basic" if self.setup.version is AIRFLOW_2 else "password"
        password = password or get_password(account)
        return self.connect(type=kind, username=account, password=password, **more)

    def fetch_token(self, account: str, kind: str = "") -> str:
        """Return a token; of kind "/cli", one that expires after 2 to 3 s."""
        body = {"username": account, "password": get_password(account)}
        response = requests.post(f"{self.url}/auth/token{kind}", json=body, timeout=30)
        assert response.status_code == 201, response.text
        return response.json()["access_token"]

    def count(self, method: str, path: str, status: int) -> int:
        """Return the number of requests that got this status, from the server's log (3.x)."""
        line = rf" method={method} path={re.escape(path)} .*\bstatus_code={status}\b"
        return len(re.findall(line, self._process.read_log()))

    def wait_until_ready(self) -> None:

        def is_ready() -> bool:
            assert not self._is_closed.is_set(), "the tests have ended"
            assert self._process.is_running, f"{self.name} ended:\n{self._process.read_log()}"
            try:
                response = requests.get(self.url + self.setup.version.open_path, timeout=10)
            except requests.RequestException:
                return False
            return response.status_code == 200

        wait_for(is_ready, f"{self.name} answers", timeout_s=400, interval_s=0.2)

    def restart(self, **env: str) -> None:
        """Restart it at the same address with more environment variables, and wait for it."""
        self._process.terminate()
        self._more_env |= env
        self._process = self._start()
        self.wait_until_ready()

    def kill(self) -> None:
        if self._process.is_running:
            self._process.kill_tree()

    def _start(self) -> LoggedProcess:
        version = self.setup.version
        own = {**self.setup.env, **self._more_env, version.base_url: self.url}
        env = build_env(version, self._home) | own
        command = _build_command(env, *version.command, "--port", str(self._port))
        return LoggedProcess(command, self._home / "server.log", self._home, env)


class ServerPool:
    """Starts servers in the background.

    Args:
        folder: Gets everything that they write.
        names: The names of their setups, in the order in which tests need them.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._folder = folder
        self._is_closed = Event()
        self._servers: list[Server] = []
        self._pool = ThreadPoolExecutor(2)
        names = list(names)
        # Before the servers, which wait for the databases in the same threads.
        self._databases = {
            version: self._pool.submit(self._make_database, version)
            for version in dict.fromkeys(SETUPS[name].version for name in names)
        }
        self._started = {name: self._pool.submit(self._start, name) for name in names}

    def get(self, name: str) -> Server:
        """Return the server of a setup when it answers."""
        return self._started[name].result()

    def close(self) -> None:
        self._is_closed.set()
        self._pool.shutdown(cancel_futures=True)
        for server in self._servers:
            server.kill()

    def _make_database(self, version: Version) -> Path:
        assert (version.programs / "airflow").exists(), "run `make install-tests`"
        home = self._make_home(version, "prepared")
        dags = home.with_name("dags")
        dags.mkdir()
        (dags / "report.py").write_text(version.imports + _DAG_FILE)
        env = build_env(version, home) | {"AIRFLOW__CORE__AUTH_MANAGER": FAB}
        accounts = json.dumps({name: get_password(name) for name in ACCOUNTS})
        finished = subprocess.run(
            _build_command(env, "python", "-c", _PREPARE),
            cwd=home,
            env={**os.environ, **env},
            input=accounts,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=400,
            check=False,
        )
        assert finished.returncode == 0, finished.stdout
        return home / "airflow.db"

    def _start(self, name: str) -> Server:
        setup = SETUPS[name]
        database = self._databases[setup.version].result()
        home = self._make_home(setup.version, name)
        with (
            closing(sqlite3.connect(database)) as source,
            closing(sqlite3.connect(home / "airflow.db")) as copy,
        ):
            source.backup(copy)
        if setup.web_config:
            (home / "webserver_config.py").write_text(setup.web_config)
        passwords = {account: get_password(account) for account in ACCOUNTS}
        (home / "passwords.json").write_text(json.dumps(passwords))
        server = Server(name, home, self._is_closed)
        self._servers.append(server)
        server.wait_until_ready()
        return server

    def _make_home(self, version: Version, name: str) -> Path:
        home = self._folder / version.name / name
        home.mkdir(parents=True)
        return home


def _build_command(env: Mapping[str, str], *command: str) -> list[str]:
    """Return the command without the Airflow settings of the person's own environment."""
    unset = [
        name for name in os.environ if name.lstrip("_").startswith("AIRFLOW") and name not in env
    ]
    return ["env", *(f"--unset={name}" for name in unset), *command]
