"""Observation over two real Airflows and a real `dagster dev`: bursts, kills, an Airflow away, and
what people do to runs. Both Airflows have a DAG of the same name."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest
import yaml

from federation_defs.airflow.models import DagRun
from federation_defs.naming import build_asset_key
from tests.conftest import Airflows
from tests.contract.fakes.fault_proxy import FaultProxy
from tests.contract.observation.daemon import fetch_evaluations, fetch_reported_runs
from tests.contract.worlds import RealWorld, connect, run_dag, wait_for_end
from tests.live.dagster_dev import DagsterDev
from tests.waiting import wait_for

BURST = "burst"
DAGS = {"warehouse": "load_customers", "metrics": "customer_metrics"}
SIGN_INS = {"warehouse": "basic", "metrics": "password"}
# `make soak` has more of everything.
RUNS = int(os.environ.get("BURST_RUNS", "200"))
ROUNDS = int(os.environ.get("BURST_ROUNDS", "1"))
LATE_S = 2.0  # a row may be visible so long after the run's end


@dataclass
class Observing:
    """Both Airflows, each behind a proxy that only Dagster goes through, and its event log."""

    dagster: DagsterDev
    proxies: Mapping[str, FaultProxy]
    worlds: Mapping[str, RealWorld]
    log: dg.DagsterInstance

    def fetch_reported_runs(self, name: str, dag_id: str) -> list[dict[str, Any]]:
        """The materializations of a DAG: names and values of their metadata, the first first."""
        events = fetch_reported_runs(self.log, build_asset_key(name, dag_id))
        return [{key: value.value for key, value in event.items()} for event in events]

    def fetch_evaluations(self, name: str, dag_id: str, run_id: str) -> list[bool]:
        """Whether the check passed, each time that it was evaluated with this run."""
        events = fetch_evaluations(self.log, build_asset_key(name, dag_id))
        return [event.passed for event in events if event.metadata["Run ID"].value == run_id]

    def count_reports(self, name: str, dag_id: str, run_id: str) -> int:
        reported = self.fetch_reported_runs(name, dag_id)
        return sum(metadata["Run ID"] == run_id for metadata in reported)


@pytest.fixture(scope="module")
def observing(airflows: Airflows, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observing]:
    with ExitStack() as running:
        urls = {name: airflows.env[f"{name.upper()}_AIRFLOW_URL"] for name in DAGS}
        proxies = {name: running.enter_context(FaultProxy(url)) for name, url in urls.items()}
        worlds = {name: build_world(name, airflows) for name in DAGS}
        # By the port: the project's .env makes the address from it, and wins over one of ours.
        env = {
            f"{name.upper()}_PORT": proxy.url.rsplit(":", 1)[1] for name, proxy in proxies.items()
        }
        dagster = DagsterDev(tmp_path_factory.mktemp("observing"), {**airflows.env, **env})
        for name, dag_id in DAGS.items():
            declare_observed(dagster, name, [BURST, dag_id])
        dagster.start()
        running.callback(dagster.stop)
        wait_for(lambda: all(proxy.total for proxy in proxies.values()), "Dagster asks the proxies")
        log = running.enter_context(dg.DagsterInstance.from_config(str(dagster.home)))
        yield Observing(dagster, proxies, worlds, log)


def build_world(name: str, airflows: Airflows) -> RealWorld:
    """The Airflow itself, as whoever uses it sees it."""
    url, username, password = (
        airflows.env[f"{name.upper()}_AIRFLOW_{what}"] for what in ("URL", "USERNAME", "PASSWORD")
    )
    client = connect(url, SIGN_INS[name], password, name, username)
    return RealWorld(client, DAGS[name], username)


def declare_observed(dagster: DagsterDev, name: str, dag_ids: list[str]) -> None:
    """Has these DAGs for assets, without dependencies."""
    path = dagster.project / "federation_defs" / "defs" / name / "defs.yaml"
    declared = yaml.safe_load(path.read_text())
    declared["attributes"]["select"] = {"dag_ids": dag_ids}
    declared["attributes"].pop("dags", None)
    path.write_text(yaml.safe_dump(declared))


@pytest.mark.parametrize("number", range(ROUNDS))
def test_bursts_are_reported_once_and_in_order_whatever_is_killed_meanwhile(
    observing: Observing, number: int
) -> None:
    """In one Airflow a burst, in the midst of whose report Dagster is killed; in the other one at
    the same time, while it can't be reached."""
    observing.proxies["warehouse"].refuse()
    before = {name: len(observing.fetch_reported_runs(name, BURST)) for name in DAGS}
    run_ids = {name: [f"burst__{number}__{uuid4()}" for _ in range(RUNS)] for name in DAGS}
    with ThreadPoolExecutor(8) as pool:
        for name, ids in run_ids.items():
            client = observing.worlds[name].client
            pool.map(lambda run_id, client=client: client.trigger_run(BURST, run_id), ids)

        def count_new() -> int:
            return len(observing.fetch_reported_runs("metrics", BURST)) - before["metrics"]

        wait_for(lambda: count_new() > 5, "the burst is being reported", interval_s=0.05)
        observing.dagster.kill()
        killed_at = count_new()
    began = time.monotonic()
    observing.dagster.start()
    observing.proxies["warehouse"].listen()

    assert killed_at < RUNS, "the kill came too late to mean anything"
    for name, ids in run_ids.items():
        wait_for(
            lambda name=name, ids=ids: (
                len(observing.fetch_reported_runs(name, BURST)) >= before[name] + len(ids)
            ),
            f"the burst in {name} is reported",
            timeout_s=60 + RUNS / 4,
        )
    after_s = time.monotonic() - began
    told = f"killed after {killed_at} reports, all told {after_s:.0f} s later"
    print(f"\n{RUNS} runs in each Airflow: {told}")  # noqa: T201 - a figure of `make soak`
    for name in DAGS:
        observing.dagster.settle(name, BURST, seconds=6)
    for name, ids in run_ids.items():
        reported = observing.fetch_reported_runs(name, BURST)[before[name] :]
        assert Counter(metadata["Run ID"] for metadata in reported) == Counter(ids)
        assert_in_order([metadata["End"] for metadata in reported])
        evaluations = fetch_evaluations(observing.log, build_asset_key(name, BURST))
        evaluated = Counter(event.metadata["Run ID"].value for event in evaluations)
        assert {run_id: evaluated[run_id] for run_id in ids} == dict.fromkeys(ids, 1)


