"""Name and password traded for a session, where an Airflow 2 takes one, and where it does not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from dotenv import dotenv_values
from werkzeug import Response

from federation_defs.airflow.auth import REQUESTS_BEFORE_LOGIN
from federation_defs.airflow.client import AirflowClient
from federation_defs.errors import PermissionMissingError
from tests.conftest import ROOT, Airflows
from tests.contract.clients import declare_client
from tests.contract.conftest import Airflow, StartAirflow
from tests.contract.fakes.airflow import PASSWORD, asks
from tests.contract.fakes.fault_proxy import FaultProxy
from tests.contract.fakes.faults import answer
from tests.contract.worlds import connect

FORM = '<form method="post"><input id="csrf_token" name="csrf_token" type="hidden" value="c5f">'
MANY = REQUESTS_BEFORE_LOGIN * 4


@pytest.fixture
def seen(airflows: Airflows) -> Iterator[FaultProxy]:
    """What passes on the way to a real Airflow 2.11 with the `session` back end."""
    with FaultProxy(airflows.warehouse.url) as proxy:
        yield proxy


def read_signatures(proxy: FaultProxy) -> list[str]:
    """How each request to the API was signed in: "Basic", "session" or ""."""
    heads = re.findall(rb"(?s)GET /api/v1/dags\S* .*?\r\n\r\n", bytes(proxy.received))
    found = [re.search(rb"Authorization: (Basic) |Cookie: (session)=", head) for head in heads]
    return [(match[1] or match[2]).decode() if match else "" for match in found]


@pytest.mark.real_airflows
def test_many_requests_use_a_session(seen: FaultProxy) -> None:
    settings = dotenv_values(ROOT / ".env.example")
    client = connect(seen.url, "basic", settings["WAREHOUSE_AIRFLOW_PASSWORD"] or "", "warehouse")
    for _ in range(MANY):
        client.fetch_dag("load_customers")
    assert read_signatures(seen) == ["Basic"] * REQUESTS_BEFORE_LOGIN + ["session"] * (
        MANY - REQUESTS_BEFORE_LOGIN
    )


@pytest.fixture
def airflow_v1(start_airflow: StartAirflow) -> Airflow:
    airflow = start_airflow("v1")
    airflow.database.add_dag("a")
    return airflow


def offer_login(airflow: Airflow, **answered: str) -> None:
    """Has the next sign-in by the form end so."""
    begun = {"Set-Cookie": "session=begun; HttpOnly; Path=/"}
    airflow.server.fail_next(asks("GET", "/login/"), answer(200, FORM, begun))
    airflow.server.fail_next(asks("POST", "/login/"), answer(302, "", answered))


def ask(client: AirflowClient, times: int = MANY) -> None:
    for _ in range(times):
        assert client.fetch_dag("a").dag_id == "a"


def test_without_a_login_page_name_and_password_are_used(airflow_v1: Airflow) -> None:
    ask(airflow_v1.client)
    assert airflow_v1.server.count("GET", "/login/") == 1
    assert airflow_v1.server.count("POST", "/login/") == 0
    assert airflow_v1.server.count("GET", "/dags/a") == MANY


def test_a_session_that_the_api_refuses_is_tried_once(airflow_v1: Airflow) -> None:
    """As it is without the `session` back end."""
    offer_login(airflow_v1, **{"Set-Cookie": "session=in; Path=/", "Location": "/home"})
    ask(airflow_v1.client)
    assert airflow_v1.server.count("POST", "/login/") == 1
    assert airflow_v1.server.count("GET", "/dags/a") == MANY + 1


def test_of_two_session_cookies_the_one_that_a_browser_would_send_is_used(
    start_airflow: StartAirflow,
) -> None:
    """Airflow and a proxy in front of it may both set one."""
    airflow = start_airflow("v1")
    airflow.database.add_dag("a")
    pages, apis = ("session=page; Path=/login"), ("session=api; Path=/")
    cookies = [("Set-Cookie", pages), ("Set-Cookie", apis)]
    form = Response(FORM, 200, cookies)
    landed = Response("", 302, [*cookies, ("Location", "/home")])
    airflow.server.fail_next(asks("GET", "/login/"), lambda _: form)
    airflow.server.fail_next(asks("POST", "/login/"), lambda _: landed)
    with FaultProxy(airflow.server.url) as proxy:
        ask(connect(proxy.url, "basic", PASSWORD))
        heads = [head for head in bytes(proxy.received).split(b"\r\n\r\n") if b"Cookie: " in head]
    sent = [re.sub(rb"(?s) HTTP.*Cookie: (\S*).*", rb" \1", head) for head in heads[:2]]
    assert sent[0].endswith(b"POST /login/ session=page")
    assert sent[1].endswith(b"GET /api/v1/dags/a session=api")


def test_after_a_refused_login_name_and_password_are_used(airflow_v1: Airflow) -> None:
    offer_login(airflow_v1, **{"Set-Cookie": "session=begun", "Location": "/login/"})
    ask(airflow_v1.client)
    assert airflow_v1.server.count("GET", "/dags/a") == MANY


def test_a_login_page_in_a_charset_that_is_none_is_passed_over(airflow_v1: Airflow) -> None:
    page = Response("<html>", 200, content_type="text/html; charset=undefined")
    airflow_v1.server.fail_next(asks("GET", "/login/"), lambda _: page)
    for _ in range(MANY):
        airflow_v1.client.fetch_dags()


def test_a_name_and_password_that_are_no_text_are_reported_as_wrong(airflow_v1: Airflow) -> None:
    auth = {"type": "basic", "username": "half \ud83d", "password": "\ud83d"}
    with pytest.raises(PermissionMissingError, match="Check METRICS_PASSWORD"):
        declare_client(airflow_v1.server.url, auth).fetch_dags()


def test_many_threads_log_in_once(airflow_v1: Airflow) -> None:
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: ask(airflow_v1.client, 4), range(16)))
    assert airflow_v1.server.count("GET", "/login/") == 1


def test_a_missing_permission_is_reported_with_a_session_too(airflow_v1: Airflow) -> None:
    ask(airflow_v1.client)
    airflow_v1.server.fail_next(asks("GET", "/dags/a"), answer(403, {"detail": "No."}), times=2)
    with pytest.raises(PermissionMissingError, match=r"DAGs\.can_read"):
        airflow_v1.client.fetch_dag("a")
