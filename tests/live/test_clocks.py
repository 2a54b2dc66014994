"""Dagster while the clocks of its machines are ten minutes apart.

The daemon and the webserver have the real time. Another time has the code server together with its
run workers, or have the run workers alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import files
from pathlib import Path
from shutil import copy

import dagster as dg
import psutil
import pytest

from federation_defs.airflow.client import AirflowClient
from federation_defs.naming import build_run_id
from tests.conftest import ROOT, Airflows
from tests.live.dagster_api import DagsterApi, Run
from tests.live.dagster_dev import copy_project
from tests.live.federation import (
    NEVER,
    replace_dags,
    set_duration,
    trigger,
    utc_now,
    wait_for_state,
)
from tests.processes import LoggedProcess, find_free_port
from tests.waiting import wait_for

# `make quick` has a heartbeat, and observation, by a wrong clock.
pytestmark = pytest.mark.soak

TIMED, OBSERVED = "timed", "observed"
WORKSPACE = """\
load_from:
  - grpc_server: {{host: 127.0.0.1, port: {port}, location_name: federation_defs}}
"""
# Gives a run worker, which multiprocessing starts, its own clock: it starts the program anew.
SITE = """\
import os
import sys

clock = {clock!r}
if "--multiprocessing-fork" in sys.orig_argv and clock.keys() - os.environ.keys():
    os.environ.update(clock)
    os.execv(sys.executable, sys.orig_argv)
"""


def build_clock(skew: timedelta) -> dict[str, str]:
    """Return the environment of processes whose clock is ahead by this, or behind."""
    (library,) = [file for file in files("libfaketime") or () if file.name == "libfaketime.so.1"]
    return {
        "LD_PRELOAD": str(library.locate()),
        "FAKETIME": f"{skew.total_seconds():+.0f}",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


class SkewedDagster(DagsterApi):
    """A code server, a daemon and a webserver.

    Args:
        folder: A scratch folder. It gets the copy of the project, DAGSTER_HOME and the logs.
        skew: How far the clock of the run workers is ahead.
        has_code_server: Whether the clock of the code server is, too.
    """

    def __init__(
        self, folder: Path, airflows: Airflows, skew: timedelta, *, has_code_server: bool
    ) -> None:
        project, home = copy_project(folder), folder / "dagster"
        replace_dags(project, "warehouse", [], {})
        declared = {TIMED: {"depends_on": [f"warehouse/{NEVER}"]}, OBSERVED: {}}
        replace_dags(project, "metrics", [], declared)
        home.mkdir()
        copy(ROOT / "deployment" / "dagster.yaml", home)
        with dg.DagsterInstance.from_config(str(home)) as instance:
            instance.get_runs()  # creates the tables, which several processes at once can't (1.13)
        code_port, self.port = find_free_port(), find_free_port()
        (folder / "workspace.yaml").write_text(WORKSPACE.format(port=code_port))
        clock, site = build_clock(skew), folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(SITE.format(clock=clock))
        paths = [str(project)] if has_code_server else [str(site), str(project)]
        env = {**airflows.env, "DAGSTER_HOME": str(home)}
        code = {**env, "PYTHONPATH": os.pathsep.join(paths)} | (clock if has_code_server else {})
        module, host = ["-m", "federation_defs.definitions"], ["127.0.0.1"]
        workspace = ["-w", folder / "workspace.yaml"]
        commands: list[tuple[list[str | Path], dict[str, str]]] = [
            (["dagster", "api", "grpc", *module, "-h", *host, "-p", str(code_port)], code),
            (["dagster-webserver", *workspace, "-h", *host, "-p", str(self.port)], env),
            (["dagster-daemon", "run", *workspace], env),
        ]
        self.processes: list[LoggedProcess] = []
        for number, (command, more) in enumerate(commands):
            programs = Path(sys.executable).parent
            command[0] = programs / command[0]
            log = folder / f"{number}.log"
            self.processes.append(LoggedProcess(command, log, cwd=project, env=more))

    def wait_until_ready(self) -> None:

        def is_loaded() -> bool:
            for process in self.processes:
                assert process.is_running, process.read_log()[-5000:]
            try:
                entries = self.fetch_locations()
            except OSError:
                return False
            types = {(entry["locationOrLoadError"] or {}).get("__typename") for entry in entries}
            return types == {"RepositoryLocation"}

        wait_for(is_loaded, "Dagster has loaded the project", timeout_s=240)

    def kill_worker(self) -> None:
        """Kill the only run worker."""
        server = psutil.Process(self.processes[0].process.pid)
        children = server.children(recursive=True)
        (worker,) = [each for each in children if "--multiprocessing-fork" in each.cmdline()]
        worker.kill()

    def stop(self) -> None:
        for process in reversed(self.processes):
            if process.is_running:
                process.kill_tree()


@dataclass(frozen=True)
class Skewed:
    """Dagster with two clocks, and the Airflow in which it runs DAGs.

    Attributes:
        skew: How far the workers' clock is ahead.
    """

    dagster: SkewedDagster
    metrics: AirflowClient
    skew: timedelta

    def run_timed(self, seconds: float) -> str:
        """Let Dagster run a DAG that takes so long. Return the Dagster run's id."""
        set_duration(self.metrics, seconds, TIMED)
        run_id = self.dagster.materialize("metrics", TIMED)
        wait_for_state(self.metrics, TIMED, build_run_id(run_id), "running", timeout_s=240)
        return run_id

    def assert_run_once(self, run_id: str, attempts: list[Run]) -> None:
        """Check that one DAG run came of the attempts at a run, and one materialization of that."""
        assert attempts[-1].status == "SUCCESS", attempts
        run = self.metrics.fetch_run(TIMED, build_run_id(run_id))
        assert run
        assert run.logical_date
        assert abs(run.logical_date - utc_now()) < timedelta(minutes=5)
        found = self.dagster.fetch_materializations("metrics", TIMED)
        (event,) = [event for event in found if event.run_id == run.run_id]
        seen = timedelta(seconds=event.timestamp - utc_now().timestamp())
        assert abs(seen - self.skew) < timedelta(minutes=5), "the worker has the real time"