def assert_in_order(ends: list[float]) -> None:
    latest = 0.0
    for end in ends:
        assert end > latest - LATE_S
        latest = max(latest, end)


@pytest.fixture(params=DAGS)
def world(request: pytest.FixtureRequest, observing: Observing) -> RealWorld:
    return observing.worlds[request.param]


def test_what_people_do_to_runs_ends_up_right(observing: Observing, world: RealWorld) -> None:
    name = world.client.instance

    def wait_until_told(run: DagRun, reports: int, evaluations: list[bool]) -> None:
        def is_told() -> bool:
            seen = observing.fetch_evaluations(name, world.dag_id, run.run_id)
            count = observing.count_reports(name, world.dag_id, run.run_id)
            return (count, seen) == (reports, evaluations)

        wait_for(is_told, f"{run.run_id} is told with {reports} and {evaluations}", 40)

    good = run_dag(world)
    with world.failing() as words:
        bad = run_dag(world)
    wait_until_told(good, 1, [True])
    wait_until_told(bad, 0, [False])
    evaluation = fetch_evaluations(observing.log, build_asset_key(name, world.dag_id))[-1]
    (log,) = [text for key, text in evaluation.metadata.items() if key.startswith("Log of ")]
    assert words in str(log.value)

    world.set_state(good.run_id, "failed")
    wait_until_told(good, 1, [True, False])
    world.set_state(good.run_id, "success")
    wait_until_told(good, 1, [True, False, True])

    world.clear(good.run_id)
    wait_for_end(world, good.run_id)
    wait_until_told(good, 2, [True, False, True, True])
    world.clear(bad.run_id)
    wait_for_end(world, bad.run_id)
    wait_until_told(bad, 1, [False, True])
