"""The processes of a Dagster deployment over a project, and what they cost."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster as dg
import requests
import yaml
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin
from dagster._core.scheduler.instigation import InstigatorType
from dagster._grpc.client import DagsterGrpcClient

from tests.bench.fleet.machine import read_cpu_s
from tests.conftest import ROOT
from tests.live.dagster_api import DagsterApi
from tests.processes import LoggedProcess, find_free_port
from tests.waiting import wait_for

START_S = 400  # for a process to start, at most
MB = 2**20


class Deployment(DagsterApi):
    """A code server, a daemon and a webserver, which are started one by one.

    Args:
        project: The folder with the code.
        module: The definitions.
        home: Created for DAGSTER_HOME and the logs.
        settings: The dagster.yaml.
        env: What the definitions read.

    Attributes:
        processes: By name.
    """

    def __init__(
        self, project: Path, module: str, home: Path, settings: str, env: Mapping[str, str]
    ) -> None:
        self.home, self._project, self._module = home, project, module
        home.mkdir(parents=True)
        (home / "dagster.yaml").write_text(settings)
        self.port, self._code_port = find_free_port(), find_free_port()
        self._workspace = home / "workspace.yaml"
        server = {"host": "127.0.0.1", "port": self._code_port, "location_name": "project"}
        self._workspace.write_text(yaml.safe_dump({"load_from": [{"grpc_server": server}]}))
        self._env = {
            **env,
            "DAGSTER_HOME": str(home),
            "PYTHONPATH": f"{project}{os.pathsep}{ROOT}",
            "PYTHONDONTWRITEBYTECODE": "",  # keep compiled modules, as every deployment does
        }
        self.processes: dict[str, LoggedProcess] = {}
        self._keys: list[dg.AssetKey] = []

    def start_code_server(self) -> None:
        """Start it, and return when it has answered all that a daemon or a webserver asks for."""
        address = ["--host", "127.0.0.1", "--port", str(self._code_port)]
        command = ["dagster", "api", "grpc", "--module-name", self._module, *address]
        self._start("code server", command)
        client = DagsterGrpcClient(port=self._code_port, host="127.0.0.1")
        self._wait("code server", lambda: client.ping("ready")["echo"] == "ready")
        origin = GrpcServerCodeLocationOrigin("127.0.0.1", self._code_port, location_name="project")
        with dg.DagsterInstance.ephemeral() as instance:
            location = origin.create_location(instance)
            self._keys = [
                node.asset_key
                for repository in location.get_repositories().values()
                for node in repository.get_asset_node_snaps()
            ]
            location.cleanup()

    def start_webserver(self) -> None:
        """Start it, and return when it has loaded the definitions."""
        address = ["--host", "127.0.0.1", "--port", str(self.port)]
        self._start("webserver", ["dagster-webserver", *self._where, *address])
        self._wait("webserver", self._is_loaded)

    def start_daemon(self) -> None:
        self._start("daemon", ["dagster-daemon", "run", *self._where])

    def stop(self) -> None:
        for process in reversed(self.processes.values()):
            if process.is_running:
                process.kill_tree()
        self.processes.clear()

    @property
    def _where(self) -> list[str]:
        return ["--workspace", str(self._workspace)]

    def _start(self, name: str, command: list[str]) -> None:
        program = Path(sys.executable).with_name(command[0])
        log = self.home / f"{name}.log"
        self.processes[name] = LoggedProcess(
            [program, *command[1:]], log, cwd=self._project, env=self._env
        )

    def _wait(self, name: str, is_ready: Callable[[], bool]) -> None:
        """Wait for a process.

        Raises:
            FailedError: It ended, or it takes too long.
        """
        process, deadline = self.processes[name], time.monotonic() + START_S
        while True:
            with suppress(requests.ConnectionError, dg.DagsterError):
                if is_ready():
                    return
            if not process.is_running:
                raise FailedError(f"the {name} ended: {process.read_log()}")
            if time.monotonic() > deadline:
                raise FailedError(f"the {name} was not ready after {START_S} s")
            time.sleep(0.1)

    def _is_loaded(self) -> bool:
        (entry,) = self.fetch_locations()
        error = entry["locationOrLoadError"]
        if error and error["__typename"] == "PythonError":
            raise FailedError(f"the webserver could not load: {error['message']}")
        return entry["loadStatus"] == "LOADED"

    def weigh(self, name: str) -> tuple[float, float]:
        """Return CPU seconds and memory (PSS, MB) of a process, without run workers."""
        process = self.processes[name].find_processes()[0]
        times = process.cpu_times()
        return times.user + times.system, process.memory_full_info().pss / MB

    def read_cpu_s(self) -> dict[str, float]:
        """Return the CPU seconds so far of each process, and of all run workers."""
        found: dict[str, float] = {}
        workers = 0.0
        for name, process in self.processes.items():
            own, *descendants = process.find_processes()
            times = own.cpu_times()
            found[name] = times.user + times.system
            workers += times.children_user + times.children_system + read_cpu_s(descendants)
        return found | {"workers": workers}

    def has_stored_freshness(self) -> bool:
        """Whether Dagster's daemon has stored of each asset how fresh it is, which takes it some
        milliseconds each, once (1.13)."""
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            known = instance.event_log_storage.get_freshness_state_records(self._keys)
        return len(known) == len(self._keys)

    def fetch_ticks(self) -> dict[str, list[tuple[float, float]]]:
        """Return when the last ticks of each sensor that the daemon knows began and ended."""
        found: dict[str, list[tuple[float, float]]] = {}
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            for state in instance.all_instigator_state(instigator_type=InstigatorType.SENSOR):
                ids = state.instigator_origin_id, state.selector_id
                ticks = instance.get_ticks(*ids, limit=1000)
                ends = [tick.end_timestamp or time.time() for tick in ticks]
                begins = [tick.timestamp for tick in ticks]
                found[state.name] = sorted(zip(begins, ends, strict=True))
        return found


class FailedError(Exception):
    """A contender can't do something. Its message says how it failed."""


class Airflows:
    """The Airflows of a fleet, in a process of their own.

    Args:
        api: "v1" or "v2".
    """

    def __init__(self, size: str, api: str, folder: Path) -> None:
        port = find_free_port()
        self.url = f"http://127.0.0.1:{port}"
        options = ["--size", size, "--api", api, "--port", str(port)]
        command = [sys.executable, "-m", "tests.bench.fleet", "serve", *options]
        log = folder / f"airflows-{size}-{api}.log"
        self.process = LoggedProcess(command, log, cwd=ROOT, env={})

        def is_ready() -> bool:
            assert self.process.is_running, self.process.read_log()
            return self.url in self.process.read_log()

        wait_for(is_ready, "the Airflows answer", interval_s=0.1)

    def stop(self) -> None:
        self.process.kill_tree()

    def fetch_notes(self) -> dict[str, Any]:
        """Return what they have noted: `polls` by instance, `ends` and `triggers`."""
        return requests.get(f"{self.url}/notes", timeout=60).json()

    def set_rate(self, ends_per_s: float) -> None:
        requests.post(f"{self.url}/ends", json={"per_second": ends_per_s}, timeout=60)
