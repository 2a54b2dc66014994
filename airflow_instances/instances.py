"""The demo's two Airflows, and what differs between their versions."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path

from instance import TIMEOUT_S, AirflowInstance, SignInRefusedError
from settings import DemoSettings

_WARM_UP_TIMEOUT_S = 60


class Airflow2Instance(AirflowInstance):
    """An Airflow 2.11."""

    version = "2.11"
    api = "/api/v1"
    health = "/health"
    dag_page = "/dags/{dag_id}/grid"
    # 2.11.2 takes a caller with a wrong password for its role Public, which may do nothing; the
    # demo's own account may do everything.
    sign_in_refused = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})

    @property
    def components(self) -> Mapping[str, list[str]]:
        listen = ["--hostname", "127.0.0.1", "--port", str(self.settings.port)]
        return {
            "webserver": ["webserver", *listen, "--workers", "1"],
            # Its log server would listen on 0.0.0.0:8793; logs are read from the disk anyway.
            "scheduler": ["scheduler", "--skip-serve-logs"],
        }

    def make_account(self, run: Callable[[list[str], str], None]) -> None:
        account = {"username": self.settings.username, "password": self.settings.password}
        run(["python", str(self.project / "make_account.py")], json.dumps(account))

    def _own_environment(self) -> dict[str, str]:
        return {
            # 2.11 admits only the SequentialExecutor on SQLite, which runs one task at a time.
            "_AIRFLOW__SKIP_DATABASE_EXECUTOR_COMPATIBILITY_CHECK": "1",
            "AIRFLOW__API__AUTH_BACKENDS": (
                "airflow.api.auth.backend.session,airflow.api.auth.backend.basic_auth"
            ),
            "AIRFLOW__SCHEDULER__DAG_DIR_LIST_INTERVAL": "10",
            "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
            # Of 1 s most of a small run would be waiting; below 0.25 its loop keeps a core warm.
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.25",
            "AIRFLOW__WEBSERVER__BASE_URL": self.settings.url,
            # On a busy machine its workers take their time; at 120 s it would end itself.
            "AIRFLOW__WEBSERVER__WEB_SERVER_MASTER_TIMEOUT": "3600",
            # Nobody but this machine can reach it.
            "AIRFLOW__WEBSERVER__WARN_DEPLOYMENT_EXPOSURE": "False",
            # gunicorn 25 has one control socket in the person's home folder for all instances.
            "GUNICORN_CMD_ARGS": "--no-control-socket",
        }

    def sign_in(self) -> None:
        self._session.auth = (self.settings.username, self.settings.password)

    def _warm_up(self) -> None:
        """Nothing: its first run takes no longer than the others."""

    def _watched_parts(self) -> tuple[str, ...]:
        return ("scheduler",)


class Airflow3Instance(AirflowInstance):
    """An Airflow 3.3."""

    version = "3.3"
    api = "/api/v2"
    health = "/api/v2/monitor/health"
    dag_page = "/dags/{dag_id}"

    @property
    def components(self) -> Mapping[str, list[str]]:
        listen = ["--host", "127.0.0.1", "--port", str(self.settings.port)]
        return {
            "api-server": ["api-server", *listen, "--workers", "1"],
            "scheduler": ["scheduler", "--skip-serve-logs"],
            "dag-processor": ["dag-processor"],
        }

    def make_account(self, run: Callable[[list[str], str], None]) -> None:  # noqa: ARG002
        # A file is all it takes: opened with its mode, so that nobody else could ever read it.
        opener = os.open(self._passwords, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(opener, "w", encoding="utf-8") as file:
            json.dump({self.settings.username: self.settings.password}, file)

    @property
    def _passwords(self) -> Path:
        return self.home / "passwords.json"

    def _own_environment(self) -> dict[str, str]:
        return {
            "AIRFLOW__API__BASE_URL": self.settings.url,
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.settings.url}/execution/",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{self.settings.username}:admin",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self._passwords),
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
            # From 1 s to this, a run of one task goes from 2.1 s to 0.9 s.
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",
            # A failed task's end is often noticed only at the next heartbeat: 5 s by default. As
            # many seconds of a busy machine as before must still not end a task.
            "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
            "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "15",
        }

    def sign_in(self) -> None:
        response = self._session.post(
            f"{self.settings.url}/auth/token",
            json={"username": self.settings.username, "password": self.settings.password},
            timeout=TIMEOUT_S,
        )
        if response.status_code in self.sign_in_refused:
            raise SignInRefusedError(self.settings, response.status_code)
        response.raise_for_status()
        self._session.headers["Authorization"] = f"Bearer {response.json()['access_token']}"

    def _warm_up(self) -> None:
        # The API for the tasks builds its routes at the first request: 2 s, and on a busy machine
        # more than the 5 s after which a task gives up and asks again.
        self._session.get(f"{self.settings.url}/execution/health", timeout=_WARM_UP_TIMEOUT_S)

    def _watched_parts(self) -> tuple[str, ...]:
        return ("scheduler", "dag_processor")


def build_instances(demo: DemoSettings) -> list[AirflowInstance]:
    """The demo's Airflows; nothing is started or written."""
    return [Airflow2Instance(demo.warehouse, demo), Airflow3Instance(demo.metrics, demo)]
