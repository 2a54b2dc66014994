"""Setups of real Airflows, as data: each has another way to sign in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import ROOT

DAG = "report"
ASSET = "file:///report"
HINT = "LAB_PASSWORD"  # the variable that errors say to check
ACCOUNTS = ("admin", "op", "user", "viewer")  # each has the role of its name

FAB = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"


@dataclass(frozen=True, eq=False)
class Version:
    """What the servers of an Airflow version have in common.

    Attributes:
        name: The name of their folder.
        programs: The folder that holds `airflow`.
        imports: The imports of a DAG file.
        command: Starts a server.
        base_url: The variable for the server's own address.
        open_path: A path that needs no sign-in.
        env: The environment of all processes.
    """

    name: str
    programs: Path
    imports: str
    command: tuple[str, ...]
    base_url: str
    open_path: str
    env: Mapping[str, str]


AIRFLOW_2 = Version(
    name="airflow-2",
    programs=ROOT / "airflow_instances" / "warehouse" / ".venv" / "bin",
    imports="from airflow.datasets import Dataset as Asset\n"
    "from airflow.decorators import dag, task\n",
    command=("airflow", "webserver", "--workers", "1", "--hostname", "127.0.0.1"),
    base_url="AIRFLOW__WEBSERVER__BASE_URL",
    open_path="/api/v1/version",
    env={
        "AIRFLOW__API__AUTH_BACKENDS": "airflow.api.auth.backend.basic_auth",
        "AIRFLOW__WEBSERVER__WARN_DEPLOYMENT_EXPOSURE": "False",
        "GUNICORN_CMD_ARGS": "--no-control-socket",  # else one for all that run on the machine
    },
)
# The FAB auth manager is installed. The database is made for it, but only one server uses it.
AIRFLOW_3 = Version(
    name="airflow-3",
    programs=ROOT / "airflow_instances" / "metrics" / ".venv-fab" / "bin",
    imports="from airflow.sdk import Asset, dag, task\n",
    command=("airflow", "api-server", "--workers", "1", "--apps", "core", "--host", "127.0.0.1"),
    base_url="AIRFLOW__API__BASE_URL",
    open_path="/api/v2/version",
    env={
        "AIRFLOW__API_AUTH__JWT_CLI_EXPIRATION_TIME": "3",
        "AIRFLOW__API_AUTH__JWT_LEEWAY": "0",  # the default accepts tokens for 10 s longer
        "AIRFLOW__API_AUTH__JWT_SECRET": "the secret at first" * 4,
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:{name}" for name in ACCOUNTS),
    },
)


@dataclass(frozen=True)
class Setup:
    """What is special about a server.

    Attributes:
        prefix: The prefix of all its paths.
        web_config: Its webserver_config.py (2.x).
    """

    version: Version
    env: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""
    web_config: str = ""


SETUPS = {
    "basic": Setup(AIRFLOW_2),
    "basic_under_prefix": Setup(
        AIRFLOW_2,
        # The back ends of Airflow's docker-compose.yaml. Unknown users have no role.
        {
            "AIRFLOW__API__AUTH_BACKENDS": "airflow.api.auth.backend.basic_auth,"
            "airflow.api.auth.backend.session"
        },
        prefix="/airflow",
        web_config="AUTH_ROLE_PUBLIC = None\n",
    ),
    "simple": Setup(AIRFLOW_3),
    "fab": Setup(AIRFLOW_3, {"AIRFLOW__CORE__AUTH_MANAGER": FAB}),
    "short_lived": Setup(AIRFLOW_3, {"AIRFLOW__API_AUTH__JWT_EXPIRATION_TIME": "3"}),
    "open": Setup(AIRFLOW_3, {"AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True"}),
    "under_prefix": Setup(AIRFLOW_3, prefix="/airflow"),
}


def get_password(account: str) -> str:
    return f"open-sesame-{account}"


def build_env(version: Version, home: Path) -> dict[str, str]:
    """Return the environment of all processes of a server."""
    return {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(home.with_name("dags")),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}?timeout=30",
        "NO_PROXY": "127.0.0.1",
        "PATH": f"{version.programs}{os.pathsep}{os.environ['PATH']}",
        **version.env,
    }
