"""The demo's Airflows: their settings, how they are prepared, and whether they are ready."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import datetime, timezone
from http import HTTPStatus
from pathlib import Path
from typing import Any

import requests
from settings import REPOSITORY, AirflowSettings, DemoSettings

_TIMEOUT_S = 10
_WARM_UP_TIMEOUT_S = 60
_PARSE_INTERVAL_S = os.environ.get("DEMO_PARSE_INTERVAL_S", "300")


class SignInRefusedError(Exception):
    """An Airflow refused the username and password of the settings."""

    def __init__(self, settings: AirflowSettings, status: int) -> None:
        prefix = f"{settings.name.upper()}_AIRFLOW"
        super().__init__(
            f"Airflow '{settings.name}' at {settings.url} refused the sign-in ({status}). Check"
            f" {prefix}_USERNAME and {prefix}_PASSWORD."
        )


class AirflowInstance(ABC):
    """One of the demo's Airflows. A subclass adds what its version does differently.

    Attributes:
        version: The Airflow version, for people.
        api: The path of the REST API.
        health: The path of the health endpoint, which needs no sign-in.
        run_page: The path of a DAG run's page.
        trigger_body: The body of a trigger, for a run at the present time.
        refused_statuses: The statuses with which it refuses an account.
        health_components: The components whose heartbeat the health endpoint must show.
        settings: Its port and account.
        home: Its AIRFLOW_HOME.
        project: The folder with its environment, DAGs and data.
        database: Its SQLite file.
        logs: The folder with a log file per component.
    """

    version: str
    api: str
    health: str
    run_page: str
    trigger_body: Mapping[str, None]
    refused_statuses: frozenset[int] = frozenset({HTTPStatus.UNAUTHORIZED})
    health_components: tuple[str, ...]

    def __init__(self, settings: AirflowSettings, demo: DemoSettings) -> None:
        self.settings = settings
        self.project = REPOSITORY / "airflow_instances" / settings.name
        self.home = demo.home / settings.name
        self.database = self.home / "airflow.db"
        self.logs = self.home / "logs"
        self._lake = demo.lake
        self._extra_dags = demo.dags / settings.name if demo.dags else None
        self._prepared_marker = self.home / "prepared-with"
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy and no .netrc for 127.0.0.1

    @property
    def name(self) -> str:
        """The instance's name."""
        return self.settings.name

    @property
    def programs(self) -> Path:
        """The folder with the executables of its environment: `airflow`, `python`."""
        return self.project / ".venv" / "bin"

    @property
    def dags(self) -> Path:
        """Its DAGs folder."""
        return self.home / "dags" if self._extra_dags else self.project / "dags"

    @property
    @abstractmethod
    def components(self) -> Mapping[str, list[str]]:
        """The arguments of `airflow` per component."""

    @property
    @abstractmethod
    def _version_environment(self) -> dict[str, str]:
        """The environment variables that only this version needs."""

    @abstractmethod
    def create_account(self, run: Callable[[list[str], str], None]) -> None:
        """Create the account, or set the password of an existing one.

        Args:
            run: Runs a program of the instance's environment with a text as its input.
        """

    @abstractmethod
    def sign_in(self) -> None:
        """Sign in with the account of the settings, for all later requests.

        Raises:
            SignInRefusedError: The account is refused.
            requests.RequestException: The instance does not answer.
        """

    def environment(self) -> dict[str, str]:
        """Return the environment variables of all its processes."""
        # Airflow settings of the user's own shell must not reach the demo.
        inherited = {k: v for k, v in os.environ.items() if not k.lstrip("_").startswith("AIRFLOW")}
        return {
            **inherited,
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__PARALLELISM": "8",
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(self.project / "plugins"),
            # Several processes write to one SQLite file. They wait longer for a lock than 5 s.
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.database}?timeout=30",
            "FEDERATION_LAKE": str(self._lake),
            "NO_PROXY": "127.0.0.1,localhost",
            "PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY / "airflow_instances" / "lake"),
            "PYTHONUNBUFFERED": "1",
            **self._version_environment,
        }

    def link_dags(self) -> None:
        """Link the demo's and the extra DAGs into one folder: Airflow 2.11 reads only one."""
        if self._extra_dags is None:
            return
        # The demo's DAGs look for their data in the folder next to theirs.
        targets = {f"demo/{name}": self.project / name for name in ("dags", "data")}
        for name, target in {**targets, "extra": self._extra_dags}.items():
            link = self.dags / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(target, target_is_directory=True)

    def is_prepared(self) -> bool:
        """Whether its database and account exist, made by this Airflow for this account."""
        return (
            self.database.exists()
            and self._prepared_marker.exists()
            and self._prepared_marker.read_text() == self._build_fingerprint()
        )

    def remove_incomplete_database(self) -> None:
        """Remove a database whose preparation was interrupted. It can't be migrated further."""
        if not self._prepared_marker.exists():
            # With SQLite's journal files, which it would otherwise apply to the new database.
            for file in self.home.glob(f"{self.database.name}*"):
                file.unlink()

    def mark_prepared(self) -> None:
        """Record that the preparation is complete, so that the next start skips it."""
        # Readers don't wait for writers. SQLite keeps this in the file. Airflow 3.3 sets it itself.
        with closing(sqlite3.connect(self.database)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        self._prepared_marker.write_text(self._build_fingerprint())

    def request(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> requests.Response:
        """Send a request to its REST API and return the response, whatever its status.

        Call `sign_in` before.

        Raises:
            SignInRefusedError: The account is refused.
            requests.RequestException: The instance does not answer.
        """
        url = f"{self.settings.url}{self.api}{path}"
        response = self._session.request(method, url, json=body, timeout=_TIMEOUT_S)
        if response.status_code in self.refused_statuses:
            raise SignInRefusedError(self.settings, response.status_code)
        return response

    def check_readiness(self, started_at: datetime) -> str | None:
        """Return why the instance is not ready yet, or None if it is.

        Args:
            started_at: The time of this start. Heartbeats from before don't count: `/health` calls
                a scheduler healthy for 30 s after its end.

        Raises:
            SignInRefusedError: The account is refused.
        """
        try:
            url = f"{self.settings.url}{self.health}"
            health: dict[str, dict[str, str | None]]
            health = self._session.get(url, timeout=_TIMEOUT_S).json()
            for component in self.health_components:
                if _parse_heartbeat(health, component) < started_at:
                    return f"no heartbeat of its {component} yet"
            self._warm_up()
            self.sign_in()
            return self._find_unread_dag_file()
        except requests.ConnectionError:
            return "it does not listen yet"
        except (requests.RequestException, KeyError, TypeError, ValueError) as error:
            return f"its answer does not show its health ({type(error).__name__}: {error})"

    def _warm_up(self) -> None:  # noqa: B027 - only Airflow 3 needs it
        """Make the first requests, which take long, before a DAG run does."""

    def _find_unread_dag_file(self) -> str | None:
        dags: dict[str, Any] = self.request("GET", "/dags?limit=100").json()
        errors: dict[str, Any] = self.request("GET", "/importErrors").json()
        read = {Path(dag["fileloc"]).name for dag in dags["dags"]}
        read |= {Path(error["filename"]).name for error in errors["import_errors"]}
        folders = [self.project / "dags", *([self._extra_dags] if self._extra_dags else [])]
        unread = {file.name for folder in folders for file in folder.glob("*.py")} - read
        return f"DAG file {min(unread)} not read yet" if unread else None

    def _build_fingerprint(self) -> str:
        content = f"{self.settings.username}\n{self.settings.password}\n".encode()
        content += (self.project / "uv.lock").read_bytes()
        return hashlib.sha256(content).hexdigest()


class Airflow2Instance(AirflowInstance):
    """An Airflow 2.11."""

    version = "2.11"
    api = "/api/v1"
    health = "/health"
    run_page = "/dags/{dag_id}/grid?dag_run_id={run_id}"
    trigger_body: Mapping[str, None] = {}
    # 2.11.2 treats a wrong password as the role Public, which may do nothing, and answers 403. The
    # demo's own account may do everything.
    refused_statuses = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
    health_components = ("scheduler",)

    @property
    def components(self) -> Mapping[str, list[str]]:
        listen = ["--hostname", "127.0.0.1", "--port", str(self.settings.port)]
        return {
            "webserver": ["webserver", *listen, "--workers", "1"],
            # Its log server would listen on 0.0.0.0:8793. The web server reads the log files.
            "scheduler": ["scheduler", "--skip-serve-logs"],
        }

    def create_account(self, run: Callable[[list[str], str], None]) -> None:
        account = {"username": self.settings.username, "password": self.settings.password}
        run(["python", str(self.project / "create_account.py")], json.dumps(account))

    @property
    def _version_environment(self) -> dict[str, str]:
        return {
            # 2.11 allows only the SequentialExecutor on SQLite, which runs one task at a time.
            "_AIRFLOW__SKIP_DATABASE_EXECUTOR_COMPATIBILITY_CHECK": "1",
            "AIRFLOW__API__AUTH_BACKENDS": (
                "airflow.api.auth.backend.session,airflow.api.auth.backend.basic_auth"
            ),
            "AIRFLOW__SCHEDULER__DAG_DIR_LIST_INTERVAL": "10",
            # A changed DAG file is parsed at once all the same.
            "AIRFLOW__SCHEDULER__MIN_FILE_PROCESS_INTERVAL": _PARSE_INTERVAL_S,
            "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
            # With the default of 1 s a small run mostly waits. Below 0.25 s the loop keeps a core
            # busy. The tests have longer pauses, which cost less CPU time.
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": os.environ.get(
                "DEMO_SCHEDULER_IDLE_S", "0.25"
            ),
            "AIRFLOW__WEBSERVER__BASE_URL": self.settings.url,
            # On a busy machine the workers start slowly. After the default of 120 s the web server
            # would exit.
            "AIRFLOW__WEBSERVER__WEB_SERVER_MASTER_TIMEOUT": "3600",
            # It listens on 127.0.0.1 only.
            "AIRFLOW__WEBSERVER__WARN_DEPLOYMENT_EXPOSURE": "False",
            # gunicorn 25 has one control socket in the user's home folder for all instances.
            "GUNICORN_CMD_ARGS": "--no-control-socket",
        }

    def sign_in(self) -> None:
        self._session.auth = (self.settings.username, self.settings.password)


class Airflow3Instance(AirflowInstance):
    """An Airflow 3.3."""

    version = "3.3"
    api = "/api/v2"
    health = "/api/v2/monitor/health"
    run_page = "/dags/{dag_id}/runs/{run_id}"
    trigger_body: Mapping[str, None] = {"logical_date": None}
    health_components = ("scheduler", "dag_processor")

    @property
    def components(self) -> Mapping[str, list[str]]:
        listen = ["--host", "127.0.0.1", "--port", str(self.settings.port)]
        return {
            "api-server": ["api-server", *listen, "--workers", "1"],
            "scheduler": ["scheduler", "--skip-serve-logs"],
            "dag-processor": ["dag-processor"],
        }

    def create_account(self, run: Callable[[list[str], str], None]) -> None:  # noqa: ARG002
        # Created with its mode, so that no other user can ever read it.
        descriptor = os.open(self._passwords, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump({self.settings.username: self.settings.password}, file)

    @property
    def _passwords(self) -> Path:
        return self.home / "passwords.json"

    @property
    def _version_environment(self) -> dict[str, str]:
        return {
            "AIRFLOW__API__BASE_URL": self.settings.url,
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.settings.url}/execution/",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{self.settings.username}:admin",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self._passwords),
            # A changed DAG file is parsed at once all the same.
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": _PARSE_INTERVAL_S,
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
            # With 0.1 s instead of 1 s, a run of one task takes 0.9 s instead of 2.1 s. The tests
            # have longer pauses, which cost less CPU time.
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": os.environ.get(
                "DEMO_SCHEDULER_IDLE_S", "0.1"
            ),
            # The end of a failed task is often noticed only at the next heartbeat, 5 s by default.
            # A task on a busy machine may still miss as many seconds of heartbeats as before.
            "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
            "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "15",
        }

    def sign_in(self) -> None:
        response = self._session.post(
            f"{self.settings.url}/auth/token",
            json={"username": self.settings.username, "password": self.settings.password},
            timeout=_TIMEOUT_S,
        )
        if response.status_code in self.refused_statuses:
            raise SignInRefusedError(self.settings, response.status_code)
        response.raise_for_status()
        self._session.headers["Authorization"] = f"Bearer {response.json()['access_token']}"

    def _warm_up(self) -> None:
        # The API for tasks builds its routes at the first request. This takes 2 s, and on a busy
        # machine more than the 5 s after which a task's request times out.
        self._session.get(f"{self.settings.url}/execution/health", timeout=_WARM_UP_TIMEOUT_S)


def build_instances(demo: DemoSettings) -> list[AirflowInstance]:
    """Return the demo's Airflows. Nothing is started or written."""
    return [Airflow2Instance(demo.warehouse, demo), Airflow3Instance(demo.metrics, demo)]


def _parse_heartbeat(health: dict[str, dict[str, str | None]], component: str) -> datetime:
    heartbeat = health[component][f"latest_{component}_heartbeat"]
    if heartbeat is None:
        return datetime.min.replace(tzinfo=timezone.utc)
    # 3.3 writes "Z" for UTC, which Python 3.10 can't parse.
    return datetime.fromisoformat(heartbeat.replace("Z", "+00:00"))
