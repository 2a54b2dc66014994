"""Execution in one process, over real Airflows that are out of reach at the worst moments: as they
are triggered, and while they are waited for. One trigger is one DAG run and one materialization."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime

import dagster as dg
import pytest

from federation_defs.airflow.client import AirflowClient
from federation_defs.naming import build_run_id
from federation_defs.timing import Timing
from tests.conftest import Airflows
from tests.contract.execution.executing import ExecutedRun, materialize
from tests.contract.fakes.fault_proxy import close, reset
from tests.live.chaos import (
    APIS,
    PACED,
    ROUNDS,
    STORM,
    LossyProxy,
    connect_as_demo,
    fetch_runs,
    make_random,
    now,
    say,
    set_pace,
)
from tests.live.chaos_airflow import MortalAirflow, start_airflows
from tests.waiting import wait_for

pytestmark = pytest.mark.timeout(300 + 60 * ROUNDS)

NAMES = list(APIS)
PATIENT = {"trigger": {"timeout": "5m"}}  # on a busy machine an Airflow takes a minute to start
LOSSES: dict[str, Callable[[LossyProxy], None]] = {
    "before Airflow acts": lambda proxy: proxy.lose_trigger(),
    "all of the answer": lambda proxy: proxy.lose_answer(reset()),
    "most of the answer": lambda proxy: proxy.lose_answer(close(40)),
    "the answer's body": lambda proxy: proxy.lose_answer(reset(5, in_body=True)),
}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with start_dagster() as instance:
        yield instance


def start_dagster() -> dg.DagsterInstance:
    """An empty one, that writes no log between the figures."""
    return dg.DagsterInstance.ephemeral(settings={"python_logs": {"python_log_level": "CRITICAL"}})


@pytest.mark.parametrize("name", NAMES)
def test_a_trigger_whose_answer_gets_lost_is_one_dag_run(
    airflows: Airflows, instance: dg.DagsterInstance, name: str
) -> None:
    random, since, began = make_random(), now(), time.monotonic()
    lost: Counter[str] = Counter()
    executed = []
    proxy = LossyProxy(connect_as_demo(airflows, name).url)
    with proxy:
        client = connect_as_demo(airflows, name, proxy.url)
        for number in range(ROUNDS + 1):
            # Each loss in turn, and then by chance more of them, on the way of the next trigger.
            losses = [list(LOSSES)[number % len(LOSSES)], *random.sample(list(LOSSES), number % 3)]
            for loss in losses:
                LOSSES[loss](proxy)
                lost[loss] += 1
            executed.append(
                materialize(
                    client, {STORM[0]: {"trigger": {"timeout": "5m"}}}, instance, timing=Timing()
                )
            )
            proxy.mend()
    assert_truthful(connect_as_demo(airflows, name), since, STORM[0], executed)
    say(f"{len(executed)} triggers of {name}, {time.monotonic() - began:.0f} s, lost: {dict(lost)}")


@pytest.fixture(scope="module")
def mortals(
    airflows: Airflows, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, MortalAirflow]]:
    """Airflows that no other test uses, with the demo's accounts."""
    with start_airflows(airflows, tmp_path_factory.mktemp("mortal")) as mortals:
        yield mortals


@pytest.mark.parametrize("loss", ["while the DAG runs", "and the DAG ends meanwhile"])
def test_a_wait_survives_that_airflow_is_killed_and_started_again(
    mortals: dict[str, MortalAirflow], loss: str
) -> None:
    survive = survive_a_run if loss == "while the DAG runs" else survive_an_end
    with ThreadPoolExecutor() as pool:
        away_s = dict(zip(mortals, pool.map(survive, mortals.values()), strict=True))
    say(f"away {loss}, for s: { {name: round(away) for name, away in away_s.items()} }")


def survive_a_run(airflow: MortalAirflow) -> float:
    """Seconds without the API, while a task was at work."""
    since = now()
    set_pace(airflow.client, 12)
    with waiting_for(airflow, PACED) as (run_id, waiting):
        wait_for(lambda: airflow.is_pacing(run_id), "the task is at work")
        airflow.kill(airflow.server)
        began = time.monotonic()
        airflow.start(airflow.server)
        wait_for(airflow.is_answering, "the API answers", timeout_s=120)
        away_s = time.monotonic() - began
        executed = waiting.result(120)
    assert_truthful(airflow.client, since, PACED, [executed])
    return away_s


def survive_an_end(airflow: MortalAirflow) -> float:
    """Seconds without the API, in which all else was started again too and a DAG run ended."""
    since = now()
    airflow.kill("scheduler")
    with waiting_for(airflow, STORM[1]) as (run_id, waiting):
        wait_for(lambda: airflow.read_state(run_id) == "queued", "no scheduler takes it")
        airflow.kill(airflow.server)
        began = time.monotonic()
        airflow.start("scheduler")
        wait_for(lambda: airflow.read_state(run_id) == "success", "the run ends", timeout_s=120)
        airflow.start(airflow.server)
        wait_for(airflow.is_answering, "the API answers", timeout_s=120)
        away_s = time.monotonic() - began
        executed = waiting.result(120)
    assert_truthful(airflow.client, since, STORM[1], [executed])
    return away_s


@contextmanager
def waiting_for(airflow: MortalAirflow, dag_id: str) -> Iterator[tuple[str, Future[ExecutedRun]]]:
    """A materialization that goes on, and the id of its DAG run."""
    with start_dagster() as instance, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(materialize, airflow.client, {dag_id: PATIENT}, instance)
        runs = wait_for(lambda: instance.get_runs() or None, "Dagster runs it", interval_s=0.05)
        yield build_run_id(runs[0].run_id), waiting


def assert_truthful(
    client: AirflowClient,
    since: datetime,
    dag_id: str,
    executed: list[ExecutedRun],
) -> None:
    """Each was a success, of one DAG run, and one materialization; there were no other runs."""
    run_ids = [build_run_id(executed.run_id) for executed in executed]
    assert [executed.failure for executed in executed] == [None] * len(executed)
    runs = fetch_runs(client, since, {dag_id})
    assert [(run.run_id, run.state) for run in runs] == [(one, "success") for one in run_ids]
    for run, run_id in zip(executed, run_ids, strict=True):
        assert run.materialized == [dag_id]
        assert run.metadata[dag_id]["Run ID"].value == run_id
