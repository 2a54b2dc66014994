"""Answers that are none of Airflow's, or not now: an error of ours, and a client that goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest
import requests
from werkzeug import Response

from federation_defs.airflow.auth import OpenAuth
from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.session import AirflowSession
from federation_defs.errors import AirflowError, UnexpectedAnswerError, UnreachableError
from tests.contract.clients import (
    ACCOUNT_HINT,
    SIGN_INS,
    FakeClock,
    ProxiedAirflow,
    call_within,
    declare_client,
    start_proxied_airflow,
)
from tests.contract.conftest import Airflow
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.faults import LOGIN_PAGE, Act, Fault, answer, cut_short, edit

BAD_GATEWAY = "<html><head><title>502 Bad Gateway</title></head></html>"
SOON = datetime.now(timezone.utc) + timedelta(hours=1, seconds=1)
SKEWED = {"Date": format_datetime(SOON - timedelta(seconds=1), usegmt=True)}


def send(
    text: str | bytes, content_type: str = "application/json", **headers: str
) -> Callable[[Act], Response]:
    """Whatever it is, as it stands."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: Response(text, 200, named, content_type=content_type)


NOT_A_LIST = {
    "half of it": cut_short,
    "nothing": send(""),
    "a login page": answer(200, LOGIN_PAGE),
    "a text": answer(200, ["dags"]),
    "a number without end": send('{"dags": [], "total_entries": ' + "1" * 5000 + "}"),
    "a list without end": send("[" * 100_000),
    "null for a total": edit(lambda dags: dags.update(total_entries=None)),
    "a text for a total": edit(lambda dags: dags.update(total_entries="5")),
    "null for a list": edit(lambda dags: dags.update(dags=None)),
    "a number for a list": edit(lambda dags: dags.update(dags=5)),
    "a number in a list": edit(lambda dags: dags.update(dags=[5])),
}
NOT_A_LOG = {
    "a login page": answer(200, LOGIN_PAGE),
    "a list": answer(200, ["no", "log"]),
    "a number": answer(200, {"content": 5}),
}
NO_DATE = "Thu, 01 Jan 99999999999999999999 00:00:00 GMT"
NO_SANE_TIMES = ["-5", "soon", "1.5", "0", NO_DATE]


def of(cases: dict[str, Any], name: str = "fault") -> pytest.MarkDecorator:
    return pytest.mark.parametrize(name, cases.values(), ids=cases.keys())


@pytest.fixture(scope="module")
def shared() -> Iterator[ProxiedAirflow]:
    with start_proxied_airflow() as proxied:
        yield proxied


@pytest.fixture
def proxied(shared: ProxiedAirflow) -> ProxiedAirflow:
    """One for all tests: a client goes on after whatever it has read."""
    shared.server.requests.clear()
    shared.server.database.runs.clear()
    return shared


def assert_works(client: AirflowClient) -> None:
    assert [dag.dag_id for dag in call_within(60, client.fetch_dags)] == ["load_customers"]


@of(NOT_A_LIST)
def test_an_invalid_list_is_an_error_and_no_short_list(
    proxied: ProxiedAirflow, fault: Fault
) -> None:
    proxied.server.fail_next(asks("GET", "/dags"), fault)
    with pytest.raises(UnexpectedAnswerError, match="GET /api/v2/dags"):
        proxied.client.fetch_dags()
    assert_works(proxied.client)


@of(NOT_A_LOG)
def test_an_invalid_log_is_an_error(proxied: ProxiedAirflow, fault: Fault) -> None:
    database = proxied.server.database
    database.finish_run(database.start_run("load_customers", "mine"))
    (task, _) = proxied.client.fetch_task_instances("load_customers", "mine")
    proxied.server.fail_next(asks("GET", ".*/logs/1"), fault)
    with pytest.raises(UnexpectedAnswerError, match=r"GET /api/v2/.*/logs/1"):
        proxied.client.fetch_log("load_customers", "mine", task)


@pytest.mark.parametrize("api", ["v1", "v2"])
def test_a_login_page_is_not_the_source_of_a_dag_nor_its_log(api: str) -> None:
    with start_proxied_airflow(api) as proxied:
        database = proxied.server.database
        database.finish_run(database.start_run("load_customers", "mine"))
        (task, _) = proxied.client.fetch_task_instances("load_customers", "mine")
        dag = proxied.client.fetch_dag("load_customers")
        page = answer(200, LOGIN_PAGE)
        proxied.server.fail_next(asks("GET", ".*/logs/1|/dagSources/.*"), page, times=2)
        with pytest.raises(UnexpectedAnswerError, match=r"GET /api/v./.*/logs/1"):
            proxied.client.fetch_log("load_customers", "mine", task)
        (error,) = proxied.client.fetch_dag_sources([dag]).values()
        assert isinstance(error, UnexpectedAnswerError)
        assert "/dagSources" in str(error)


