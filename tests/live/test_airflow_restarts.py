"""Execution while a real Airflow is unreachable: during a trigger, and while its run is waited for.

The executions happen in this process. One trigger stays one DAG run and one materialization.
"""

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
from tests.live.chaos import ROUNDS, make_random, report
from tests.live.federation import NAMES, PACED, UNWATCHED, fetch_runs, set_duration, utc_now
from tests.live.lossy_proxy import LossyProxy
from tests.live.restartable_airflow import RestartableAirflow, start_airflows
from tests.waiting import wait_for

pytestmark = pytest.mark.timeout(1200 + 60 * ROUNDS)

LONG_TIMEOUT = {"trigger": {"timeout": "10m"}}  # on a busy machine an Airflow starts in minutes
LOSSES: dict[str, Callable[[LossyProxy], None]] = {
    "before Airflow receives it": lambda proxy: proxy.lose_trigger(),
    "all of the response": lambda proxy: proxy.lose_response(reset()),
    "most of the response": lambda proxy: proxy.lose_response(close(40)),
    "the response's body": lambda proxy: proxy.lose_response(reset(5, in_body=True)),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_trigger_whose_response_is_lost_is_one_dag_run(airflows: Airflows, name: str) -> None:
    random, since, began = make_random(), utc_now(), time.monotonic()
    lost: Counter[str] = Counter()
    executed = []
    proxy = LossyProxy(airflows.connect(name).url)
    with dg.DagsterInstance.ephemeral() as instance, proxy:
        client = airflows.connect(name, proxy.url)
        for number in range(max(3, ROUNDS)):
            # Each loss in turn, and for the triggers that follow at once others by chance.
            losses = [list(LOSSES)[number % len(LOSSES)], *random.sample(list(LOSSES), number % 3)]
            for loss in losses:
                LOSSES[loss](proxy)
                lost[loss] += 1
            executed.append(execute(client, UNWATCHED, instance))
            proxy.mend()
    assert_executed_once(airflows.connect(name), since, UNWATCHED, executed)
    seconds = time.monotonic() - began
    report(f"{len(executed)} triggers of {name}, {seconds:.0f} s, lost: {dict(lost)}")


@pytest.fixture(scope="module")
def restartable(
    airflows: Airflows, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, RestartableAirflow]]:
    with start_airflows(airflows, tmp_path_factory.mktemp("restartable")) as restartable:
        yield restartable


def restart_during_a_task(airflow: RestartableAirflow) -> float:
    """Return the seconds without the API, during which a task runs on."""
    since = utc_now()
    set_duration(airflow.client, 12)
    with executing(airflow, PACED) as (run_id, execution):
        wait_for(lambda: airflow.is_task_working(run_id), "the task works", interval_s=0.5)
        airflow.kill(airflow.server)
        began = time.monotonic()
        airflow.start(airflow.server)
        wait_for(airflow.is_answering, "the API answers", timeout_s=240)
        seconds = time.monotonic() - began
        executed = execution.result(240)
    assert_executed_once(airflow.client, since, PACED, [executed])
    return seconds


def restart_while_a_run_ends(airflow: RestartableAirflow) -> float:
    """Return the seconds without the API, during which a DAG run starts and ends."""
    since = utc_now()
    airflow.kill("scheduler")
    with executing(airflow, UNWATCHED) as (run_id, execution):
        wait_for(lambda: airflow.read_state(run_id) == "queued", "the run is queued")
        airflow.kill(airflow.server)
        began = time.monotonic()
        airflow.start("scheduler")
        wait_for(lambda: airflow.read_state(run_id) == "success", "the run ends", timeout_s=240)
        airflow.start(airflow.server)
        wait_for(airflow.is_answering, "the API answers", timeout_s=240)
        seconds = time.monotonic() - began
        executed = execution.result(240)
    assert_executed_once(airflow.client, since, UNWATCHED, [executed])
    return seconds


@pytest.mark.soak
@pytest.mark.parametrize("restart", [restart_during_a_task, restart_while_a_run_ends])
def test_an_execution_survives_a_kill_and_restart_of_airflow(
    restartable: dict[str, RestartableAirflow], restart: Callable[[RestartableAirflow], float]
) -> None:
    with ThreadPoolExecutor() as pool:
        seconds = dict(zip(restartable, pool.map(restart, restartable.values()), strict=True))
    rounded = {name: round(value) for name, value in seconds.items()}
    report(f"{restart.__name__}, seconds without the API: {rounded}")


@contextmanager
def executing(
    airflow: RestartableAirflow, dag_id: str
) -> Iterator[tuple[str, Future[ExecutedRun]]]:
    """Materialize a DAG's asset in a thread, and give the id of its DAG run and the execution."""
    with dg.DagsterInstance.ephemeral() as instance, ThreadPoolExecutor(1) as pool:
        execution = pool.submit(execute, airflow.client, dag_id, instance)
        runs = wait_for(lambda: instance.get_runs() or None, "Dagster runs it", interval_s=0.05)
        yield build_run_id(runs[0].run_id), execution


def execute(client: AirflowClient, dag_id: str, instance: dg.DagsterInstance) -> ExecutedRun:
    """Materialize a DAG's asset, whose log stays out of the figures. The `python_logs` of an
    instance would do that too, but two executions at a time may deadlock by them (1.13)."""
    dags = {dag_id: LONG_TIMEOUT}
    return materialize(client, dags, instance, timing=Timing(), is_printed=False)


def assert_executed_once(
    client: AirflowClient, since: datetime, dag_id: str, executed: list[ExecutedRun]
) -> None:
    """Check that each execution succeeded with one DAG run, and that there are no others."""
    run_ids = [build_run_id(execution.run_id) for execution in executed]
    assert [execution.failure for execution in executed] == [None] * len(executed)
    runs = fetch_runs(client, since, {dag_id})
    expected = [(run_id, "success") for run_id in run_ids]
    assert [(run.run_id, run.state) for run in runs] == expected
    for execution, run_id in zip(executed, run_ids, strict=True):
        assert execution.materialized == [dag_id]
        assert execution.metadata[dag_id]["Run ID"].value == run_id
