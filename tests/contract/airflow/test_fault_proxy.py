"""Connections that break, stall or were closed: a right answer or a typed error, in time."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Barrier

import pytest
from werkzeug import Response

from federation_defs.errors import RunNotStartedError, UnreachableError
from tests.contract.clients import (
    SHORT_TIMEOUTS,
    SIGN_INS,
    ProxiedAirflow,
    Stopwatch,
    call_within,
    check_all_faults,
    declare_client,
    start_proxied_airflow,
)
from tests.contract.fakes.airflow import FakeAirflow, asks
from tests.contract.fakes.fault_proxy import Fault, FaultProxy, close, reset, stall
from tests.contract.fakes.faults import Act, hang_up

TRIGGER = "/dags/load_customers/dagRuns"
POSTED = "POST .*/dagRuns"
BREAKS = {
    "reset before the answer": reset(),
    "reset in the headers": reset(20),
    "reset in the body": reset(5, in_body=True),
    "closed before the answer": close(),
    "closed in the body": close(5, in_body=True),
}
STALLS = {
    "before the headers": stall(),
    "in the headers": stall(20),
    "in the body": stall(5, in_body=True),
}


@pytest.fixture
def proxied() -> Iterator[ProxiedAirflow]:
    with start_proxied_airflow() as proxied:
        yield proxied


def assert_works(proxied: ProxiedAirflow) -> None:
    proxied.proxy.mend()
    dags = call_within(60, proxied.client.fetch_dags)
    assert [dag.dag_id for dag in dags] == ["load_customers"]


@dataclass(frozen=True)
class Broken:
    """What becomes of reads whose every try breaks: by what breaks them.

    Attributes:
        seconds: That the last of them took.
    """

    proxied: Mapping[str, ProxiedAirflow]
    errors: Mapping[str, BaseException | None]
    seconds: float


@pytest.fixture(scope="module")
def broken() -> Iterator[Broken]:
    """All at a time, as four tries take a while."""
    names = [*BREAKS, "refused", "no sign-in"]
    with ExitStack() as running, ThreadPoolExecutor(len(names)) as threads:
        proxied = {name: running.enter_context(start_proxied_airflow()) for name in names}
        clients = {name: airflow.client for name, airflow in proxied.items()}
        clients["no sign-in"] = proxied["no sign-in"].declare_client()
        for name, fault in BREAKS.items():
            proxied[name].proxy.fail_all(fault)
        proxied["refused"].proxy.refuse()
        proxied["no sign-in"].proxy.fail_all(reset(), "POST /auth/token")
        with Stopwatch() as took:
            pending = {name: threads.submit(client.fetch_dags) for name, client in clients.items()}
            errors = {name: dags.exception(timeout=60) for name, dags in pending.items()}
        proxied["refused"].proxy.listen()
        yield Broken(proxied, errors, took.seconds)


def test_a_lasting_fault_is_reported_within_seconds(broken: Broken) -> None:
    assert {type(error) for error in broken.errors.values()} == {UnreachableError}
    assert "(Connection refused)" in str(broken.errors["refused"])
    assert broken.seconds < 20


def test_a_lasting_fault_is_tried_four_times(broken: Broken) -> None:
    asked = {name: broken.proxied[name].server.count("GET", "/dags") for name in BREAKS}
    assert asked == dict.fromkeys(BREAKS, 1 + 4)


def test_a_sign_in_that_breaks_is_tried_four_times_and_not_four_times_four(broken: Broken) -> None:
    """It is sent in the middle of another request, which is repeated too."""
    assert broken.proxied["no sign-in"].server.count("POST", "/auth/token") == 1 + 4


def test_a_mended_server_is_reached_again(broken: Broken) -> None:
    for proxied in broken.proxied.values():
        assert_works(proxied)


def test_a_connection_that_never_stands_is_given_up_at_its_time_out_and_not_tried_again() -> None:
    """As behind a firewall that drops what it does not like."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        port: int = silent.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]  # fill its queue: nobody accepts them
        for waiter in waiting:
            waiter.setblocking(False)
            waiter.connect_ex(("127.0.0.1", port))
        client = declare_client(f"http://127.0.0.1:{port}", http=SHORT_TIMEOUTS)
        with Stopwatch() as took, pytest.raises(UnreachableError, match="timed out") as error:
            call_within(60, client.fetch_dags)
        for waiter in waiting:
            waiter.close()
    assert error.value.is_late
    assert 3.9 < took.seconds < 60


def test_a_read_whose_connection_breaks_is_repeated() -> None:
    def check(proxied: ProxiedAirflow, fault: Fault) -> None:
        proxied.proxy.fail_next(fault)
        with Stopwatch() as took:
            dags = proxied.client.fetch_dags()
        assert [dag.dag_id for dag in dags] == ["load_customers"]
        assert proxied.server.count("GET", "/dags") == 3
        assert took.seconds < 60

    check_all_faults(BREAKS, check)


