"""Waits until both Airflows are ready, then starts Dagster if asked to: `--dagster KIND`.

`start.py` runs this beside the Airflows. It fails when an Airflow takes too long.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import requests
from instances import AirflowInstance, SignInRefusedError, build_instances
from settings import REPOSITORY, DemoSettings, read_settings

DAGSTER_KINDS = ("dev", "production")
_READY_TIMEOUT_S = 360
_POLL_INTERVAL_S = 0.5
_REQUEST_TIMEOUT_S = 5
_PROGRESS_INTERVAL_S = 10


class NotReadyError(Exception):
    """An Airflow or Dagster is not ready in time, or has ended."""


def wait_until_ready(instances: list[AirflowInstance]) -> None:
    """Print each instance that is ready. Return when all are.

    Raises:
        NotReadyError: An instance is not ready in time.
        SignInRefusedError: An instance refuses the account of the settings.
    """
    started_at, start = datetime.now(timezone.utc), time.monotonic()
    last_progress = start
    waiting = list(instances)
    while True:
        reasons = {instance: instance.check_readiness(started_at) for instance in waiting}
        for instance in waiting:
            if reasons[instance] is None:
                print(f"ready: {instance.name} {instance.settings.url}", flush=True)
        waiting = [instance for instance in waiting if reasons[instance] is not None]
        if not waiting:
            return
        now = time.monotonic()
        if now > start + _READY_TIMEOUT_S:
            raise NotReadyError(
                "\n".join(
                    f"Airflow '{instance.name}' is not ready after {_READY_TIMEOUT_S} s:"
                    f" {reasons[instance]}. Its logs are in {instance.logs}."
                    for instance in waiting
                )
            )
        if now > last_progress + _PROGRESS_INTERVAL_S:
            last_progress = now
            for instance in waiting:
                print(f"{instance.name}: waiting, {reasons[instance]}", flush=True)
        time.sleep(_POLL_INTERVAL_S)


def start_dagster(demo: DemoSettings, kind: str) -> subprocess.Popen[bytes]:
    """Start Dagster. Return its process when its web server answers.

    Args:
        kind: "dev": `dagster dev`; "production": as a deployment.

    Raises:
        NotReadyError: Dagster ended, or did not answer in time.
    """
    home = demo.home / ("dagster" if kind == "dev" else "production")
    home.mkdir(parents=True, exist_ok=True)
    address = ["--port", str(demo.dagster_port)]
    if kind == "dev":
        if not (home / "dagster.yaml").exists():
            shutil.copy(REPOSITORY / "deployment" / "dagster.yaml", home)
        # At level info the daemons log every 5 s that they are running.
        quiet = ["--log-level", "warning"]
        command = [dagster_executable(), "dev", "--host", "127.0.0.1", *address, *quiet]
    else:
        program = Path(__file__).with_name("production.py")
        command = [sys.executable, program, "--home", home, "--project", REPOSITORY, *address]
    print("dagster: starting", flush=True)
    dagster = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={
            **os.environ,
            **demo.warehouse.variables,
            **demo.metrics.variables,
            "DAGSTER_HOME": str(home),
            "DAGSTER_PORT": str(demo.dagster_port),
            "FEDERATION_DAGSTER_URL": demo.dagster_url,
            "NO_PROXY": "127.0.0.1,localhost",
        },
    )
    deadline = time.monotonic() + _READY_TIMEOUT_S
    session = requests.Session()
    session.trust_env = False  # no proxy for 127.0.0.1
    while not _is_answering(session, f"{demo.dagster_url}/server_info"):
        if dagster.poll() is not None:
            raise NotReadyError(f"Dagster ended (exit code {dagster.returncode}), see above.")
        if time.monotonic() > deadline:
            raise NotReadyError(f"Dagster does not answer after {_READY_TIMEOUT_S} s, see above.")
        time.sleep(_POLL_INTERVAL_S)
    return dagster


def dagster_executable() -> Path:
    """Return the `dagster` executable of the running environment."""
    return Path(sys.executable).parent / "dagster"


def build_banner(
    demo: DemoSettings, instances: list[AirflowInstance], dagster_kind: str | None
) -> str:
    """Return the addresses and accounts of everything that runs, and what to try."""
    lines = ["", "The demo runs:"]
    for instance in instances:
        settings = instance.settings
        lines += [
            f"  {settings.name:<10}{settings.url}  (Airflow {instance.version})",
            f"  {'':<10}sign in as '{settings.username}', password: {settings.password_source}",
        ]
    if dagster_kind is not None:
        lines.append(f"  {'dagster':<10}{demo.dagster_url}")
    if dagster_kind == "production":
        lines.append(f"  {'':<10}its processes write to {demo.home / 'production' / 'logs'}")
    # With the ports that were set for this demo, which another terminal does not know.
    ports = {
        "WAREHOUSE_PORT": demo.warehouse.port,
        "METRICS_PORT": demo.metrics.port,
        "DAGSTER_PORT": demo.dagster_port,
    }
    given = [f"{name}={port}" for name, port in ports.items() if os.environ.get(name)]
    trigger = " ".join(["make trigger", *given])
    return "\n".join([*lines, f"Try '{trigger}' in another terminal. Ctrl-C stops everything.", ""])


def _is_answering(session: requests.Session, url: str) -> bool:
    try:
        return session.get(url, timeout=_REQUEST_TIMEOUT_S).ok
    except requests.RequestException:
        return False


def main(dagster_kind: str | None) -> None:
    """Run until the demo is stopped. Return only after printing an error."""
    demo = read_settings()
    instances = build_instances(demo)
    try:
        wait_until_ready(instances)
        dagster = start_dagster(demo, dagster_kind) if dagster_kind else None
        print(build_banner(demo, instances, dagster_kind), flush=True)
        if dagster is not None:
            raise NotReadyError(f"Dagster ended by itself (exit code {dagster.wait()}), see above.")
        # The process runner stops everything as soon as one of its processes ends.
        signal.pause()
    except (NotReadyError, SignInRefusedError) as error:
        print(error, file=sys.stderr, flush=True)
    # Including what is left of Dagster: it would keep our output open, and the process runner would
    # take this process for running.
    os.killpg(0, signal.SIGTERM)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dagster", choices=DAGSTER_KINDS)
    main(parser.parse_args().dagster)