SKEWS = [
    pytest.param(timedelta(minutes=10), id="10 ahead"),
    pytest.param(timedelta(minutes=-10), id="10 behind"),
]


@pytest.fixture(scope="module", params=["workers", "code server"])
def owner(request: pytest.FixtureRequest) -> str:
    """Whose clock is wrong."""
    return request.param


@pytest.fixture(scope="module", params=SKEWS)
def skewed(
    request: pytest.FixtureRequest,
    owner: str,
    airflows: Airflows,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Skewed]:
    has_code_server, folder = owner == "code server", tmp_path_factory.mktemp("clocks")
    dagster = SkewedDagster(folder, airflows, request.param, has_code_server=has_code_server)
    try:
        dagster.wait_until_ready()
        yield Skewed(dagster, airflows.metrics, request.param)
    finally:
        dagster.stop()


def test_a_run_that_waits_is_left_alone_and_finished_runs_are_reported(skewed: Skewed) -> None:
    run_id = skewed.run_timed(20)
    finished = trigger(skewed.metrics, OBSERVED)
    attempts = skewed.dagster.wait_for_attempts(run_id)
    assert len(attempts) == 1
    skewed.assert_run_once(run_id, attempts)

    def list_reports() -> list[str]:
        found = skewed.dagster.fetch_materializations("metrics", OBSERVED)
        return [event.run_id for event in found]

    wait_for(lambda: finished in list_reports(), f"{finished} is reported", timeout_s=120)
    assert list_reports().count(finished) == 1


def test_a_dead_worker_is_found_and_its_run_taken_over(skewed: Skewed) -> None:
    run_id = skewed.run_timed(20)
    skewed.dagster.kill_worker()
    wait_for(
        lambda: len(skewed.dagster.fetch_attempts(run_id)) > 1,
        "the dead worker is found and its run is retried",
        timeout_s=400,
    )
    attempts = skewed.dagster.wait_for_attempts(run_id)
    assert len(attempts) == 2
    skewed.assert_run_once(run_id, attempts)
