"""What all tests share: options, and the demo's two real Airflows."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from dotenv import dotenv_values
from werkzeug.security import generate_password_hash

from federation_defs.airflow.client import AirflowClient, build_client
from federation_defs.declaration import InstanceDeclaration
from tests.contract.storages import STORAGES, OpenInstance, prepare
from tests.processes import LoggedProcess, end_on_signals, find_free_port
from tests.unit.project import Project
from tests.waiting import wait_for

ROOT = Path(__file__).parents[1]
SIGN_INS = {"warehouse": "basic", "metrics": "password"}
STARTED_AIRFLOWS = "STARTED_AIRFLOWS"  # set by with_airflows.py


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--storage", choices=STORAGES, default="sqlite", help="of Dagster's instances in tests"
    )
    parser.addoption(
        "--deployment",
        choices=["dev", "production"],
        default="dev",
        help="how live tests run Dagster: `dagster dev`, or as `make demo-production`",
    )


def pytest_configure() -> None:
    end_on_signals()


@dataclass(frozen=True)
class Airflows:
    """The running Airflows of the demo: warehouse (2.11) and metrics (3.3).

    They have the DAGs of `tests/contract/dags` too.

    Attributes:
        lake: The DuckDB file that the demo's DAGs share.
        env: The environment variables that hold the addresses and accounts.
    """

    lake: Path
    env: dict[str, str]

    def export(self) -> dict[str, str]:
        """Return the environment variable by which other processes of tests find these Airflows."""
        return {STARTED_AIRFLOWS: json.dumps(asdict(self), default=str)}

    @property
    def warehouse(self) -> AirflowClient:
        return self.connect("warehouse")

    @property
    def metrics(self) -> AirflowClient:
        return self.connect("metrics")

    def connect(self, name: str, url: str | None = None) -> AirflowClient:
        """Return a client with an account that may do everything.

        Args:
            name: The instance.
            url: The address of a proxy, or of another Airflow with the same account.
        """
        prefix = f"{name.upper()}_AIRFLOW_"
        account = {
            "username": self.env[f"{prefix}USERNAME"],
            "password": self.env[f"{prefix}PASSWORD"],
        }
        declared = {
            "name": name,
            "url": url or self.env[f"{prefix}URL"],
            "auth": {"type": SIGN_INS[name], **account},
            "http": {"max_requests_per_minute": 60_000},
        }
        return build_client(InstanceDeclaration.model_validate(declared), f"{prefix}PASSWORD")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """An empty project, whose module can be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    return Project(tmp_path, f"project_of_{tmp_path.name}")


@pytest.fixture(scope="session")
def open_instance(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OpenInstance]:
    """A function that opens an empty Dagster instance on the storage that is tested."""
    storage = str(pytestconfig.getoption("--storage"))
    with prepare(storage, tmp_path_factory.mktemp("dagster")) as open_instance:
        yield open_instance


@pytest.fixture(scope="session", autouse=True)
def read_revisions_once() -> Iterator[None]:
    """Let alembic read the revisions of Dagster's tables once, not for each instance."""
    read, known = ScriptDirectory.from_config, dict[str | None, ScriptDirectory]()

    def read_once(config: Config) -> ScriptDirectory:
        location = config.get_main_option("script_location")
        if location not in known:
            known[location] = read(config)
        return known[location]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptDirectory, "from_config", read_once)
        yield


@pytest.fixture(scope="session")
def airflows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflows]:
    """The Airflows that run already, or two that run as long as the session."""
    if exported := os.environ.get(STARTED_AIRFLOWS):
        found = json.loads(exported)
        yield Airflows(Path(found["lake"]), found["env"])
        return
    with start_airflows(tmp_path_factory.mktemp("demo")) as airflows:
        yield airflows


@contextmanager
def start_airflows(home: Path) -> Iterator[Airflows]:
    """Run the demo's Airflows on free ports, with all their files in this folder."""
    env = build_env(home)
    command = [sys.executable, ROOT / "airflow_instances" / "start.py"]
    demo = LoggedProcess(command, home / "demo.log", cwd=ROOT, env=env)

    def is_ready() -> bool:
        assert demo.is_running, f"the demo's Airflows did not start:\n{demo.read_log()}"
        return all(f"ready: {name} " in demo.read_log() for name in SIGN_INS)

    try:
        wait_for(is_ready, "both Airflows are ready", timeout_s=400)
        _make_sign_in_cheap(home / "warehouse" / "airflow.db", env["WAREHOUSE_AIRFLOW_PASSWORD"])
        yield Airflows(lake=home / "lake.duckdb", env=env)
    finally:
        exit_code = demo.terminate()
    assert exit_code == 0, demo.read_log()


def _make_sign_in_cheap(database: Path, password: str) -> None:
    """Replace the hash of the password by one that takes no 0.1 s of CPU time per request."""
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        quick = generate_password_hash(password, method="pbkdf2:sha256:1")
        changed = connection.execute("UPDATE ab_user SET password = ?", [quick])
        assert changed.rowcount == 1


def build_env(home: Path) -> dict[str, str]:
    """Return the demo's settings, whatever the person's own `.env` or environment holds."""
    accounts = {
        name: value
        for name, value in dotenv_values(ROOT / ".env.example").items()
        if value and name.endswith(("_USERNAME", "_PASSWORD"))
    }
    ports = {name.upper(): str(find_free_port()) for name in SIGN_INS}
    urls = {f"{name}_AIRFLOW_URL": f"http://127.0.0.1:{port}" for name, port in ports.items()}
    return {
        "DEMO_HOME": str(home),
        "DEMO_DAGS": str(ROOT / "tests" / "contract" / "dags"),
        "DEMO_SCHEDULER_IDLE_S": "1",
        "DEMO_PARSE_INTERVAL_S": "900",  # 16 CPU s each
        **{f"{name}_PORT": port for name, port in ports.items()},
        **urls,
        **accounts,
    }
