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
from tests.contract.declaring import (
    QUICK,
    SIGN_INS,
    Reached,
    Stopwatch,
    declare,
    for_each_fault,
    reach,
    within,
)
from tests.contract.fakes.airflow import FakeAirflow, asks
from tests.contract.fakes.fault_proxy import FaultProxy
from tests.contract.fakes.faults import Act, hang_up
from tests.contract.fakes.spoiling import Fault, close, reset, stall

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
def reached() -> Iterator[Reached]:
    with reach() as reached:
        yield reached


def assert_works(reached: Reached) -> None:
    reached.proxy.mend()
    dags = within(5, reached.client.fetch_dags)
    assert [dag.dag_id for dag in dags] == ["load_customers"]


@dataclass(frozen=True)
class Broken:
    """What becomes of reads whose every try breaks: by what breaks them.

    Attributes:
        seconds: That the last of them took.
    """

    reached: Mapping[str, Reached]
    errors: Mapping[str, BaseException | None]
    seconds: float


@pytest.fixture(scope="module")
def broken() -> Iterator[Broken]:
    """All at a time, as four tries take a while."""
    names = [*BREAKS, "refused", "no sign-in"]
    with ExitStack() as running, ThreadPoolExecutor(len(names)) as threads:
        reached = {name: running.enter_context(reach()) for name in names}
        clients = {name: one.client for name, one in reached.items()}
        clients["no sign-in"] = reached["no sign-in"].declare()
        for name, fault in BREAKS.items():
            reached[name].proxy.fail_all(fault)
        reached["refused"].proxy.refuse()
        reached["no sign-in"].proxy.fail_all(reset(), "POST /auth/token")
        with Stopwatch() as took:
            asking = {name: threads.submit(one.fetch_dags) for name, one in clients.items()}
            errors = {name: dags.exception(timeout=30) for name, dags in asking.items()}
        reached["refused"].proxy.listen()
        yield Broken(reached, errors, took.seconds)


def test_what_breaks_every_time_is_told_in_seconds(broken: Broken) -> None:
    assert {type(error) for error in broken.errors.values()} == {UnreachableError}
    assert "(Connection refused)" in str(broken.errors["refused"])
    assert broken.seconds < 6


def test_what_breaks_every_time_is_tried_four_times(broken: Broken) -> None:
    asked = {name: broken.reached[name].server.count("GET", "/dags") for name in BREAKS}
    assert asked == dict.fromkeys(BREAKS, 1 + 4)


def test_a_sign_in_that_breaks_is_tried_four_times_and_not_four_times_four(broken: Broken) -> None:
    """It is sent in the middle of another request, which is repeated too."""
    assert broken.reached["no sign-in"].server.count("POST", "/auth/token") == 1 + 4


def test_what_was_broken_is_reached_when_it_is_mended(broken: Broken) -> None:
    for reached in broken.reached.values():
        assert_works(reached)


