"""The demo's two real Airflows."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dotenv import dotenv_values
from werkzeug.security import generate_password_hash

from tests.processes import LoggedProcess, find_free_port
from tests.waiting import wait_for

if TYPE_CHECKING:
    from federation_defs.airflow.client import AirflowClient

ROOT = Path(__file__).parents[1]
SIGN_INS = {"warehouse": "basic", "metrics": "password"}
STARTED_AIRFLOWS = "STARTED_AIRFLOWS"  # set by with_airflows.py


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
        # Here, because with_airflows.py does without Dagster, which declarations import.
        from federation_defs.airflow.client import build_client
        from federation_defs.declaration import InstanceDeclaration

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