@pytest.mark.parametrize("token", [None, 5, ["a"], "a\nb", "tök€n"])
def test_an_invalid_access_token_is_an_unexpected_answer(
    proxied: ProxiedAirflow, token: object
) -> None:
    """None that a header can hold, that is."""
    client = proxied.declare_client(max_connections=1)
    proxied.server.fail_next(asks("POST", "/auth/token"), answer(201, {"access_token": token}))
    with pytest.raises(UnexpectedAnswerError, match="POST /auth/token"):
        client.fetch_dags()
    assert_works(client)


def test_a_body_that_is_not_packed_as_it_says_is_asked_for_again(proxied: ProxiedAirflow) -> None:
    spoiled = send(b"not gzip", Content_Encoding="gzip")
    proxied.server.fail_next(asks("GET", "/dags"), spoiled)
    assert_works(proxied.client)


@pytest.mark.parametrize("date", [NO_DATE, "yesterday", "", "Thu, 99 Jan 2026 99:00:00 GMT"])
def test_an_invalid_server_time_is_none(proxied: ProxiedAirflow, date: str) -> None:
    def misdate(act: Act) -> Response:
        response = act()
        response.headers["Date"] = date
        return response

    proxied.server.fail_next(asks("GET", "/dags/~/dagRuns"), misdate)
    changed = proxied.client.fetch_changed_runs(datetime.now(timezone.utc))
    assert (changed.entries, changed.server_time) == ([], None)


@pytest.mark.parametrize("status", [500, 502])
def test_a_balancers_page_is_waited_out(proxied: ProxiedAirflow, status: int) -> None:
    proxied.server.fail_next(asks("GET", "/dags"), answer(status, BAD_GATEWAY))
    assert_works(proxied.client)


def test_a_balancers_page_in_place_of_a_confirmed_trigger_adopts_the_run(
    proxied: ProxiedAirflow,
) -> None:
    lost = answer(502, BAD_GATEWAY, acts=True)
    proxied.server.fail_next(asks("POST", ".*/dagRuns"), lost)
    assert proxied.client.trigger_run("load_customers", "mine").run_id == "mine"
    assert proxied.server.count("POST", ".*/dagRuns") == 1


def fetch_after(proxied: ProxiedAirflow, status: int, headers: dict[str, str]) -> float:
    """Let a server refuse the first read, and return how long the client pauses after it."""
    clock = FakeClock()
    auth = SIGN_INS[proxied.server.api]
    client = declare_client(proxied.proxy.url, auth, clock.timing)
    client.fetch_version()
    proxied.server.requests.clear()
    proxied.server.fail_next(asks("GET", "/dags"), answer(status, {}, headers))
    assert_works(client)
    assert proxied.server.count("GET", "/dags") == 2
    return max(clock.sleeps_s)


@pytest.mark.parametrize("said", [*NO_SANE_TIMES, None])
def test_without_a_sane_time_the_client_pauses_as_it_does_without_one(
    proxied: ProxiedAirflow, said: str | None
) -> None:
    assert fetch_after(proxied, 429, {"Retry-After": said} if said else {}) < 0.1


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    "headers",
    [{"Retry-After": "7"}, {"Retry-After": format_datetime(SOON, usegmt=True), **SKEWED}],
    ids=["a number", "a date of its clock"],
)
def test_a_server_that_asks_for_a_pause_gets_it(
    proxied: ProxiedAirflow, status: int, headers: dict[str, str]
) -> None:
    asked_s = 7 if headers["Retry-After"] == "7" else 1
    assert fetch_after(proxied, status, headers) == pytest.approx(asked_s, abs=0.1)


def test_a_pause_that_the_answer_to_a_clear_asks_for_holds_for_the_next_request(
    proxied: ProxiedAirflow,
) -> None:
    clock = FakeClock()
    auth = SIGN_INS[proxied.server.api]
    client = declare_client(proxied.proxy.url, auth, clock.timing)
    client.fetch_version()
    proxied.server.fail_next(asks("POST", ".*/clear"), answer(429, {}, {"Retry-After": "7"}))
    with pytest.raises(UnreachableError, match="429"):
        client.clear_run("load_customers", "any")
    assert max(clock.sleeps_s, default=0) < 7
    client.fetch_dags()
    assert max(clock.sleeps_s) == pytest.approx(7, abs=0.5)