@pytest.mark.parametrize("api", ["v1", "v2"])
def test_a_trigger_whose_answer_gets_lost_is_adopted_and_not_sent_again(api: str) -> None:
    """Airflow 2 closes its connections after each answer, and Airflow 3 keeps them."""

    def check(proxied: ProxiedAirflow, fault: Fault) -> None:
        proxied.proxy.fail_next(fault, POSTED)
        with Stopwatch() as took:
            run = proxied.client.trigger_run("load_customers", "mine", {"day": "today"})
        assert (run.run_id, run.conf) == ("mine", {"day": "today"})
        assert proxied.server.count("POST", TRIGGER) == len(proxied.server.database.runs) == 1
        assert took.seconds < 60
        assert_works(proxied)

    check_all_faults(BREAKS | STALLS, check, api, **SHORT_TIMEOUTS)


@pytest.mark.parametrize("fault", [reset(), stall()], ids=["reset", "stall"])
def test_a_trigger_is_adopted_though_the_look_for_its_run_is_cut_once(fault: Fault) -> None:
    """Each fault counts by itself: a time-out before it says nothing about a reset after it."""
    with start_proxied_airflow(**SHORT_TIMEOUTS) as proxied:
        proxied.proxy.fail_next(fault, POSTED)
        proxied.proxy.fail_next(reset(), "GET .*/dagRuns/mine")
        assert proxied.client.trigger_run("load_customers", "mine").run_id == "mine"
        assert proxied.server.count("POST", TRIGGER) == 1


def test_a_trigger_that_was_not_done_is_reported_and_sent_once(proxied: ProxiedAirflow) -> None:
    proxied.server.fail_next(asks("POST", TRIGGER), hang_up)
    with pytest.raises(RunNotStartedError):
        proxied.client.trigger_run("load_customers", "mine")
    assert proxied.server.count("POST", TRIGGER) == 1
    assert_works(proxied)


def test_a_read_that_stalls_is_given_up_at_its_time_out_and_not_tried_again() -> None:
    def check(proxied: ProxiedAirflow, fault: Fault) -> None:
        proxied.proxy.fail_next(fault)
        with Stopwatch() as took, pytest.raises(UnreachableError, match="timed out") as error:
            proxied.client.fetch_dags()
        assert error.value.is_late
        assert 3.9 < took.seconds < 60
        assert proxied.server.count("GET", "/dags") == 2
        assert_works(proxied)

    check_all_faults(STALLS, check, **SHORT_TIMEOUTS)


def test_a_sign_in_that_stalls_is_given_up_at_its_time_out(proxied: ProxiedAirflow) -> None:
    proxied.proxy.fail_next(stall(), "POST /auth/token")
    with Stopwatch() as took, pytest.raises(UnreachableError, match="timed out"):
        proxied.declare_client(**SHORT_TIMEOUTS).fetch_dags()
    assert took.seconds < 60


@pytest.mark.parametrize("asked", ["GET .*/version", "POST /auth/token"])
def test_requests_at_a_time_to_a_server_that_stalls_do_not_queue_for_its_time_outs(
    proxied: ProxiedAirflow, asked: str
) -> None:
    """Concurrent callers share one request and its error."""
    proxied.proxy.fail_all(stall(), asked)
    client = proxied.declare_client(**SHORT_TIMEOUTS)
    with Stopwatch() as took, ThreadPoolExecutor(6) as threads:
        pending = [threads.submit(client.fetch_dags) for _ in range(6)]
        errors = [dags.exception(timeout=60) for dags in pending]
    assert {type(error) for error in errors} == {UnreachableError}
    assert took.seconds < 20


def test_connections_that_the_server_closed_meanwhile_cost_no_request(
    proxied: ProxiedAirflow,
) -> None:
    proxied.proxy.close_idle()
    assert_works(proxied)
    proxied.proxy.close_idle()
    assert proxied.client.trigger_run("load_customers", "mine").run_id == "mine"
    assert proxied.server.count("POST", TRIGGER) == 1
    assert proxied.server.count("GET", "/dags") == 2


def test_no_fault_takes_a_connection_from_the_pool() -> None:
    def check(proxied: ProxiedAirflow, fault: Fault) -> None:
        proxied.proxy.fail_all(fault)
        for _ in range(3):
            with pytest.raises(UnreachableError):
                proxied.client.session.request("PATCH", "/api/v2/dags")
        assert_works(proxied)
        assert_all_serve(proxied, connections=2)

    check_all_faults(BREAKS | STALLS, check, max_connections=2, **SHORT_TIMEOUTS)


def assert_all_serve(proxied: ProxiedAirflow, connections: int) -> None:
    """So many requests are at the server at a time: they wait there for each other."""
    meeting = Barrier(connections)

    def meet(act: Act) -> Response:
        meeting.wait(60)
        return act()

    proxied.server.fail_next(asks("GET", "/dags"), meet, times=connections)
    with ThreadPoolExecutor(connections) as threads:
        pending = [threads.submit(proxied.client.fetch_dags) for _ in range(connections)]
        assert [len(dags.result(timeout=60)) for dags in pending] == [1] * connections


def test_the_proxy_passes_all_on_when_nothing_is_wrong() -> None:
    with FakeAirflow("v2") as server, FaultProxy(server.url) as proxy:
        client = declare_client(proxy.url, SIGN_INS["v2"])
        assert [client.fetch_dags() for _ in range(3)] == [[], [], []]
        assert (proxy.total, proxy.peak) == (1, 1)
