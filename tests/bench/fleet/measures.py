"""The measurements of one contender on one fleet."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import psutil
import yaml

from federation_defs.declaration import DagDeclaration
from federation_defs.naming import build_sensor_name
from tests.bench.fleet.deployment import Airflows, Deployment, FailedError
from tests.bench.fleet.machine import Load, LoadMeter, read_cpu_s
from tests.bench.fleet.sizes import (
    AUTOMATION_SENSOR,
    PACKAGE,
    SIZE_VARIABLE,
    Dag,
    Fleet,
    build_environment,
    refresh_state,
)
from tests.bench.projects import DEFAULTS, SHIPPED
from tests.contract.fakes.airflow import PASSWORD, USERNAME
from tests.contract.postgres import PostgresServer

WORKER_S = 300  # from the launch to the trigger, at most
SETTLE_S = 1200  # at most
STRAGGLERS_S = 120  # after the last end
# Launches runs at once, without a queue and so without a daemon.
_UNQUEUED = f"""{DEFAULTS}
run_coordinator: {{module: dagster._core.run_coordinator, class: DefaultRunCoordinator}}
"""


@dataclass(frozen=True)
class Figure:
    """A measurement: what is printed of it."""

    text: str
    load: Load


MODULES = {
    "ours": f"{PACKAGE}.definitions",
    "floor": "tests.bench.fleet.floor",
    "airlift": "tests.bench.fleet.tutorial",
}
# The variables of `deployment/Dockerfile`.
CODE_SERVER = dict.fromkeys(("DAGSTER_GRPC_MAX_WORKERS", "DAGSTER_CODE_SERVER_MAX_WORKERS"), "32")
SMALLEST_WORKER = "tests.bench.fleet.smallest_worker"


class Contender:
    """The definitions of ours, of airlift, or of what Dagster itself costs (floor), on one fleet.

    Args:
        folder: Created for all that it writes.
        postgres: Dagster's storage; SQLite without it.
    """

    def __init__(
        self, name: str, fleet: Fleet, folder: Path, postgres: PostgresServer | None
    ) -> None:
        self.name, self.fleet = name, fleet
        self._folder, self._postgres, self._homes = folder, postgres, 0
        self._project = folder / "project"
        self._project.mkdir(parents=True)
        self.airflows = Airflows(fleet.name, "v2" if self._is_ours else "v1", folder)
        if self._is_ours:
            fleet.write_project(self._project)
            refresh_state(self._project, self.airflows.url)

    @property
    def _is_ours(self) -> bool:
        return self.name != "airlift"

    @property
    def polls(self) -> bool:
        """Whether it asks the Airflows for news."""
        return self.name != "floor"

    @property
    def _recommended(self) -> str:
        return SHIPPED if self._is_ours else DEFAULTS

    @property
    def deciding_sensors(self) -> list[str]:
        """The names of the sensors that decide when DAGs run."""
        if not self._is_ours:
            return [AUTOMATION_SENSOR]
        return [
            build_sensor_name(declared["name"], kind)
            for declared in self.fleet.build_declarations()
            for kind in find_deciders(declared)
        ]

    def close(self) -> None:
        self.airflows.stop()

    @contextmanager
    def deploy(
        self, settings: str | None = None, module: str | None = None
    ) -> Iterator[Deployment]:
        """Build an empty deployment, and end its processes.

        Args:
            settings: The dagster.yaml, without storage; those that the contender recommends if it
                is None.
            module: The definitions; those of the contender if it is None.
        """
        self._homes += 1
        home = self._folder / f"home-{self._homes}"
        chosen: dict[str, Any] = yaml.safe_load(settings or self._recommended)
        if self._postgres is not None:
            url = self._postgres.create_database(f"{self.name}_{self.fleet.name}_{self._homes}")
            chosen["storage"] = {"postgres": {"postgres_url": url}}
        env = {
            **build_environment(self.airflows.url),
            SIZE_VARIABLE: self.fleet.name,
            "FLEET_ACCOUNT": json.dumps({"username": USERNAME, "password": PASSWORD}),
            "FLEET_DOWNSTREAMS": json.dumps(list(self.fleet.upstreams)),
        }
        if self._is_ours:
            env |= CODE_SERVER
        module, settings = module or MODULES[self.name], yaml.safe_dump(chosen)
        deployment = Deployment(self._project, module, home, settings, env)
        with dg.DagsterInstance.from_config(str(home)) as instance:
            instance.get_runs(limit=1)  # creates the tables
        try:
            yield deployment
        finally:
            deployment.stop()


def measure_server(contender: Contender, rounds: int) -> Figure:
    """Measure the start of a code server, until it has told all that it has."""
    weights, meter = [], LoadMeter()
    for _ in range(rounds):
        with contender.deploy() as deployment:
            began = time.monotonic()
            deployment.start_code_server()
            weights.append((*deployment.weigh("code server"), time.monotonic() - began))
    cpu_s, mb, seconds = map(statistics.median, zip(*weights, strict=True))
    return Figure(f"{cpu_s:.1f} CPU s, {mb:.0f} MB ({seconds:.1f} s)", meter.read())


def measure_worker(contender: Contender, rounds: int) -> Figure:
    """Measure run workers until their triggers, in a deployment where nothing else happens."""
    module = SMALLEST_WORKER if contender.name == "floor" else None
    with contender.deploy(_UNQUEUED, module) as deployment:
        deployment.start_code_server()
        deployment.start_webserver()
        meter, rows = LoadMeter(), []
        for dag, _ in zip(cycle(contender.fleet.upstreams), range(rounds), strict=False):
            began = time.time()
            deployment.materialize(*dag)
            trigger = _wait_for_trigger(contender.airflows, dag, began)
            weights = [trigger["worker"][name] for name in ("cpu_s", "pss_mb", "rss_mb")]
            rows.append([*weights, trigger["at"] - began])
        cpu_s, pss, rss, seconds = map(statistics.median, zip(*rows, strict=True))
        text = f"{cpu_s:.1f} CPU s, {pss:.0f} MB (RSS {rss:.0f}; {seconds:.1f} s)"
        return Figure(text, meter.read())


def _wait_for_trigger(airflows: Airflows, dag: Dag, since: float) -> dict[str, Any]:
    deadline = time.monotonic() + WORKER_S
    while time.monotonic() < deadline:
        for trigger in airflows.fetch_notes()["triggers"]:
            if (trigger["instance"], trigger["dag_id"]) == dag and trigger["at"] > since:
                return trigger
        time.sleep(0.2)
    raise FailedError(f"no trigger within {WORKER_S} s")


@contextmanager
def running(contender: Contender) -> Iterator[Deployment]:
    """Run a whole deployment, and return when it has settled: each instance was polled twice, and
    Dagster has stored of each asset how fresh it is, which it does once."""
    with contender.deploy() as deployment:
        deployment.start_code_server()
        deployment.start_webserver()
        deployment.start_daemon()
        deadline = time.monotonic() + SETTLE_S
        names = contender.fleet.dag_ids.keys()
        while time.monotonic() < deadline:
            polls = contender.airflows.fetch_notes()["polls"] if contender.polls else {}
            is_polled = all(len(polls.get(name, ())) > 1 for name in names)
            if (is_polled or not contender.polls) and deployment.has_stored_freshness():
                break
            time.sleep(2)
        yield deployment


def measure_idle(
    contender: Contender, deployment: Deployment, seconds: float
) -> tuple[Figure, Figure]:
    """Measure cost and intervals while nothing ends."""
    meter, began = LoadMeter(), time.time()
    before = _read_all_cpu_s(deployment)
    time.sleep(seconds)
    after, ended = _read_all_cpu_s(deployment), time.time()
    minutes = (ended - began) / 60
    costs = {name: (after[name] - before[name]) / minutes for name in after}
    parts = ", ".join(f"{name} {cost:.1f}" for name, cost in costs.items())
    load = meter.read()
    cost = Figure(f"{sum(costs.values()):.1f} CPU s a minute ({parts})", load)
    polls = contender.airflows.fetch_notes()["polls"]
    polls = {name: [(at, at) for at in polls.get(name, ())] for name in contender.fleet.dag_ids}
    ticks = deployment.fetch_ticks()
    spans = {name: ticks.get(name, []) for name in contender.deciding_sensors}
    for name, own in spans.items():
        if not name.endswith("events"):  # whose ticks decide again and again until they end
            spans[name] = [(begin, begin) for begin, _ in own]
    texts = [f"observation {_describe_gaps(polls, began, ended)}"] if contender.polls else []
    texts.append(f"automation and events {_describe_gaps(spans, began, ended)}")
    return cost, Figure("; ".join(texts), load)


def _read_all_cpu_s(deployment: Deployment) -> dict[str, float]:
    found = deployment.read_cpu_s()
    for process in psutil.Process().children():
        command = " ".join(process.cmdline())
        name = "PgBouncer" if "pgbouncer" in command else "PostgreSQL"
        if "postgres" in command:  # both have the server's folder in it
            found[name] = read_cpu_s([process, *process.children(recursive=True)])
    return found


def find_deciders(declared: Mapping[str, Any]) -> list[Literal["automation", "events"]]:
    """Return the kinds of sensors that decide when the DAGs of an instance run."""
    dags = [DagDeclaration.model_validate(dag) for dag in declared["dags"].values()]
    kinds = {dag.is_decided_by_events for dag in dags}
    return ["events" if kind else "automation" for kind in sorted(kinds)]


def _describe_gaps(
    spans: Mapping[str, Sequence[tuple[float, float]]], began: float, ended: float
) -> str:
    """Describe the longest times between two spans, by what was polled or has ticked."""
    gaps = find_longest_gaps(spans, began, ended)
    if not gaps:
        return "none"
    silent = gaps.count(ended - began)
    text = f"{max(gaps):.1f} s (median {statistics.median(gaps):.1f})"
    return f"{text}, {silent} of {len(gaps)} never" if silent else text


def find_longest_gaps(
    spans: Mapping[str, Sequence[tuple[float, float]]], began: float, ended: float
) -> list[float]:
    """Return the longest time between the spans of each name, or before the first or after the
    last one."""
    gaps = []
    for own in spans.values():
        within = [(begin, end) for begin, end in own if began < end and begin < ended]
        edges = [(began, began), *within, (ended, ended)]
        gaps.append(max(after[0] - before[1] for before, after in pairwise(edges)))
    return gaps


def measure_latency(contender: Contender, seconds: float) -> Figure:
    """Measure how long after the end of an upstream run its downstream DAG is triggered."""
    airflows, fleet = contender.airflows, contender.fleet
    began, meter = time.time(), LoadMeter()
    airflows.set_rate(fleet.ends_per_s)
    time.sleep(seconds)
    airflows.set_rate(0)
    load = meter.read()
    deadline = time.monotonic() + STRAGGLERS_S
    while True:
        notes = airflows.fetch_notes()
        delays = find_delays(fleet, notes, began)
        if math.inf not in delays or time.monotonic() > deadline:
            return Figure(_describe_delays(delays), load)
        time.sleep(1)


def find_delays(fleet: Fleet, notes: dict[str, Any], began: float) -> list[float]:
    """Return the seconds from each end since a moment to the first trigger of the downstream DAG
    after it; infinity without one."""
    triggers = defaultdict[Any, list[float]](list)
    for trigger in notes["triggers"]:
        triggers[trigger["instance"], trigger["dag_id"]].append(trigger["at"])
    downstreams = {upstream: downstream for downstream, upstream in fleet.upstreams.items()}
    delays = []
    for end in notes["ends"]:
        if end["at"] < began:
            continue
        own = triggers[downstreams[end["instance"], end["dag_id"]]]
        after = [at for at in own if at > end["at"]]
        delays.append(min(after, default=math.inf) - end["at"])
    return delays


def _describe_delays(delays: Sequence[float]) -> str:
    ordered = sorted(delays)
    p95 = ordered[math.ceil(len(ordered) * 0.95) - 1]
    third = max(1, len(delays) // 3)
    first, last = statistics.median(delays[:third]), statistics.median(delays[-third:])
    return (
        f"p95 {_show(p95)}, n {len(delays)}, median {_show(statistics.median(delays))} (first "
        f"third {_show(first)}, last {_show(last)}), worst {_show(ordered[-1])}, "
        f"{delays.count(math.inf)} never"
    )


def _show(seconds: float) -> str:
    return "never" if math.isinf(seconds) else f"{seconds:.1f} s"
