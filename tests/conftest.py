"""What tests of several kinds share: the two real Airflows of the demo, on ports of their own."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import pytest
from dotenv import dotenv_values

from federation_defs.airflow.client import AirflowClient, build_client
from federation_defs.declaration import InstanceDeclaration
from tests.processes import LoggedProcess, find_free_port
from tests.waiting import wait_for

ROOT = Path(__file__).parents[1]


def pytest_configure() -> None:
    """A SIGTERM ends what the tests started, as a Ctrl-C does.

    Both are set, for a shell starts what it puts in the background with SIGINT ignored, and
    children inherit that: `dagster dev` takes its way to handle SIGTERM from there too (1.13).
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@dataclass(frozen=True)
class Airflows:
    """The demo's Airflows, real and running, with the DAGs of the contract tests too.

    Attributes:
        warehouse: Airflow 2.11, basic auth.
        metrics: Airflow 3.3, password auth.
        lake: The DuckDB file that their DAGs share.
        env: The variables by which a federation finds them.
    """

    warehouse: AirflowClient
    metrics: AirflowClient
    lake: Path
    env: dict[str, str]


@pytest.fixture(scope="session")
def airflows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflows]:
    home = tmp_path_factory.mktemp("demo")
    ports = {"WAREHOUSE_PORT": str(find_free_port()), "METRICS_PORT": str(find_free_port())}
    # The addresses and accounts too: whatever a person's own .env or environment says of them.
    accounts = {
        name: value
        for name, value in dotenv_values(ROOT / ".env.example").items()
        if value and name.endswith(("_USERNAME", "_PASSWORD"))
    }
    urls = {
        f"{name}_AIRFLOW_URL": f"http://127.0.0.1:{ports[f'{name}_PORT']}"
        for name in ("WAREHOUSE", "METRICS")
    }
    dags = ROOT / "tests" / "contract" / "dags"
    env = {"DEMO_HOME": str(home), "DEMO_DAGS": str(dags), **ports, **urls, **accounts}
    command = [sys.executable, ROOT / "airflow_instances" / "start.py"]
    demo = LoggedProcess(command, home / "demo.log", cwd=ROOT, env=env)

    def is_ready() -> bool:
        assert demo.is_running, f"the demo's Airflows did not start:\n{demo.read_log()}"
        return all(f"ready: {name} " in demo.read_log() for name in ("warehouse", "metrics"))

    try:
        wait_for(is_ready, "both Airflows are ready", timeout_s=180)
        yield Airflows(
            warehouse=connect("warehouse", "basic", env),
            metrics=connect("metrics", "password", env),
            lake=home / "lake.duckdb",
            env=env,
        )
    finally:
        exit_code = demo.terminate()
    assert exit_code == 0, demo.read_log()


def connect(name: str, auth: str, env: dict[str, str]) -> AirflowClient:
    """The client of one of the demo's Airflows."""
    prefix = f"{name.upper()}_AIRFLOW_"
    account = {"username": env[prefix + "USERNAME"], "password": env[prefix + "PASSWORD"]}
    declared = {"name": name, "url": env[prefix + "URL"], "auth": {"type": auth, **account}}
    return build_client(InstanceDeclaration.model_validate(declared), f"{prefix}PASSWORD")
