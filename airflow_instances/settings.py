"""The demo's settings: from the environment, else `.env`, else `.env.example`."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dotenv import dotenv_values

REPOSITORY = Path(__file__).resolve().parent.parent

_LOCAL_URL = re.compile(r"http://(?:127\.0\.0\.1|localhost):(\d{1,5})/?")


class SettingsError(Exception):
    """A setting is missing or invalid."""


@dataclass(frozen=True)
class AirflowSettings:
    """The port and the account of one of the Airflows.

    Attributes:
        name: The instance's name.
        port: Its port on 127.0.0.1.
        username: The account's name.
        password: The account's password.
        password_source: Where the user finds the password: "METRICS_... in .env".
    """

    name: str
    port: int
    username: str
    password: str = field(repr=False)
    password_source: str

    @property
    def url(self) -> str:
        """Its address, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables from which the federation reads these settings.

        They include the variables that `.env` refers to, because Dagster reads `.env` too and
        prefers it to its environment.
        """
        name = self.name.upper()
        return {
            f"{name}_AIRFLOW_URL": self.url,
            f"{name}_AIRFLOW_USERNAME": self.username,
            f"{name}_AIRFLOW_PASSWORD": self.password,
            f"{name}_PORT": str(self.port),
            f"{name}_PASSWORD": self.password,
        }


@dataclass(frozen=True)
class DemoSettings:
    """All settings of the demo.

    Attributes:
        warehouse: The Airflow 2.11.
        metrics: The Airflow 3.3.
        dagster_port: The port of Dagster.
        home: The folder that the demo writes to. Demos with different homes share nothing.
        dags: A folder with a folder of extra DAG files per Airflow, or None.
    """

    warehouse: AirflowSettings
    metrics: AirflowSettings
    dagster_port: int
    home: Path
    dags: Path | None

    @property
    def lake(self) -> Path:
        """The DuckDB file that both Airflows use."""
        return self.home / "lake.duckdb"

    @property
    def dagster_url(self) -> str:
        """The address of Dagster."""
        return f"http://127.0.0.1:{self.dagster_port}"


def read_settings() -> DemoSettings:
    """Read and check the settings.

    Raises:
        SettingsError: A setting is missing or invalid.
    """
    _unset_empty_variables()
    sources = [
        _Source("the environment", os.environ),
        _Source(".env", dotenv_values(REPOSITORY / ".env")),
        _Source(".env.example", dotenv_values(REPOSITORY / ".env.example")),
    ]
    home = Path(os.environ.get("DEMO_HOME") or REPOSITORY / ".demo")
    return DemoSettings(
        warehouse=_airflow_settings("warehouse", sources),
        metrics=_airflow_settings("metrics", sources),
        dagster_port=_parse_port("DAGSTER_PORT", _find("DAGSTER_PORT", sources)[0]),
        home=home.expanduser().resolve(),
        dags=_find_dags(),
    )


def check_ports(ports: Mapping[str, int], target: str = "demo") -> None:
    """Check that all ports are free and different.

    Args:
        ports: The port of each server, by the server's name. `NAME_PORT` sets it.
        target: What make starts.

    Raises:
        SettingsError: A port is in use, or set for two servers.
    """
    for name, port in ports.items():
        if list(ports.values()).count(port) > 1:
            problem = f"Port {port} is set for {name} and for another."
        elif not _is_free(port):
            problem = f"Port {port}, meant for {name}, is taken."
        else:
            continue
        first = port + 1000 if port < 60_000 else port - 1000
        other = next(each for each in range(first, 65536) if _is_free(each))
        raise SettingsError(
            f"{problem} Choose another with 'make {target} {name.upper()}_PORT={other}'."
        )


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        # As the servers do, so that closed connections of an earlier start don't count.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@dataclass(frozen=True)
class _Source:
    name: str
    values: Mapping[str, str | None] = field(repr=False)


def _unset_empty_variables() -> None:
    # make exports a variable without a value as an empty one, and "${WAREHOUSE_PORT:-8081}" in
    # .env would then be empty too (python-dotenv 1.2).
    for name in ("WAREHOUSE", "METRICS", "DAGSTER"):
        for variable in (f"{name}_PORT", f"{name}_PASSWORD"):
            if os.environ.get(variable) == "":
                del os.environ[variable]


def _airflow_settings(name: str, sources: list[_Source]) -> AirflowSettings:
    prefix = f"{name.upper()}_AIRFLOW"
    url, _ = _find(f"{prefix}_URL", sources)
    match = _LOCAL_URL.fullmatch(url)
    if match is None:
        raise SettingsError(
            f"{prefix}_URL is '{url}', but the demo's Airflows listen on 127.0.0.1 only. Set it to"
            " http://127.0.0.1:PORT."
        )
    username, _ = _find(f"{prefix}_USERNAME", sources)
    password, source = _find(f"{prefix}_PASSWORD", sources)
    return AirflowSettings(
        name=name,
        port=_parse_port(f"{prefix}_URL", match[1]),
        username=username,
        password=password,
        password_source=f"{prefix}_PASSWORD in {source}",
    )


def _find_dags() -> Path | None:
    value = os.environ.get("DEMO_DAGS")
    if not value:
        return None
    dags = Path(value).expanduser().resolve()
    if not dags.is_dir():
        raise SettingsError(f"DEMO_DAGS is '{value}', which is not a folder. Create or unset it.")
    return dags


def _find(name: str, sources: list[_Source]) -> tuple[str, str]:
    """Return the setting's value and the name of its source."""
    for source in sources:
        if value := source.values.get(name):
            return value, source.name
    raise SettingsError(f"{name} is not set. Set it in .env; .env.example has a value for it.")


def _parse_port(name: str, value: str) -> int:
    if not value.isdecimal() or not 0 < int(value) < 65536:
        raise SettingsError(f"{name} has the port '{value}'. It must be from 1 to 65535.")
    return int(value)