@pytest.mark.parametrize(
    "said",
    ["3600", "9" * 400, format_datetime(SOON, usegmt=True)],
    ids=["an hour", "no number of seconds", "a date"],
)
def test_a_long_retry_after_is_reported_and_not_waited_for(
    proxied: ProxiedAirflow, said: str
) -> None:
    proxied.server.fail_next(asks("GET", "/dags"), answer(429, {}, {"Retry-After": said}))
    with pytest.raises(UnreachableError, match="429, retry after"):
        call_within(60, proxied.client.fetch_dags)
    assert proxied.server.count("GET", "/dags") == 1
    assert_works(proxied.client)


def test_a_busy_sign_in_is_paused_for_too(proxied: ProxiedAirflow) -> None:
    busy = answer(429, {}, {"Retry-After": "7"})
    proxied.server.fail_next(asks("POST", "/auth/token"), busy)
    clock = FakeClock()
    assert_works(declare_client(proxied.proxy.url, timing=clock.timing))
    assert max(clock.sleeps_s) == pytest.approx(7, abs=0.1)


DEEP = "[" * 700 + "]" * 700
ODD_ERRORS = {
    "a number for a location": (400, '{"detail": [{"loc": 7, "msg": "x"}]}', ""),
    "a number for the only location": (422, '{"detail": {"loc": 7}}', ""),
    "a detail without end": (400, f'{{"detail": {DEEP}}}', ""),
    "a detail without end of a temporary error": (500, f'{{"detail": {DEEP}}}', ""),
    "a charset that is none": (403, '{"detail": "x"}', "; charset=undefined"),
    "a charset that decodes no bytes": (403, '{"detail": "x"}', "; charset=idna"),
}


@of(ODD_ERRORS, "odd")
def test_an_error_whose_body_makes_no_sense_is_an_error_of_ours(
    airflow: Airflow, odd: tuple[int, str, str]
) -> None:
    status, body, charset = odd
    airflow.database.add_dag("a")
    airflow.client.fetch_dags()
    content_type = f"application/json{charset}"
    airflow.server.fail_next(
        lambda _: True, lambda _: Response(body, status, content_type=content_type), 20
    )
    for call in (airflow.client.fetch_dags, lambda: airflow.client.trigger_run("a", "mine")):
        with pytest.raises(AirflowError, match=str(status)):
            call()


def test_an_exception_of_a_library_about_an_answer_is_an_error_of_ours(
    proxied: ProxiedAirflow,
) -> None:
    class OddSignIn(OpenAuth):
        def renew(self, response: requests.Response) -> bool:
            return bool(response.json()["no"]["such"]["field"])

    session = AirflowSession(proxied.client.session.transport, OddSignIn(), ACCOUNT_HINT)
    with pytest.raises(UnexpectedAnswerError, match=r"/api/v2/version with an unreadable answer"):
        session.request("GET", "/api/v2/version")


def test_an_error_quotes_little_of_a_long_answer(proxied: ProxiedAirflow) -> None:
    words = json.dumps({"detail": "x" * 1_000_000})
    refusal = answer(422, json.loads(words))
    proxied.server.fail_next(asks("GET", "/dags"), refusal)
    with pytest.raises(AirflowError) as error:
        proxied.client.fetch_dags()
    assert len(str(error.value)) < 1000


NO_TIMES = ["9999-12-31T23:59:59-05:00", 5, "soon"]


@pytest.mark.parametrize("no_time", NO_TIMES, ids=str)
def test_invalid_optional_fields_of_a_run_are_dropped(
    proxied: ProxiedAirflow, no_time: Any
) -> None:
    """It would hold up all the others that are in the same list."""
    database = proxied.server.database
    database.finish_run(database.start_run("load_customers", "mine"))
    fault = edit(lambda run: run.update(end_date=no_time, conf=["no", "conf"]))
    proxied.server.fail_next(asks("GET", ".*/dagRuns/mine"), fault)
    run = proxied.client.fetch_run("load_customers", "mine")
    assert run is not None
    assert (run.state, run.end_date, run.conf) == ("success", None, {})
    assert run.start_date is not None
