"""Execution over two real Airflows and a real `dagster dev`, both of which are mistreated: workers
and code servers are killed, people cancel, all is triggered at once. One trigger is one DAG run,
and one success is one materialization, whoever reports it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import psutil
import pytest

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun
from federation_defs.errors import RunNotStartedError, UnreachableError
from federation_defs.naming import build_run_id
from tests.conftest import Airflows
from tests.contract.fakes.fault_proxy import trickle
from tests.live.chaos import (
    APIS,
    BURST,
    PACED,
    ROUNDS,
    STORM,
    Chaos,
    connect_as_demo,
    now,
    say,
    set_pace,
    start_chaos,
    wait_for_state,
)
from tests.live.chaos_dagster import MortalDagster
from tests.live.dagster_dev import FINISHED
from tests.waiting import wait_for

pytestmark = pytest.mark.timeout(300 + 60 * ROUNDS)

NAMES = list(APIS)
PACE_S = 5.0
SPAN_S = 10.0  # from the launch to about the end of a DAG run of that pace
LATE_S = 4.0  # a trigger, or its answer
STOPPED_WITHIN_S = 20.0
THREADS = 20
WORKER, CODE_SERVER = "the run worker", "the code server"


@pytest.fixture(scope="module")
def chaos(airflows: Airflows, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    with start_chaos(airflows, tmp_path_factory.mktemp("chaos")) as chaos:
        yield chaos


@pytest.mark.parametrize("killed", [WORKER, CODE_SERVER])
def test_whatever_dies_in_mid_run_a_trigger_is_one_dag_run_and_one_materialization(
    chaos: Chaos, killed: str
) -> None:
    since, began = now(), time.monotonic()
    expected: dict[str, list[tuple[str, str]]] = {name: [] for name in APIS}
    places: Counter[str] = Counter()
    for client in chaos.clients.values():
        set_pace(client, PACE_S)
    for number in range(ROUNDS):
        name, round_began = NAMES[number % 2], now()
        root = chaos.dagster.materialize(name, PACED)
        places[kill_at_random(chaos, name, root, killed)] += 1
        chaos.dagster.wait_for_attempts(root)
        run = (PACED, build_run_id(root))
        wait_for_state(chaos.clients[name], *run, "success")
        chaos.assert_truthful(name, round_began, [run])
        expected[name].append(run)
    rounds_s = time.monotonic() - began
    for name, runs in expected.items():  # and the retries that Dagster starts by itself?
        chaos.dagster.settle(name, PACED, seconds=5)
        chaos.assert_truthful(name, since, runs)
    say(f"{killed} killed {ROUNDS} times in {rounds_s:.0f} s, when the run was: {dict(places)}")


def kill_at_random(chaos: Chaos, name: str, root: str, killed: str) -> str:
    """Where the run was when its worker or its code server was killed; it goes on or is executed
    again by a person."""
    dagster = chaos.dagster
    time.sleep(chaos.random.uniform(0, SPAN_S))
    if killed == WORKER:
        wait_for(
            lambda: dagster.find_workers() or dagster.fetch_status(root) in FINISHED,
            "there is a worker to kill",
            interval_s=0.02,
        )
    where, workers = chaos.tell_where(name, root), dagster.find_workers()
    if killed == CODE_SERVER:
        dagster.kill_code_server()
    else:
        for worker in workers:
            worker.kill()
    is_patient = any(map(is_alive, workers)) and chaos.random.random() < 0.5
    end = recover(dagster, root, patience_s=60 if is_patient else 5)
    wait_for(lambda: not any(map(is_alive, workers)), "the workers have ended", timeout_s=90)
    dagster.wait_until_back()
    return f"{where}, then {end}"


def recover(dagster: MortalDagster, root: str, patience_s: float) -> str:
    """How a run ended that a person gave up after a while (whether its worker lives is not to be
    seen); unless it was a success, the person has executed it again."""
    deadline = time.monotonic() + patience_s
    while (status := dagster.fetch_status(root)) not in FINISHED:
        if time.monotonic() > deadline:
            dagster.terminate(root, is_forced=True)
        time.sleep(0.2)
    if status != "SUCCESS":
        wait_for(lambda: dagster.reexecute(root), f"{root} is executed again")
    return status.lower()


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


CANCEL_WHILE = ["queued", "running", "its answer is late", "it is on its way"]


@pytest.mark.parametrize("moment", CANCEL_WHILE)
def test_a_dagster_run_that_is_canceled_stops_its_dag_run(chaos: Chaos, moment: str) -> None:
    took_s = []
    for number in range(max(1, ROUNDS // 2)):
        name = NAMES[(number + CANCEL_WHILE.index(moment)) % 2]
        took_s.append(cancel(chaos, name, moment))
    say(f"canceled {len(took_s)} times while {moment}: {[round(one, 1) for one in took_s]} s")


def cancel(chaos: Chaos, name: str, moment: str) -> float:
    """Seconds from the word to the end of the run in Dagster and in Airflow."""
    dagster, client, proxy, since = chaos.dagster, chaos.clients[name], chaos.proxies[name], now()
    set_pace(client, 60)
    others = [(PACED, f"other__{uuid4()}")] if moment == "queued" else []
    for other in others:
        client.trigger_run(*other)
        wait_for_state(client, *other, "running")
    if moment == "its answer is late":
        proxy.lose_answer(trickle(65536, LATE_S))
    elif moment == "it is on its way":
        proxy.delay_trigger(LATE_S)
    root = dagster.materialize(name, PACED)
    run = (PACED, build_run_id(root))
    if moment == "it is on its way":
        wait_for(lambda: proxy.is_delaying, "the trigger is on its way", interval_s=0.05)
    else:
        wait_for_state(client, *run, "running" if moment == "running" else "queued", "running")
    time.sleep(chaos.random.uniform(0, LATE_S * 0.7))

    began = time.monotonic()
    assert dagster.terminate(root) is None
    assert dagster.wait_for_run(root, STOPPED_WITHIN_S) == "CANCELED"
    wait_for(lambda: not proxy.is_delaying, "the trigger has come through", interval_s=0.1)
    wait_for_state(client, *run, "failed", timeout_s=STOPPED_WITHIN_S)
    took_s = time.monotonic() - began
    for other in others:
        client.stop_run(*other)
    chaos.assert_truthful(name, since, [run, *others])
    assert [one.status for one in dagster.fetch_attempts(root)] == ["CANCELED"]
    return took_s


def test_twenty_triggers_at_once_are_twenty_runs(chaos: Chaos) -> None:
    """Each in both Airflows, whose SQLite databases may be locked for some of them."""
    times = max(1, ROUNDS // 4)
    began = time.monotonic()
    for _ in range(times):
        since = now()
        roots = {name: chaos.dagster.materialize(name, *STORM) for name in APIS}
        for name, root in roots.items():
            chaos.dagster.wait_for_run(root, timeout_s=240)
            chaos.assert_truthful(name, since, [(dag_id, build_run_id(root)) for dag_id in STORM])
            assert [one.status for one in chaos.dagster.fetch_attempts(root)] == ["SUCCESS"]
    say(f"{times} times {len(STORM)} triggers of each Airflow: {time.monotonic() - began:.0f} s")


@pytest.mark.parametrize("name", NAMES)
def test_whoever_triggers_the_same_at_once_gets_the_same_run(
    chaos: Chaos, airflows: Airflows, name: str
) -> None:
    since, began = now(), time.monotonic()
    run_ids = [f"storm__{uuid4()}" for _ in range(BURST)]
    troubles: Counter[str] = Counter()

    def trigger(client: AirflowClient, run_id: str) -> DagRun | None:
        try:
            return client.trigger_run(STORM[0], run_id)
        except (RunNotStartedError, UnreachableError) as error:  # both may be repeated
            troubles[str(error)[-60:]] += 1
            return None

    def trigger_all(first: int) -> list[str]:
        """The ids of the runs that one of many got, who all begin with another one."""
        client = connect_as_demo(airflows, name)
        wanted = [run_ids[(first + number) % BURST] for number in range(BURST)]
        return [wait_for(lambda one=one: trigger(client, one), one).run_id for one in wanted]

    with ThreadPoolExecutor(THREADS) as pool:
        for got in pool.map(trigger_all, range(THREADS)):
            assert sorted(got) == sorted(run_ids)
    took_s = time.monotonic() - began
    for run_id in run_ids:
        wait_for_state(chaos.clients[name], STORM[0], run_id, "success")
    chaos.assert_truthful(name, since, [(STORM[0], run_id) for run_id in run_ids])
    say(f"{THREADS} x {BURST} triggers in {name}: {took_s:.0f} s, {dict(troubles)}")
