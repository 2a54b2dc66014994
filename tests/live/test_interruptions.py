"""All of Dagster is killed: while it executes, and while it reports a burst of finished runs.

The runs that the first kill interrupts are taken over once their workers count as dead. The tests
of observation happen meanwhile.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest

from federation_defs.airflow.models import DagRun
from federation_defs.naming import build_asset_key
from tests.conftest import Airflows
from tests.contract.observation.daemon import fetch_evaluations, fetch_reported_runs
from tests.contract.worlds import RealWorld, run_dag, trigger_surely, wait_for_end
from tests.live.chaos import report
from tests.live.federation import (
    BURST,
    NAMES,
    PACED,
    Dependency,
    Federation,
    set_duration,
    utc_now,
)
from tests.waiting import wait_for

RUNNING = Dependency("load_sales", "sales_metrics")
REQUESTED = Dependency("load_customers", "customer_metrics")
# `make soak` sets more of each.
RUNS = int(os.environ.get("BURST_RUNS", "60"))
ROUNDS = int(os.environ.get("BURST_ROUNDS", "1"))
pytestmark = pytest.mark.timeout(1200 + 2 * RUNS)
VISIBLE_WITHIN_S = 2.0  # after its end, a run may be missing from Airflow's lists for so long


@pytest.fixture(scope="module")
def interruption(
    request: pytest.FixtureRequest, federation: Federation, actions: Mapping[str, Future[Any]]
) -> datetime:
    """Kill and restart Dagster while one downstream DAG is running and another is requested.

    Returns:
        A time just before the upstream DAGs were triggered.
    """
    wait(actions.values())
    since = utc_now()
    set_duration(federation.clients["metrics"], 20, RUNNING.downstream)
    federation.run_upstream(RUNNING)
    federation.wait_for_downstream(RUNNING, since, "running")
    federation.run_upstream(REQUESTED)
    wait_for(
        lambda: federation.dagster.is_in_progress("metrics", REQUESTED.downstream),
        "a run is requested",
        interval_s=0.1,
    )
    request.getfixturevalue("outage")
    return since


def act_without_dagster(federation: Federation) -> None:
    set_duration(federation.clients["metrics"], 0, RUNNING.downstream)


@pytest.mark.usefixtures("interruption")
@pytest.mark.parametrize("number", range(ROUNDS))
def test_bursts_are_reported_once_and_in_order_though_dagster_is_killed_and_an_airflow_is_away(
    federation: Federation, number: int
) -> None:
    """Dagster is killed while it reports the burst in metrics, and can't reach warehouse."""
    federation.proxies["warehouse"].refuse()
    try:
        before = {name: len(list_reports(federation, name, BURST)) for name in NAMES}
        run_ids = {name: [f"burst__{number}__{uuid4()}" for _ in range(RUNS)] for name in NAMES}
        with ThreadPoolExecutor(8) as pool:
            triggered = [
                pool.submit(trigger_surely, federation.clients[name], BURST, run_id)
                for name, ids in run_ids.items()
                for run_id in ids
            ]

            def count_new() -> int:
                return len(list_reports(federation, "metrics", BURST)) - before["metrics"]

            wait_for(lambda: count_new() > 5, "the burst is being reported", interval_s=0.05)
            federation.dagster.kill()
            killed_at = count_new()
            for each in triggered:
                each.result()
        began = time.monotonic()
        federation.dagster.start()
    finally:
        federation.proxies["warehouse"].listen()

    assert killed_at < RUNS, "the whole burst was reported before the kill"
    for name in NAMES:
        wait_for(
            lambda name=name: (
                len(list_reports(federation, name, BURST)) >= before[name] + len(run_ids[name])
            ),
            f"the burst in {name} is reported",
            timeout_s=200 + RUNS / 2,
        )
    seconds = time.monotonic() - began
    report(
        f"{RUNS} runs in each Airflow: killed after {killed_at}, all reported {seconds:.0f} s later"
    )
    federation.wait_for_ticks()
    for name, ids in run_ids.items():
        reported = list_reports(federation, name, BURST)[before[name] :]
        assert Counter(metadata["Run ID"] for metadata in reported) == Counter(ids)
        assert_in_order([metadata["End"] for metadata in reported])
        evaluations = fetch_evaluations(federation.event_log, build_asset_key(name, BURST))
        evaluated = Counter(event.metadata["Run ID"].value for event in evaluations)
        # That of the run at which Dagster was killed may be stored again.
        counts = sorted(evaluated[run_id] for run_id in ids)
        assert counts[:-1] == [1] * (len(ids) - 1)
        assert counts[-1] <= 2


