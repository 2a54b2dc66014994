"""A server that stands for all Airflows of a fleet, each below a path with its name.

It answers as the fakes of the contract tests do, which are compared with real Airflows. It notes
when runs end, when instances are polled, and which runs are triggered.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import defaultdict
from contextlib import suppress
from datetime import timedelta
from itertools import cycle
from typing import Any
from uuid import uuid4

import psutil
from typing_extensions import override
from werkzeug import Request, Response

from tests.bench.fleet.sizes import SEED, Fleet
from tests.contract.fakes.airflow import FakeAirflow
from tests.contract.fakes.answers import build_run
from tests.contract.fakes.endpoints import Endpoints, build_json

LOOP_S = 0.1
RUN_S = 2.0  # how long a triggered run takes


class FleetOfAirflows(FakeAirflow):
    """All Airflows of a fleet.

    `GET /notes` returns what it noted. `POST /ends` sets how many runs of upstream DAGs end per
    second from now on, as `{"per_second": 0.3}`.

    Args:
        api: "v2", or "v1" for dagster-airlift.
        port: A free one if it is 0.
    """

    def __init__(self, fleet: Fleet, api: str, port: int = 0) -> None:
        super().__init__(api, port)
        self.airflows = {name: _build_airflow(api, fleet.dag_ids[name]) for name in fleet.dag_ids}
        sources = sorted(fleet.upstreams.values())
        random.Random(SEED).shuffle(sources)
        self._sources = cycle(sources)
        self._ends_per_s, self._next_end = 0.0, 0.0
        self._polls: defaultdict[str, list[float]] = defaultdict(list)
        self._ends: list[dict[str, Any]] = []
        self._triggers: list[dict[str, Any]] = []
        self._is_stopped = threading.Event()
        self._ticker = threading.Thread(target=self._run, daemon=True)

    @override
    def start(self) -> None:
        super().start()
        self._ticker.start()

    @override
    def stop(self) -> None:
        self._is_stopped.set()
        super().stop()

    def wait(self) -> None:
        """Return after `stop()`, called by another thread."""
        self._is_stopped.wait()

    def set_rate(self, ends_per_s: float) -> None:
        """Set how many runs of upstream DAGs end per second; 0 for none."""
        self._ends_per_s, self._next_end = ends_per_s, time.time()

    @override
    def respond(self, request: Request, connection: int) -> Response | None:
        now = time.time()
        instance, _, path = request.path[1:].partition("/")
        if instance == "notes":
            return self._show_notes()
        if instance == "ends":
            self.set_rate(request.get_json()["per_second"])
            return build_json({})
        request.path = f"/{path}"
        if "updated_at_gte" in request.args or path.endswith("/dagRuns/list"):
            self._polls[instance].append(now)
        worker = None
        if request.method == "POST" and path.endswith("/dagRuns"):
            worker = weigh_worker(connection)
        response = self.airflows[instance].respond(request, connection)
        if worker is not None and response is not None and response.status_code == 200:
            run = json.loads(response.get_data())
            at = {"instance": instance, "dag_id": run["dag_id"], "run_id": run["dag_run_id"]}
            self._triggers.append({**at, "at": now, "worker": worker})
        return response

    def _show_notes(self) -> Response:
        notes = {"polls": self._polls, "ends": self._ends, "triggers": self._triggers}
        return build_json(notes)

    def _run(self) -> None:
        """Let runs end."""
        while not self._is_stopped.wait(LOOP_S):
            for airflow in self.airflows.values():
                _finish_runs(airflow)
            while self._ends_per_s and time.time() >= self._next_end:
                self._next_end += 1 / self._ends_per_s
                self._end_run(*next(self._sources))

    def _end_run(self, instance: str, dag_id: str) -> None:
        database = self.airflows[instance].database
        run = database.start_run(dag_id, f"scheduled__{uuid4()}", run_type="scheduled")
        database.finish_run(run)
        self._ends.append({"instance": instance, "dag_id": dag_id, "at": time.time()})


def _build_airflow(api: str, dag_ids: list[str]) -> FakeAirflow:
    airflow = FakeAirflow(api)
    airflow.all_endpoints["v1"] = _TutorialEndpoints("v1", airflow.database)
    for dag_id in dag_ids:
        airflow.database.add_dag(
            dag_id,
            description=f"Loads the table {dag_id} of the lake, and checks what it has loaded.",
            owners=("data-platform",),
            tags=("federated", f"team-{dag_id[-1]}"),
            schedule="0 3 * * *",
        )
    return airflow


def _finish_runs(airflow: FakeAirflow) -> None:
    database = airflow.database
    now = database.now()
    for run in reversed(database.runs):
        if run.is_finished:
            continue
        if now - run.queued_at > timedelta(seconds=RUN_S):
            database.finish_run(run)


class _TutorialEndpoints(Endpoints):
    """The endpoints of 2.11 that dagster-airlift's own client uses, too."""

    @override
    def answer(self, request: Request, check_sign_in: Any) -> Response:
        if (request.method, request.path) == ("POST", "/api/v1/dags/~/dagRuns/list"):
            check_sign_in(request)
            return self._list_batch(request.get_json())
        return super().answer(request, check_sign_in)

    def _list_batch(self, body: dict[str, Any]) -> Response:
        dag_ids = set(body["dag_ids"])
        runs = [
            run
            for run in self.database.runs
            if run.dag_id in dag_ids
            and run.state in body["states"]
            and run.end_date
            and body["end_date_gte"] <= run.end_date.isoformat() <= body["end_date_lte"]
        ]
        runs.sort(key=lambda run: run.end_date or run.queued_at)
        shown = runs[body["page_offset"] :][: body["page_limit"]]
        entries = [build_run("v1", run) for run in shown]
        return build_json({"dag_runs": entries, "total_entries": len(runs)})

    @override
    def trigger(self, request: Request, dag_id: str) -> Response:
        body = request.get_json()
        body.setdefault("dag_run_id", f"manual__{uuid4()}")  # the parsed body is cached
        return super().trigger(request, dag_id)


def weigh_worker(port: int) -> dict[str, Any]:
    """Return CPU seconds and memory of the run worker that connects from this port, with those of
    its steps' processes; nothing if the client is no worker of this machine."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if is_worker(process) and any(
                connection.laddr.port == port
                for connection in process.net_connections("tcp4")
                if connection.laddr
            ):
                return _weigh(process)
    return {}


def is_worker(process: psutil.Process) -> bool:
    """Return whether a process is a run worker, or a step of one."""
    return any("spawn_main" in part or part == "execute_run" for part in process.cmdline())


def _weigh(process: psutil.Process) -> dict[str, Any]:
    while (parent := process.parent()) is not None and is_worker(parent):
        process = parent
    cpu_s = pss = rss = 0.0
    for part in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            times, memory = part.cpu_times(), part.memory_full_info()
            cpu_s += times.user + times.system + times.children_user + times.children_system
            pss, rss = pss + memory.pss, rss + memory.rss
    mb = 2**20
    age_s = time.time() - process.create_time()
    return {"cpu_s": cpu_s, "pss_mb": pss / mb, "rss_mb": rss / mb, "age_s": age_s}
