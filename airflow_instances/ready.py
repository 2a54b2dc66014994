"""Says when both Airflows are ready; then starts Dagster if asked to, and says what there is.

`start.py` runs this beside the Airflows: it ends with an error when they take too long.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import requests
from instance import AirflowInstance, SignInRefusedError
from instances import build_instances
from settings import REPOSITORY, DemoSettings, read_settings

_DEADLINE_S = 240
_POLL_S = 0.5
_ANSWER_WITHIN_S = 5
_SAY_EVERY_S = 10


class NotReadyError(Exception):
    """Something that was started does not answer, or not any more."""


def wait_until_ready(instances: list[AirflowInstance]) -> None:
    """Returns when all are, and has said so of each.

    Raises:
        NotReadyError: One was not before the deadline.
        SignInRefusedError: One does not accept the account of the settings.
    """
    started_at, started = datetime.now(timezone.utc), time.monotonic()
    said = started
    waiting = list(instances)
    while True:
        missing = {instance: instance.what_is_missing(started_at) for instance in waiting}
        for instance, lack in missing.items():
            if lack is None:
                print(f"ready: {instance.name} {instance.settings.url}", flush=True)
        waiting = [instance for instance in waiting if missing[instance] is not None]
        if not waiting:
            return
        now = time.monotonic()
        if now > started + _DEADLINE_S:
            raise NotReadyError(
                "\n".join(
                    f"Airflow '{one.name}' is not ready after {_DEADLINE_S} s: {missing[one]}."
                    f" Its logs are in {one.logs}."
                    for one in waiting
                )
            )
        if now > said + _SAY_EVERY_S:
            said = now
            for one in waiting:
                print(f"{one.name}: waiting, {missing[one]}", flush=True)
        time.sleep(_POLL_S)


def start_dagster(demo: DemoSettings) -> subprocess.Popen[bytes]:
    """Dagster, as soon as its web server answers.

    Raises:
        NotReadyError: It ended, or did not answer before the deadline.
    """
    home = demo.home / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        shutil.copy(REPOSITORY / "deployment" / "dagster.yaml", home)
    print("dagster: starting", flush=True)
    address = ["--host", "127.0.0.1", "--port", str(demo.dagster_port)]
    dagster = subprocess.Popen(
        # Its daemons say at level info each 5 s that they are there; what they do is in the UI.
        [dagster_executable(), "dev", *address, "--log-level", "warning"],
        cwd=REPOSITORY,
        env={
            **os.environ,
            **demo.warehouse.variables,
            **demo.metrics.variables,
            "DAGSTER_HOME": str(home),
            "DAGSTER_PORT": str(demo.dagster_port),
            "NO_PROXY": "127.0.0.1,localhost",
        },
    )
    deadline = time.monotonic() + _DEADLINE_S
    session = requests.Session()
    session.trust_env = False  # a proxy has no say on 127.0.0.1
    while not _answers(session, f"{demo.dagster_url}/server_info"):
        if dagster.poll() is not None:
            raise NotReadyError(f"Dagster ended (exit code {dagster.returncode}), see above.")
        if time.monotonic() > deadline:
            raise NotReadyError(f"Dagster does not answer after {_DEADLINE_S} s, see above.")
        time.sleep(_POLL_S)
    return dagster


def dagster_executable() -> Path:
    """The `dagster` of the environment this runs in."""
    return Path(sys.executable).parent / "dagster"


def banner(demo: DemoSettings, instances: list[AirflowInstance], with_dagster: bool) -> str:
    """What there is now, and what to try."""
    lines = ["", "The demo runs:"]
    for instance in instances:
        settings = instance.settings
        lines += [
            f"  {settings.name:<10}{settings.url}  (Airflow {instance.version})",
            f"  {'':<10}sign in as '{settings.username}', password: {settings.password_source}",
        ]
    if with_dagster:
        lines.append(f"  {'dagster':<10}{demo.dagster_url}")
    return "\n".join(
        [*lines, f"Try '{_trigger_command(demo)}' in another terminal. Ctrl-C ends everything.", ""]
    )


def _trigger_command(demo: DemoSettings) -> str:
    """With the ports that this demo was given and another terminal does not know of."""
    ports = {
        "WAREHOUSE_PORT": demo.warehouse.port,
        "METRICS_PORT": demo.metrics.port,
        "DAGSTER_PORT": demo.dagster_port,
    }
    given = [f"{name}={port}" for name, port in ports.items() if os.environ.get(name)]
    return " ".join(["make trigger", *given])


def _answers(session: requests.Session, url: str) -> bool:
    try:
        return session.get(url, timeout=_ANSWER_WITHIN_S).ok
    except requests.RequestException:
        return False


def main(with_dagster: bool) -> None:
    """Returns never, unless something failed, which it has said then."""
    demo = read_settings()
    instances = build_instances(demo)
    try:
        wait_until_ready(instances)
        dagster = start_dagster(demo) if with_dagster else None
        print(banner(demo, instances, with_dagster), flush=True)
        if dagster is not None:
            raise NotReadyError(f"Dagster ended by itself (exit code {dagster.wait()}), see above.")
        # The process runner ends everything as soon as one of its processes ends.
        signal.pause()
    except (NotReadyError, SignInRefusedError) as error:
        print(error, file=sys.stderr, flush=True)
    # With whatever is left of Dagster: it would keep our output open, for the process runner a
    # sign of life.
    os.killpg(0, signal.SIGTERM)


if __name__ == "__main__":
    main(with_dagster="--with-dagster" in sys.argv[1:])