def list_reports(federation: Federation, name: str, dag_id: str) -> list[dict[str, Any]]:
    """Return the metadata of all materializations of a DAG's asset, the oldest first."""
    events = fetch_reported_runs(federation.event_log, build_asset_key(name, dag_id))
    return [{key: value.value for key, value in event.items()} for event in events]


def assert_in_order(ends: list[float]) -> None:
    latest = 0.0
    for end in ends:
        assert end > latest - VISIBLE_WITHIN_S
        latest = max(latest, end)


@pytest.mark.usefixtures("interruption")
def test_runs_that_fail_are_set_to_another_state_or_cleared_are_reported_as_what_they_are(
    federation: Federation, airflows: Airflows
) -> None:
    """In both Airflows at the same time, in which the DAG has the same name."""
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(change_runs, federation, airflows, name) for name in NAMES]:
            done.result()


def change_runs(federation: Federation, airflows: Airflows, name: str) -> None:
    world = RealWorld(
        federation.clients[name], PACED, airflows.env[f"{name.upper()}_AIRFLOW_USERNAME"]
    )
    set_duration(world.client, 0)
    key = build_asset_key(name, PACED)

    def wait_for_reports(run: DagRun, materializations: int, evaluations: list[bool]) -> None:
        """Wait for this many materializations, and for check evaluations that passed or not."""

        def is_reported() -> bool:
            evaluated = [
                event.passed
                for event in fetch_evaluations(federation.event_log, key)
                if event.metadata["Run ID"].value == run.run_id
            ]
            reports = list_reports(federation, name, PACED)
            count = sum(metadata["Run ID"] == run.run_id for metadata in reports)
            return (count, evaluated) == (materializations, evaluations)

        what = f"{run.run_id} has {materializations} materializations, evaluations {evaluations}"
        wait_for(is_reported, what)

    good = run_dag(world)
    with world.failing() as error:
        bad = run_dag(world)
    wait_for_reports(good, 1, [True])
    wait_for_reports(bad, 0, [False])
    evaluation = fetch_evaluations(federation.event_log, key)[-1]
    (log,) = [text for label, text in evaluation.metadata.items() if label.startswith("Log of ")]
    assert error in str(log.value)

    world.set_state(good.run_id, "failed")
    wait_for_reports(good, 1, [True, False])
    world.set_state(good.run_id, "success")
    wait_for_reports(good, 1, [True, False, True])

    world.clear(good.run_id)
    wait_for_end(world, good.run_id)
    wait_for_reports(good, 2, [True, False, True, True])
    world.clear(bad.run_id)
    wait_for_end(world, bad.run_id)
    wait_for_reports(bad, 1, [False, True])


def test_runs_that_a_kill_interrupts_are_taken_over_and_no_update_is_lost(
    federation: Federation, interruption: datetime
) -> None:
    since, interrupted = interruption, {}
    for dependency in (RUNNING, REQUESTED):
        run = federation.wait_for_downstream(dependency, since, "success")
        federation.wait_for_materialization("metrics", dependency.downstream, run, since)
        interrupted[dependency] = run
    for dependency in interrupted:
        wait_for(
            lambda dag_id=dependency.downstream: (
                not federation.dagster.is_in_progress("metrics", dag_id)
            ),
            f"{dependency.downstream} is not in progress",
            timeout_s=300,
        )

    federation.run_upstream(*interrupted)
    following = {
        dependency: federation.wait_for_downstream(dependency, since, "success", count=2)
        for dependency in interrupted
    }
    for dependency, run in following.items():
        federation.wait_for_materialization("metrics", dependency.downstream, run, since)
    federation.settle("metrics", *(dependency.downstream for dependency in interrupted))
    for dependency, first in interrupted.items():
        expected = [first.run_id, following[dependency].run_id]
        runs = federation.fetch_downstream_runs(dependency, since)
        assert [run.run_id for run in runs] == expected
        reports = federation.fetch_materializations("metrics", dependency.downstream, since)
        assert [event.run_id for event in reports] == expected[::-1]
        upstream = federation.fetch_materializations("warehouse", dependency.upstream, since)
        assert len(upstream) == 2