def test_a_connection_that_never_stands_is_given_up_at_its_time_out_and_not_tried_again() -> None:
    """As behind a firewall that drops what it does not like."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        port: int = silent.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]  # fill its queue: nobody accepts them
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        client = declare(f"http://127.0.0.1:{port}", http=QUICK)
        with Stopwatch() as took, pytest.raises(UnreachableError, match="timed out") as error:
            within(10, client.fetch_dags)
        for one in waiting:
            one.close()
    assert error.value.is_late
    assert 0.4 < took.seconds < 1.5


def test_a_read_whose_connection_breaks_is_repeated() -> None:
    def check(reached: Reached, fault: Fault) -> None:
        reached.proxy.fail_next(fault)
        with Stopwatch() as took:
            dags = reached.client.fetch_dags()
        assert [dag.dag_id for dag in dags] == ["load_customers"]
        assert reached.server.count("GET", "/dags") == 3
        assert took.seconds < 2

    for_each_fault(BREAKS, check)


@pytest.mark.parametrize("api", ["v1", "v2"])
def test_a_trigger_whose_answer_gets_lost_is_adopted_and_not_sent_again(api: str) -> None:
    """Airflow 2 closes its connections after each answer, and Airflow 3 keeps them."""

    def check(reached: Reached, fault: Fault) -> None:
        reached.proxy.fail_next(fault, POSTED)
        with Stopwatch() as took:
            run = reached.client.trigger_run("load_customers", "mine", {"day": "today"})
        assert (run.run_id, run.conf) == ("mine", {"day": "today"})
        assert reached.server.count("POST", TRIGGER) == len(reached.server.database.runs) == 1
        assert took.seconds < 2
        assert_works(reached)

    for_each_fault(BREAKS | STALLS, check, api)


@pytest.mark.parametrize("fault", [reset(), stall()], ids=["reset", "stall"])
def test_a_trigger_is_adopted_though_the_look_for_its_run_is_cut_once(
    reached: Reached, fault: Fault
) -> None:
    """Each fault is judged by itself: a time-out before says nothing about a reset after it."""
    reached.proxy.fail_next(fault, POSTED)
    reached.proxy.fail_next(reset(), "GET .*/dagRuns/mine")
    assert reached.client.trigger_run("load_customers", "mine").run_id == "mine"
    assert reached.server.count("POST", TRIGGER) == 1


def test_a_trigger_that_was_not_done_is_told_as_such_and_sent_once(reached: Reached) -> None:
    reached.server.fail_next(asks("POST", TRIGGER), hang_up)
    with pytest.raises(RunNotStartedError):
        reached.client.trigger_run("load_customers", "mine")
    assert reached.server.count("POST", TRIGGER) == 1
    assert_works(reached)


def test_a_read_that_stalls_is_given_up_at_its_time_out_and_not_tried_again() -> None:
    def check(reached: Reached, fault: Fault) -> None:
        reached.proxy.fail_next(fault)
        with Stopwatch() as took, pytest.raises(UnreachableError, match="timed out") as error:
            reached.client.fetch_dags()
        assert error.value.is_late
        assert 0.4 < took.seconds < 1.5
        assert reached.server.count("GET", "/dags") == 2
        assert_works(reached)

    for_each_fault(STALLS, check)


def test_a_sign_in_that_stalls_is_given_up_at_its_time_out(reached: Reached) -> None:
    reached.proxy.fail_next(stall(), "POST /auth/token")
    with Stopwatch() as took, pytest.raises(UnreachableError, match="timed out"):
        reached.declare().fetch_dags()
    assert took.seconds < 1.5


@pytest.mark.parametrize("asked", ["GET .*/version", "POST /auth/token"])
def test_requests_at_a_time_to_a_server_that_stalls_do_not_queue_for_its_time_outs(
    reached: Reached, asked: str
) -> None:
    """Who waits for what another one asks has been waiting as long as that one."""
    reached.proxy.fail_all(stall(), asked)
    client = reached.declare()
    with Stopwatch() as took, ThreadPoolExecutor(6) as threads:
        asking = [threads.submit(client.fetch_dags) for _ in range(6)]
        errors = [dags.exception(timeout=30) for dags in asking]
    assert {type(error) for error in errors} == {UnreachableError}
    assert took.seconds < 1.5


def test_connections_that_the_server_closed_meanwhile_cost_no_request(reached: Reached) -> None:
    reached.proxy.close_idle()
    assert_works(reached)
    reached.proxy.close_idle()
    assert reached.client.trigger_run("load_customers", "mine").run_id == "mine"
    assert reached.server.count("POST", TRIGGER) == 1
    assert reached.server.count("GET", "/dags") == 2


def test_no_fault_takes_a_connection_from_the_pool() -> None:
    def check(reached: Reached, fault: Fault) -> None:
        reached.proxy.fail_all(fault)
        for _ in range(4):
            with pytest.raises(UnreachableError):
                reached.client.session.request("PATCH", "/api/v2/dags")
        assert_works(reached)
        assert_all_serve(reached, connections=2)

    for_each_fault(BREAKS | STALLS, check, max_connections=2, read_timeout=0.8)


def assert_all_serve(reached: Reached, connections: int) -> None:
    """So many requests are at the server at a time: they wait there for each other."""
    meeting = Barrier(connections)

    def meet(act: Act) -> Response:
        meeting.wait(2)
        return act()

    reached.server.fail_next(asks("GET", "/dags"), meet, times=connections)
    with ThreadPoolExecutor(connections) as threads:
        asking = [threads.submit(reached.client.fetch_dags) for _ in range(connections)]
        assert [len(dags.result(timeout=10)) for dags in asking] == [1] * connections


def test_the_proxy_passes_all_on_when_nothing_is_wrong() -> None:
    with FakeAirflow("v2") as server, FaultProxy(server.url) as proxy:
        client = declare(proxy.url, SIGN_INS["v2"])
        assert [client.fetch_dags() for _ in range(3)] == [[], [], []]
        assert (proxy.total, proxy.peak) == (1, 1)
