"""The demo's settings: what the environment sets, else `.env`, else `.env.example`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dotenv import dotenv_values

REPOSITORY = Path(__file__).resolve().parent.parent

_LOCAL_URL = re.compile(r"http://(?:127\.0\.0\.1|localhost):(\d{1,5})/?")


class SettingsError(Exception):
    """A setting is missing or can't be used."""


@dataclass(frozen=True)
class AirflowSettings:
    """Where one of the Airflows listens, and the account it lets in.

    Attributes:
        name: The instance's name.
        port: Its port on 127.0.0.1.
        username: Name of the account.
        password: Its password.
        password_source: Where a person finds the password: "METRICS_... in .env".
    """

    name: str
    port: int
    username: str
    password: str = field(repr=False)
    password_source: str

    @property
    def url(self) -> str:
        """Where it answers, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables from which the federation reads them.

        With those that `.env` is made of: Dagster reads it too, and takes it for more than its
        own environment.
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
    """All the demo has to be told.

    Attributes:
        warehouse: The Airflow 2.11.
        metrics: The Airflow 3.3.
        dagster_port: Where Dagster listens.
        home: Folder of everything the demo writes; nothing is shared with another home.
        dags: Folder with a folder of DAG files per Airflow, which are read beside the demo's own;
            None if there are no others.
    """

    warehouse: AirflowSettings
    metrics: AirflowSettings
    dagster_port: int
    home: Path
    dags: Path | None

    @property
    def lake(self) -> Path:
        """The DuckDB file both Airflows work on."""
        return self.home / "lake.duckdb"

    @property
    def dagster_url(self) -> str:
        """Where Dagster answers."""
        return f"http://127.0.0.1:{self.dagster_port}"


def read_settings() -> DemoSettings:
    """The settings, checked.

    Raises:
        SettingsError: One is missing, or its value can't be used.
    """
    _forget_empty_variables()
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


@dataclass(frozen=True)
class _Source:
    name: str
    values: Mapping[str, str | None] = field(repr=False)


def _forget_empty_variables() -> None:
    # make exports a variable that has no value as an empty one, and "${WAREHOUSE_PORT:-8081}" in
    # .env would then be empty as well (python-dotenv 1.2).
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
            f"{prefix}_URL is '{url}': the demo starts its Airflows on this machine only, for"
            " nobody else to reach. Set it to http://127.0.0.1:PORT."
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
        raise SettingsError(f"DEMO_DAGS is '{value}', which is no folder. Make it, or unset it.")
    return dags


def _find(name: str, sources: list[_Source]) -> tuple[str, str]:
    """The setting's value, and the name of the source it is from."""
    for source in sources:
        if value := source.values.get(name):
            return value, source.name
    raise SettingsError(f"{name} is not set. Set it in .env; .env.example has a value for it.")


def _parse_port(name: str, value: str) -> int:
    if not value.isdecimal() or not 0 < int(value) < 65536:
        raise SettingsError(f"{name} has '{value}' for a port: it must be from 1 to 65535.")
    return int(value)
