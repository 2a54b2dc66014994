"""Answers that trickle in, and long ones: a deadline holds for the whole, and for nothing less."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from federation_defs.airflow.models import TaskInstance
from federation_defs.errors import UnreachableError
from tests.contract.clients import (
    ProxiedAirflow,
    Stopwatch,
    call_within,
    check_all_faults,
    declare_client,
    start_proxied_airflow,
)
from tests.contract.fakes.airflow import FakeAirflow
from tests.contract.fakes.fault_proxy import Fault, trickle, trickle_chunks

# Of an answer; each pause is far below the read time-out.
DEADLINE_S = 4
TOO_SLOW = {
    "from the headers on": trickle(10, 0.3),
    "body with a length": trickle(30, 0.3, in_body=True),
    "body in chunks": trickle_chunks(30, 0.3),
}
SLOW_ENOUGH = {
    "from the headers on": trickle(400, 0.1),
    "body with a length": trickle(400, 0.1, in_body=True),
    "body in chunks": trickle_chunks(400, 0.1),
}
LONG = 50_000_000


@pytest.fixture
def proxied() -> Iterator[ProxiedAirflow]:
    with start_proxied_airflow(answer_timeout=DEADLINE_S) as proxied:
        lengthen(proxied)
        yield proxied


def lengthen(proxied: ProxiedAirflow) -> None:
    """Gives its list of DAGs some 2,500 bytes."""
    proxied.server.database.dags["load_customers"].description = "." * 1700


def test_an_answer_that_trickles_is_given_up_at_its_deadline_and_not_asked_for_again() -> None:
    def check(proxied: ProxiedAirflow, fault: Fault) -> None:
        lengthen(proxied)
        proxied.proxy.fail_next(fault)
        with Stopwatch() as took, pytest.raises(UnreachableError, match="timed out") as error:
            proxied.client.fetch_dags()
        assert error.value.is_late
        assert DEADLINE_S - 0.1 < took.seconds < 60
        assert proxied.server.count("GET", "/dags") == 2
        assert len(proxied.client.fetch_dags()) == 1

    check_all_faults(TOO_SLOW, check, answer_timeout=DEADLINE_S)


def test_answers_that_trickle_and_arrive_in_time_are_right() -> None:
    def check(proxied: ProxiedAirflow, fault: Fault) -> None:
        lengthen(proxied)
        proxied.proxy.fail_next(fault, times=9)
        with Stopwatch() as took:
            lists = [proxied.client.fetch_dags() for _ in range(9)]
        assert [dag.dag_id for dag in lists[0]] == ["load_customers"]
        assert lists == lists[:1] * 9
        assert proxied.server.count("GET", "/dags") == 10
        assert took.seconds > 6, "each answer has a deadline of its own, which was never near"

    check_all_faults(SLOW_ENOUGH, check, answer_timeout=6)


def test_a_token_that_trickles_is_given_up_at_its_deadline(proxied: ProxiedAirflow) -> None:
    proxied.proxy.fail_next(trickle(5, 0.3), "POST /auth/token")
    with Stopwatch() as took, pytest.raises(UnreachableError, match="timed out"):
        call_within(60, proxied.declare_client(answer_timeout=DEADLINE_S).fetch_dags)
    assert took.seconds < 60


def test_a_trigger_whose_answer_trickles_is_adopted(proxied: ProxiedAirflow) -> None:
    proxied.proxy.fail_next(trickle(10, 0.3), "POST .*/dagRuns")
    with Stopwatch() as took:
        run = call_within(60, lambda: proxied.client.trigger_run("load_customers", "mine"))
    assert run.run_id == "mine"
    assert len(proxied.server.database.runs) == 1
    assert took.seconds < 60


def test_no_deadline_takes_a_connection_from_the_pool() -> None:
    def check(proxied: ProxiedAirflow, fault: Fault) -> None:
        proxied.proxy.fail_next(fault, times=3)
        for _ in range(3):
            with pytest.raises(UnreachableError):
                proxied.client.fetch_dags()
        assert len(proxied.client.fetch_dags()) == 1

    check_all_faults(TOO_SLOW, check, max_connections=2, answer_timeout=DEADLINE_S)


@pytest.mark.parametrize("api", ["v1", "v2"])
def test_a_log_of_fifty_megabytes_is_read_in_time_and_to_its_end(api: str) -> None:
    line = "0123456789" * 1000
    with start_proxied_airflow(api) as proxied:
        database = proxied.server.database
        run = database.finish_run(database.start_run("load_customers", "mine"))
        run.tasks[0].log = [line] * (LONG // len(line))
        first: TaskInstance = proxied.client.fetch_task_instances("load_customers", "mine")[0]
        with Stopwatch() as took:
            log = proxied.client.fetch_log("load_customers", "mine", first)
    assert log.count(line) == LONG // len(line)
    assert log.endswith(line)
    assert took.seconds < 300


def test_ten_thousand_dags_are_all_there_in_their_order() -> None:
    with FakeAirflow("v2") as server:
        dag_ids = [f"dag_{number:05}" for number in range(10_000)]
        for dag_id in dag_ids:
            server.database.add_dag(dag_id)
        client = declare_client(server.url)
        with Stopwatch() as took:
            dags = client.fetch_dags()
    assert [dag.dag_id for dag in dags] == dag_ids
    assert server.count("GET", "/dags") == 100
    assert took.seconds < 120
