"""Many threads over one client: right answers, few connections, one sign-in for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from werkzeug import Response

from federation_defs.airflow.client import AirflowClient
from federation_defs.errors import AirflowError, SignInRefusedError
from tests.contract.clients import (
    SIGN_INS,
    ProxiedAirflow,
    call_within,
    declare_client,
    start_proxied_airflow,
)
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.faults import Act, answer

THREADS = 32
TOKEN = "/auth/token"


@pytest.fixture
def proxied() -> Iterator[ProxiedAirflow]:
    """A client that has not asked for anything yet, and 250 DAGs: three pages."""
    with start_proxied_airflow() as proxied:
        for number in range(249):
            proxied.server.database.add_dag(f"zebra_{number:03}")
        proxied.server.requests.clear()
        proxied.proxy.close_idle()
        proxied.proxy.total = proxied.proxy.peak = 0
        fresh = proxied.declare_client()
        yield ProxiedAirflow(proxied.server, proxied.proxy, fresh)


def ask_at_once(times: int, ask: Callable[[int], Any]) -> list[Any]:
    """What each of them got, or the error that it raised."""

    def run(number: int) -> Any:
        try:
            return ask(number)
        except AirflowError as error:
            return error

    def run_all() -> list[Any]:
        with ThreadPoolExecutor(THREADS) as threads:
            return list(threads.map(run, range(times)))

    return call_within(60, run_all)


def test_all_threads_get_their_own_answers_over_few_connections(proxied: ProxiedAirflow) -> None:
    dag_ids = [f"zebra_{number:03}" for number in range(249)]

    def ask(number: int) -> str:
        return proxied.client.fetch_dag(dag_ids[number]).dag_id

    assert ask_at_once(249, ask) == dag_ids
    assert proxied.proxy.peak <= 8
    assert proxied.proxy.total <= 8, "connections were not used again"
    assert proxied.server.count("POST", TOKEN) == 1
    assert proxied.server.count("GET", "/version") == 1


def test_threads_that_page_at_a_time_get_whole_lists_over_few_connections(
    proxied: ProxiedAirflow,
) -> None:
    lists = ask_at_once(THREADS, lambda _: proxied.client.fetch_dags())
    assert [len(dags) for dags in lists] == [250] * THREADS
    assert all(dags == lists[0] for dags in lists)
    assert proxied.proxy.peak <= 8
    assert proxied.server.count("GET", "/dags") == 3 * THREADS


def test_a_changed_secret_costs_one_sign_in_and_no_answer(
    proxied: ProxiedAirflow,
) -> None:
    def change(act: Act) -> Response:
        proxied.server.change_secret()
        return act()

    proxied.client.fetch_dag("zebra_000")
    spoiled: list[bool] = []

    def is_the_hundredth(_: Any) -> bool:
        spoiled.append(True)
        return len(spoiled) == 100

    proxied.server.fail_next(is_the_hundredth, change)
    dags = ask_at_once(249, lambda number: proxied.client.fetch_dag(f"zebra_{number:03}"))
    assert [type(dag).__name__ for dag in dags if isinstance(dag, Exception)] == []
    assert [dag.dag_id for dag in dags] == [f"zebra_{number:03}" for number in range(249)]
    assert proxied.server.count("POST", TOKEN) == 2
    assert proxied.proxy.peak <= 8


def test_concurrent_triggers_start_one_run_each(proxied: ProxiedAirflow) -> None:
    runs = ask_at_once(
        THREADS, lambda number: proxied.client.trigger_run("load_customers", f"mine_{number % 8}")
    )
    assert {run.run_id for run in runs} == {f"mine_{number}" for number in range(8)}
    assert len(proxied.server.database.runs) == 8


@pytest.mark.parametrize("api", ["v1", "v2"])
def test_one_connection_is_enough_for_all(api: str) -> None:
    """Signing in, renewing and paging in parallel need no second one."""
    with start_proxied_airflow(api, max_connections=1) as proxied:
        for number in range(249):
            proxied.server.database.add_dag(f"zebra_{number:03}")
        proxied.proxy.peak = 0
        client = proxied.declare_client(max_connections=1)
        lists = ask_at_once(8, lambda _: client.fetch_dags())
        proxied.server.change_secret()
        lists += ask_at_once(8, lambda _: client.fetch_dags())
        assert [len(dags) for dags in lists] == [250] * 16
        # The first client keeps one of its own.
        assert proxied.proxy.peak <= 2


def test_a_wrong_password_is_not_tried_by_every_thread(proxied: ProxiedAirflow) -> None:
    """So many tries at a time lock an account out, where it is a company's directory's."""
    client = declare_client(
        proxied.proxy.url,
        {**SIGN_INS["v2"], "password": "wrong"},
    )
    errors = ask_at_once(THREADS, lambda _: client.fetch_dags())
    assert {type(error) for error in errors} == {SignInRefusedError}
    assert proxied.server.count("POST", TOKEN) < THREADS / 2


def test_a_request_that_fails_leaves_the_others_alone(proxied: ProxiedAirflow) -> None:
    proxied.server.fail_next(asks("GET", "/dags/zebra_007"), answer(403, {"detail": "no"}))
    dags = ask_at_once(64, lambda number: proxied.client.fetch_dag(f"zebra_{number:03}"))
    assert [number for number, dag in enumerate(dags) if isinstance(dag, Exception)] == [7]


def test_a_page_that_fails_fails_the_list_and_not_the_next_one(proxied: ProxiedAirflow) -> None:
    def is_the_second_page(request: Any) -> bool:
        return request.path == "/dags" and request.query.get("offset") == "100"

    proxied.server.fail_next(is_the_second_page, answer(403, {"detail": "not this one"}))
    with pytest.raises(AirflowError, match="not this one"):
        proxied.client.fetch_dags()
    client: AirflowClient = proxied.client
    assert len(client.fetch_dags()) == 250
