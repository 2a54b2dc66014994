"""Real Airflows that differ in how they are signed in to.

Each is a web server alone, with its own copy of a database that is made once per version: nothing
of what is looked at needs a scheduler. Two at a time are started while tests run on others.
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
# `airflow db migrate`, `airflow dags reserialize` and `airflow users create` for each account would
# spend most of a minute with imports; and the last finds no role but Admin in 2.11.
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
        name: Of its setup.
        home: Its AIRFLOW_HOME, with its database in it.
        is_over: Nobody waits for it any longer.
    """

    def __init__(self, name: str, home: Path, is_over: Event) -> None:
        self.name = name
        self.setup = SETUPS[name]
        self._home = home
        self._is_over = is_over
        self._port = find_free_port()
        self.root = f"http://127.0.0.1:{self._port}"
        self.url = self.root + self.setup.prefix
        self._more_env: dict[str, str] = {}
        self._process = self._start()

    def connect(self, url: str | None = None, **auth: object) -> AirflowClient:
        """A client, as a defs.yaml with this `auth` declares it."""
        http = {"max_requests_per_minute": 6000}
        declared = {"name": self.name, "url": url or self.url, "auth": auth, "http": http}
        return build_client(InstanceDeclaration.model_validate(declared), HINT)

    def connect_as(self, account: str, password: str | None = None, **more: str) -> AirflowClient:
        """A client that signs in with name and password: the right one unless said."""
        kind = "basic" if self.setup.version is AIRFLOW_2 else "password"
        password = password or get_password(account)
        return self.connect(type=kind, username=account, password=password, **more)

    def fetch_token(self, account: str, kind: str = "") -> str:
        """A token that somebody else asked for; with "/cli", one that lasts 2 or 3 s."""
        asked = {"username": account, "password": get_password(account)}
        answer = requests.post(f"{self.url}/auth/token{kind}", json=asked, timeout=30)
        assert answer.status_code == 201, answer.text
        return answer.json()["access_token"]

    def count(self, method: str, path: str, status: int) -> int:
        """The requests that it answered so, by its own log (3.x)."""
        line = rf" method={method} path={re.escape(path)} .*\bstatus_code={status}\b"
        return len(re.findall(line, self._process.read_log()))

    def wait_until_ready(self) -> None:
        """Returns when it answers."""

        def is_ready() -> bool:
            assert not self._is_over.is_set(), "the tests are over"
            assert self._process.is_running, f"{self.name} ended:\n{self._process.read_log()}"
            try:
                answer = requests.get(self.url + self.setup.version.open_path, timeout=10)
            except requests.RequestException:
                return False
            return answer.status_code == 200

        wait_for(is_ready, f"{self.name} answers", timeout_s=180, interval_s=0.2)

    def restart(self, **env: str) -> None:
        """Ends it, and starts it at the same address; from then on with these variables too."""
        self._process.terminate()
        self._more_env |= env
        self._process = self._start()
        self.wait_until_ready()

    def kill(self) -> None:
        """Ends it at once: nobody needs it again."""
        if self._process.is_running:
            self._process.kill_tree()

    def _start(self) -> LoggedProcess:
        version = self.setup.version
        own = {**self.setup.env, **self._more_env, version.base_url: self.url}
        env = build_env(version, self._home) | own
        command = _build_command(env, *version.command, "--port", str(self._port))
        return LoggedProcess(command, self._home / "server.log", self._home, env)


class Lab:
    """Starts servers in the order in which they are wanted.

    Args:
        folder: For all that they write.
        names: Of their setups.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._folder = folder
        self._is_over = Event()
        self._servers: list[Server] = []
        self._pool = ThreadPoolExecutor(2)
        wanted = list(names)
        # Before all servers, which wait for them: with these at work there is no thread for those.
        self._databases = {
            version: self._pool.submit(self._make_database, version)
            for version in dict.fromkeys(SETUPS[name].version for name in wanted)
        }
        self._started = {name: self._pool.submit(self._start, name) for name in wanted}

    def get(self, name: str) -> Server:
        """The server, when it answers."""
        return self._started[name].result()

    def close(self) -> None:
        """Ends all of them."""
        self._is_over.set()
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
        ran = subprocess.run(
            _build_command(env, "python", "-c", _PREPARE),
            cwd=home,
            env={**os.environ, **env},
            input=accounts,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=180,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout
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
        server = Server(name, home, self._is_over)
        self._servers.append(server)
        server.wait_until_ready()
        return server

    def _make_home(self, version: Version, name: str) -> Path:
        home = self._folder / version.name / name
        home.mkdir(parents=True)
        return home


def _build_command(env: Mapping[str, str], *command: str) -> list[str]:
    """The command, which gets none of the Airflow settings of the person's own shell."""
    strangers = [
        name for name in os.environ if name.lstrip("_").startswith("AIRFLOW") and name not in env
    ]
    return ["env", *(f"--unset={name}" for name in strangers), *command]
