"""Run workers and code servers are killed, runs are canceled, and everything is triggered at once.

One trigger stays one DAG run, and one success one materialization. Both Airflows are tested at the
same time.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from uuid import uuid4

import psutil
import pytest

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun
from federation_defs.errors import RunNotStartedError, UnreachableError
from federation_defs.naming import build_run_id
from tests.conftest import Airflows
from tests.contract.fakes.fault_proxy import trickle
from tests.live.chaos import CONCURRENT_TRIGGERS, ROUNDS, THREADS, make_random, report
from tests.live.dagster_api import FINISHED
from tests.live.federation import (
    NAMES,
    PACED,
    STORM,
    Federation,
    set_duration,
    utc_now,
    wait_for_state,
)
from tests.processes import is_running
from tests.waiting import wait_for

pytestmark = pytest.mark.timeout(1200 + 120 * ROUNDS)

DURATION_S = 5.0
LAUNCH_TO_END_S = 10.0  # about, for a DAG run of that duration
DELAY_S = 4.0  # of a trigger, or of its response
CANCELED_WITHIN_S = 180.0
WORKERS, CODE_SERVER = "the run workers", "the code server"


@pytest.fixture(scope="module")
def chance() -> random.Random:
    return make_random()


@pytest.mark.parametrize("killed", [WORKERS, CODE_SERVER])
def test_a_trigger_is_one_dag_run_and_one_materialization_when_dagsters_processes_die(
    federation: Federation, chance: random.Random, killed: str
) -> None:
    since, began = utc_now(), time.monotonic()
    runs: dict[str, list[tuple[str, str]]] = {name: [] for name in NAMES}
    progress: Counter[str] = Counter()
    for client in federation.clients.values():
        set_duration(client, DURATION_S)
    for _ in range(ROUNDS):
        round_began = utc_now()
        roots = {name: federation.dagster.materialize(name, PACED) for name in NAMES}
        progress.update(kill_at_random(federation, chance, roots, killed))
        for name, root in roots.items():
            federation.dagster.wait_for_attempts(root)
            run = (PACED, build_run_id(root))
            wait_for_state(federation.clients[name], *run, "success")
            federation.assert_reported_once(name, round_began, [run])
            runs[name].append(run)
    seconds = time.monotonic() - began
    federation.wait_for_ticks()  # Dagster's own retries must not add anything
    for name in NAMES:
        federation.wait_until_idle(name, PACED)
        federation.assert_reported_once(name, since, runs[name])
    report(
        f"{killed} killed {ROUNDS} times in {seconds:.0f} s, when the runs were {dict(progress)}"
    )


def kill_at_random(
    federation: Federation, chance: random.Random, roots: dict[str, str], killed: str
) -> list[str]:
    """Kill processes at a random moment of some runs, and bring the runs to an end.

    Returns:
        The progress of each run at the kill, and its status in the end.
    """
    dagster = federation.dagster
    time.sleep(chance.uniform(0, LAUNCH_TO_END_S))
    if killed == WORKERS:
        wait_for(
            lambda: (
                dagster.find_workers()
                or all(dagster.fetch_status(root) in FINISHED for root in roots.values())
            ),
            "there is a worker to kill",
            interval_s=0.2,
        )
    progress = {
        name: federation.describe_progress(name, root, PACED, build_run_id(root))
        for name, root in roots.items()
    }
    workers = dagster.find_workers()
    if killed == CODE_SERVER:
        dagster.kill_code_server()
    else:
        for worker in workers:
            with suppress(psutil.NoSuchProcess):  # it has just ended
                worker.kill()
    # A person can't see whether a worker lives: some wait for the run's end, others don't.
    waits_for_workers = any(map(is_running, workers)) and chance.random() < 0.5
    ends = {
        name: recover(federation, root, cancel_after_s=60 if waits_for_workers else 5)
        for name, root in roots.items()
    }
    wait_for(lambda: not any(map(is_running, workers)), "the workers have ended", timeout_s=180)
    return [f"{progress[name]}, then {end}" for name, end in ends.items()]


def recover(federation: Federation, root: str, cancel_after_s: float) -> str:
    """Do what a person does about an interrupted run: cancel it after a while, and re-execute it.

    Returns:
        The status in which the run ended. It was re-executed unless this is "success".
    """
    dagster, deadline = federation.dagster, time.monotonic() + cancel_after_s
    while (status := dagster.fetch_status(root)) not in FINISHED:
        if time.monotonic() > deadline:
            dagster.terminate(root, is_forced=True)
        time.sleep(0.2)
    if status != "SUCCESS":
        wait_for(lambda: dagster.reexecute(root), f"{root} is executed again")
    return status.lower()


QUEUED, RUNNING = "the DAG run is queued", "the DAG run is running"
RESPONSE_DELAYED, TRIGGER_DELAYED = "the response is delayed", "the trigger is delayed"


@pytest.mark.parametrize("moments", [(QUEUED, RUNNING), (RESPONSE_DELAYED, TRIGGER_DELAYED)])
def test_canceling_a_dagster_run_stops_its_dag_run(
    federation: Federation, chance: random.Random, moments: tuple[str, str]
) -> None:
    seconds: dict[str, list[float]] = {moment: [] for moment in moments}
    for number in range(max(1, ROUNDS // 2)):
        names = NAMES if number % 2 == 0 else NAMES[::-1]
        with ThreadPoolExecutor() as pool:
            canceling = {
                moment: pool.submit(cancel, federation, chance, name, moment)
                for name, moment in zip(names, moments, strict=True)
            }
        for moment, took in canceling.items():
            seconds[moment].append(round(took.result(), 1))
    report(f"canceled, and ended after so many seconds: {seconds}")


def cancel(federation: Federation, chance: random.Random, name: str, moment: str) -> float:
    """Return the seconds from the request to the end of the run in Dagster and in Airflow."""
    dagster, client, proxy = federation.dagster, federation.clients[name], federation.proxies[name]
    since = utc_now()
    set_duration(client, 120)
    # Only one run of the DAG can run at a time.
    running = [(PACED, f"other__{uuid4()}")] if moment == QUEUED else []
    for other in running:
        client.trigger_run(*other)
        wait_for_state(client, *other, "running")
    if moment == RESPONSE_DELAYED:
        proxy.lose_response(trickle(65536, DELAY_S), PACED)
    elif moment == TRIGGER_DELAYED:
        proxy.delay_trigger(DELAY_S, PACED)
    root = dagster.materialize(name, PACED)
    run = (PACED, build_run_id(root))
    if moment == TRIGGER_DELAYED:
        wait_for(lambda: proxy.is_delaying, "the trigger is delayed", interval_s=0.05)
    else:
        wait_for_state(client, *run, *(["running"] if moment == RUNNING else ["queued", "running"]))
    time.sleep(chance.uniform(0, DELAY_S * 0.7))

    began = time.monotonic()
    assert dagster.terminate(root) is None
    assert dagster.wait_for_run(root, CANCELED_WITHIN_S) == "CANCELED"
    wait_for(lambda: not proxy.is_delaying, "the trigger has arrived", interval_s=0.1)
    wait_for_state(client, *run, "failed", timeout_s=CANCELED_WITHIN_S)
    seconds = time.monotonic() - began
    for other in running:
        client.stop_run(*other)
    federation.assert_reported_once(name, since, [run, *running])
    assert [attempt.status for attempt in dagster.fetch_attempts(root)] == ["CANCELED"]
    return seconds


def test_twenty_triggers_at_once_in_both_airflows_are_twenty_runs_in_each(
    federation: Federation,
) -> None:
    """Their SQLite databases may be locked for some of the triggers."""
    times = max(1, ROUNDS // 4)
    began = time.monotonic()
    for _ in range(times):
        since = utc_now()
        roots = {name: federation.dagster.materialize(name, *STORM) for name in NAMES}
        for name, root in roots.items():
            federation.dagster.wait_for_run(root, timeout_s=400)
            runs = [(dag_id, build_run_id(root)) for dag_id in STORM]
            federation.assert_reported_once(name, since, runs)
            attempts = federation.dagster.fetch_attempts(root)
            assert [attempt.status for attempt in attempts] == ["SUCCESS"]
    report(f"{times} times {len(STORM)} triggers of each Airflow: {time.monotonic() - began:.0f} s")


def test_concurrent_triggers_of_the_same_run_id_get_the_same_run(
    federation: Federation, airflows: Airflows
) -> None:
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(trigger_same_runs, federation, airflows, name) for name in NAMES]:
            done.result()


def trigger_same_runs(federation: Federation, airflows: Airflows, name: str) -> None:
    """Trigger some runs of an Airflow by several clients, and check that each is one run."""
    since, began = utc_now(), time.monotonic()
    run_ids = [f"storm__{uuid4()}" for _ in range(CONCURRENT_TRIGGERS)]
    errors: Counter[str] = Counter()

    def trigger(client: AirflowClient, run_id: str) -> DagRun | None:
        try:
            return client.trigger_run(STORM[0], run_id)
        except (RunNotStartedError, UnreachableError) as error:  # both triggers may be repeated
            errors[str(error)[-60:]] += 1
            return None

    def trigger_all(first: int) -> list[str]:
        """Trigger all run ids, beginning with one of them, and return those of the runs."""
        client = airflows.connect(name)
        ordered = [run_ids[(first + number) % len(run_ids)] for number in range(len(run_ids))]
        return [
            wait_for(lambda run_id=run_id: trigger(client, run_id), run_id).run_id
            for run_id in ordered
        ]

    with ThreadPoolExecutor(THREADS) as pool:
        for triggered in pool.map(trigger_all, range(THREADS)):
            assert sorted(triggered) == sorted(run_ids)
    seconds = time.monotonic() - began
    for run_id in run_ids:
        wait_for_state(federation.clients[name], STORM[0], run_id, "success")
    federation.assert_reported_once(name, since, [(STORM[0], run_id) for run_id in run_ids])
    report(f"{THREADS} x {len(run_ids)} triggers in {name}: {seconds:.0f} s, {dict(errors)}")
