"""Tokens that expire or are invalid: renewed in time, and never quoted in an error."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from pydantic import ValidationError
from werkzeug import Response

from federation_defs.airflow.auth import build_bearer
from federation_defs.airflow.client import AirflowClient
from federation_defs.declaration import InstanceDeclaration, parse_declaration
from federation_defs.errors import AirflowError, DeclarationError, SignInRefusedError
from tests.contract.clients import (
    ACCOUNT_HINT,
    FakeClock,
    declare_client,
    format_error_chain,
)
from tests.contract.fakes.airflow import ReceivedRequest, asks
from tests.contract.fakes.faults import Act, answer
from tests.contract.fakes.sign_ins import TokenAirflow, build_jwt, build_timed_jwt
from tests.waiting import wait_for

SECRET = "secret-of-the-vault"
EXPIRED = {"detail": "Token Expired"}
ODD_CLAIMS = {
    "a list": "[]",
    "a number": "5",
    "null": "null",
    "no JSON": "{",
    "null times": '{"iat": null, "exp": null}',
    "times in words": '{"iat": "now", "exp": "soon"}',
    "an end before its beginning": '{"iat": 2000, "exp": 1000}',
    "no beginning": '{"exp": 4000000000}',
    "no end": '{"iat": 0, "exp": Infinity}',
    "no number": '{"iat": 0, "exp": NaN}',
    "no number that a clock knows": '{"iat": 0, "exp": 1' + "0" * 400 + "}",
}


@pytest.fixture
def server() -> Iterator[TokenAirflow]:
    with TokenAirflow(SECRET) as server:
        yield server


def connect(server: TokenAirflow, **token: Any) -> AirflowClient:
    return declare_client(server.url, {"type": "token", **token})


def assert_works(client: AirflowClient) -> None:
    assert [dag.dag_id for dag in client.fetch_dags()] == ["load_customers"]


def test_a_declared_token_works_with_the_newline_that_a_vault_puts_behind_it(
    server: TokenAirflow,
) -> None:
    assert_works(connect(server, token=f"{SECRET}\n"))


@pytest.mark.parametrize("added", [" more", "\nmore", "…", "\x00", "ł"])
def test_a_declared_token_that_no_header_can_hold_is_not_quoted(
    server: TokenAirflow, added: str
) -> None:
    with pytest.raises((ValidationError, AirflowError)) as error:
        connect(server, token=SECRET + added).fetch_dags()
    assert SECRET not in format_error_chain(error.value)
    assert server.count("GET", "/dags") <= 1


def test_a_declared_token_that_expires_fails_a_list_in_its_middle(server: TokenAirflow) -> None:
    for number in range(249):
        server.database.add_dag(f"zebra_{number:03}")
    client = connect(server, token=SECRET)
    assert len(client.fetch_dags()) == 250
    server.fail_next(is_the_second_page, answer(401, EXPIRED))
    with pytest.raises(SignInRefusedError, match=rf"\(401\)\. Check {ACCOUNT_HINT}"):
        client.fetch_dags()


def is_the_second_page(request: ReceivedRequest) -> bool:
    return request.path == "/dags" and request.query.get("offset") == "100"


def test_a_password_renews_a_token_that_ends_in_the_middle_of_a_list(server: TokenAirflow) -> None:
    for number in range(249):
        server.database.add_dag(f"zebra_{number:03}")
    client = declare_client(server.url)
    server.fail_next(is_the_second_page, answer(401, EXPIRED))

    def renew(act: Act) -> Response:
        response = act()
        server.token = "another-secret"
        return response

    client.fetch_dag("load_customers")
    server.fail_next(lambda request: request.path == "/dags", renew)
    assert len({dag.dag_id for dag in client.fetch_dags()}) == 250
    assert server.count("POST", "/auth/token") == 2


def test_a_password_renews_tokens_that_end_in_the_middle_of_a_wait(server: TokenAirflow) -> None:
    server.database.add_dag("load_customers", polls=20)
    client = declare_client(server.url)
    client.trigger_run("load_customers", "mine")
    numbers = count(1)

    def end_each_fifth(_: ReceivedRequest) -> bool:
        if next(numbers) % 5 == 0:
            server.token = f"secret-{next(numbers)}"
        return False

    server.fail_next(end_each_fifth, answer(500))

    def find_end() -> bool:
        run = client.fetch_run("load_customers", "mine")
        return run is not None and run.is_success

    wait_for(find_end, "the run is over", interval_s=0.01)
    assert server.count("POST", "/auth/token") >= 4


@pytest.mark.parametrize("skew_s", [0, 3600, -3600], ids=["same", "ahead", "behind"])
def test_a_password_renews_a_token_before_it_expires_whatever_the_servers_clock(
    server: TokenAirflow, skew_s: float
) -> None:
    clock, numbers = FakeClock(), count(1)
    client = declare_client(server.url, timing=clock.timing)

    def issue_token(act: Act) -> Response:
        server.token = build_timed_jwt(1000, next(numbers), skew_s)
        return act()

    server.fail_next(asks("POST", "/auth/token"), issue_token, times=3)
    for logins in (1, 2, 3):
        assert_works(client)
        clock.advance(899)
        assert_works(client)
        assert server.count("POST", "/auth/token") == logins
        clock.advance(2)
    assert server.count("GET", "/dags") == 6, "a token was refused before it was renewed"


@pytest.mark.parametrize("claims", ODD_CLAIMS.values(), ids=ODD_CLAIMS.keys())
def test_a_token_with_odd_claims_is_used_until_it_is_refused(claims: str) -> None:
    with TokenAirflow(build_jwt(claims)) as server:
        client = declare_client(server.url)
        assert_works(client)
        assert_works(client)
        assert server.count("POST", "/auth/token") == 1
        assert_works(connect(server, token=server.token))


@pytest.mark.parametrize(
    "wrong",
    [
        {"token": SECRET, "token_file": "/run/token"},
        {"token": SECRET, "token_command": ["vault"]},
        {"token": SECRET, "tokn": SECRET},
        {"token": [SECRET]},
        {"token_command": []},
        {"token_command": SECRET},
        {},
    ],
    ids=["two", "also a command", "unknown", "a list", "no program", "no list", "none"],
)
def test_a_declaration_that_can_not_hold_says_so_without_the_token(wrong: dict[str, Any]) -> None:
    values = {"name": "metrics", "url": "http://a", "auth": {"type": "token", **wrong}}
    with pytest.raises(DeclarationError, match=r"defs\.yaml: auth") as error:
        parse_declaration(values, "defs.yaml")
    assert SECRET not in format_error_chain(error.value)


@pytest.mark.parametrize(
    "auth",
    [
        {"type": "token", "token": SECRET},
        {"type": "token", "token_command": ["/bin/echo", SECRET]},
        {"type": "password", "username": "federation", "password": SECRET},
        {"type": "basic", "username": "federation", "password": SECRET},
    ],
    ids=["token", "command", "password", "basic"],
)
def test_no_secret_is_in_what_a_debugger_shows(server: TokenAirflow, auth: dict[str, Any]) -> None:
    values = {"name": "metrics", "url": server.url, "auth": auth}
    declaration = InstanceDeclaration.model_validate(values)
    client = declare_client(server.url, auth)
    client.fetch_version()
    session = client.session
    shown = f"{client!r} {session!r} {session.transport!r} {vars(session)} {build_bearer(SECRET)!r}"
    assert SECRET not in shown
    if "token_command" not in auth:
        assert SECRET not in f"{declaration!r} {declaration} {declaration.model_dump_json()}"
