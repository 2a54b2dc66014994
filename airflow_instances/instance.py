"""What the demo's Airflows have in common: settings, preparation, REST API, readiness."""

from __future__ import annotations

import hashlib
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

TIMEOUT_S = 10


class SignInRefusedError(Exception):
    """An Airflow does not accept the account of the settings."""

    def __init__(self, settings: AirflowSettings, status: int) -> None:
        prefix = f"{settings.name.upper()}_AIRFLOW"
        super().__init__(
            f"Airflow '{settings.name}' at {settings.url} refused the sign-in ({status}). Check"
            f" {prefix}_USERNAME and {prefix}_PASSWORD."
        )


class AirflowInstance(ABC):
    """One of the demo's Airflows; a subclass knows how its version differs.

    Attributes:
        version: Of Airflow, for people.
        api: Path of its REST API.
        health: Path that tells its health to anybody.
        dag_page: Path of a DAG's page.
        sign_in_refused: The statuses by which it refuses an account.
        settings: Its port and account.
        home: Its AIRFLOW_HOME.
        project: Folder of its environment, DAGs and data.
        database: Its SQLite file.
        logs: Folder of a log per component.
    """

    version: str
    api: str
    health: str
    dag_page: str
    sign_in_refused: frozenset[int] = frozenset({HTTPStatus.UNAUTHORIZED})

    def __init__(self, settings: AirflowSettings, demo: DemoSettings) -> None:
        self.settings = settings
        self.project = REPOSITORY / "airflow_instances" / settings.name
        self.home = demo.home / settings.name
        self.database = self.home / "airflow.db"
        self.logs = self.home / "logs"
        self._lake = demo.lake
        self._more_dags = demo.dags / settings.name if demo.dags else None
        self._stamp = self.home / "prepared-with"
        self._session = requests.Session()
        self._session.trust_env = False  # neither a proxy nor a .netrc has a say on 127.0.0.1

    @property
    def name(self) -> str:
        """The instance's name."""
        return self.settings.name

    @property
    def programs(self) -> Path:
        """The folder of its own environment's programs: `airflow`, `python`."""
        return self.project / ".venv" / "bin"

    @property
    @abstractmethod
    def components(self) -> Mapping[str, list[str]]:
        """Component -> arguments of `airflow`."""

    @abstractmethod
    def make_account(self, run: Callable[[list[str], str], None]) -> None:
        """Makes the account, or gives it a new password.

        Args:
            run: Runs a program of its environment, with this text as input.
        """

    @abstractmethod
    def sign_in(self) -> None:
        """Has the requests that follow made by its account.

        Raises:
            SignInRefusedError: The account is not accepted.
            requests.RequestException: It does not answer.
        """

    @abstractmethod
    def _own_environment(self) -> dict[str, str]: ...

    @abstractmethod
    def _warm_up(self) -> None:
        """Has done now what the first run would else wait for."""

    @abstractmethod
    def _watched_parts(self) -> tuple[str, ...]:
        """The parts without whose heartbeat nothing runs."""

    @property
    def dags(self) -> Path:
        """The folder that it reads its DAGs from."""
        return self.home / "dags" if self._more_dags else self.project / "dags"

    def link_dags(self) -> None:
        """Makes one folder of the demo's DAGs and the others, as 2.11 reads no more than one."""
        if self._more_dags is None:
            return
        # The demo's DAGs look for their data in the folder next to theirs.
        targets = {f"demo/{name}": self.project / name for name in ("dags", "data")}
        for name, target in {**targets, "more": self._more_dags}.items():
            link = self.dags / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(target, target_is_directory=True)

    def environment(self) -> dict[str, str]:
        """The environment of all its processes."""
        # An Airflow setting of the person's own shell must not reach the demo.
        inherited = {k: v for k, v in os.environ.items() if not k.lstrip("_").startswith("AIRFLOW")}
        return (
            inherited
            | {
                "AIRFLOW_HOME": str(self.home),
                "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
                "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
                "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
                "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
                "AIRFLOW__CORE__PARALLELISM": "8",
                "AIRFLOW__CORE__PLUGINS_FOLDER": str(self.project / "plugins"),
                # Several processes write to one SQLite file: wait for one's turn longer than 5 s.
                "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.database}?timeout=30",
                "FEDERATION_LAKE": str(self._lake),
                "NO_PROXY": "127.0.0.1,localhost",
                "PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": str(REPOSITORY / "airflow_instances" / "lake"),
                "PYTHONUNBUFFERED": "1",
            }
            | self._own_environment()
        )

    def is_prepared(self) -> bool:
        """Whether its database and account are there, made by this Airflow for this account."""
        return (
            self.database.exists()
            and self._stamp.exists()
            and self._stamp.read_text() == self._fingerprint()
        )

    def drop_unfinished(self) -> None:
        """Removes a database whose preparation was interrupted: it could not be taken up."""
        if not self._stamp.exists():
            # With what SQLite keeps beside it, which it would apply to the new one.
            for file in self.home.glob(f"{self.database.name}*"):
                file.unlink()

    def mark_prepared(self) -> None:
        """Has the next start skip what this one did."""
        # Readers no longer wait for writers. SQLite keeps this in the file; 3.3 sets it by itself.
        with closing(sqlite3.connect(self.database)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        self._stamp.write_text(self._fingerprint())

    def request(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> requests.Response:
        """Its answer to a request to its REST API, of whatever status; sign in before.

        Raises:
            SignInRefusedError: The account is not accepted.
            requests.RequestException: It does not answer.
        """
        url = f"{self.settings.url}{self.api}{path}"
        response = self._session.request(method, url, json=body, timeout=TIMEOUT_S)
        if response.status_code in self.sign_in_refused:
            raise SignInRefusedError(self.settings, response.status_code)
        return response

    def what_is_missing(self, started_at: datetime) -> str | None:
        """What it lacks to be ready; None when it is.

        Args:
            started_at: A heartbeat from before is one of an earlier start.

        Raises:
            SignInRefusedError: The account is not accepted.
        """
        try:
            url = f"{self.settings.url}{self.health}"
            answer = self._session.get(url, timeout=TIMEOUT_S)
            health: dict[str, dict[str, str | None]] = answer.json()
            for part in self._watched_parts():
                if _heartbeat(health[part], part) < started_at:
                    return f"no heartbeat of its {part} yet"
            self._warm_up()
            self.sign_in()
            return self._unread_dag_file()
        except requests.ConnectionError:
            return "it does not listen yet"
        except (requests.RequestException, KeyError, TypeError, ValueError) as error:
            return f"its answer says nothing of its health ({type(error).__name__}: {error})"

    def _unread_dag_file(self) -> str | None:
        dags: dict[str, Any] = self.request("GET", "/dags").json()
        errors: dict[str, Any] = self.request("GET", "/importErrors").json()
        read = {Path(dag["fileloc"]).name for dag in dags["dags"]}
        read |= {Path(error["filename"]).name for error in errors["import_errors"]}
        folders = [self.project / "dags", *([self._more_dags] if self._more_dags else [])]
        unread = {file.name for folder in folders for file in folder.glob("*.py")} - read
        return f"DAG file {min(unread)} not read yet" if unread else None

    def _fingerprint(self) -> str:
        made_of = f"{self.settings.username}\n{self.settings.password}\n".encode()
        made_of += (self.project / "uv.lock").read_bytes()
        return hashlib.sha256(made_of).hexdigest()


def _heartbeat(health: dict[str, str | None], part: str) -> datetime:
    said = health[f"latest_{part}_heartbeat"]
    if said is None:
        return datetime.min.replace(tzinfo=timezone.utc)
    # 3.3 writes "Z" for UTC, which Python 3.10 can't read.
    return datetime.fromisoformat(said.replace("Z", "+00:00"))
