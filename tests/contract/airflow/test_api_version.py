"""Which API an Airflow has: declared, behind a gateway, and in the midst of an upgrade."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from werkzeug import Response

from federation_defs.airflow.client import AirflowClient
from federation_defs.errors import (
    AirflowError,
    PermissionMissingError,
    RunNotStartedError,
    SignInRefusedError,
    UnexpectedAnswerError,
    UnreachableError,
)
from tests.contract.conftest import Airflow, StartAirflow
from tests.contract.fakes.airflow import PASSWORD, FakeAirflow, asks
from tests.contract.fakes.faults import answer
from tests.contract.worlds import OTHER, RUN, Upgraded, connect, connect_by_token, connect_to

READS: dict[str, Callable[[AirflowClient], Any]] = {
    "the DAGs": lambda client: client.fetch_dags(),
    "a run": lambda client: client.fetch_run(*RUN),
    "the assets": lambda client: client.fetch_assets(),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_a_declared_api_is_not_replaced_by_the_actual_one(
    upgraded: Upgraded, read: Callable[[AirflowClient], Any]
) -> None:
    pinned = upgraded.connect(api=OTHER[upgraded.server.api])
    upgraded.server.requests.clear()
    for _ in range(2):
        with pytest.raises(UnexpectedAnswerError, match="404"):
            read(pinned)
    assert pinned.known_api_version is not None
    assert pinned.known_api_version.api == OTHER[upgraded.server.api]
    if upgraded.server.api == "v2":  # which says itself that it has no v1; a page may be anybody's
        assert upgraded.server.count("GET", ".*/version") == 0


def test_declaring_v2_for_an_airflow_2_is_an_error_that_names_v1(
    start_airflow: StartAirflow,
) -> None:
    """Its 404 is a page, as a gateway's is whose Airflow is away; that would be waited out."""
    pinned = connect_by_token(start_airflow("v1").server, api="v2")
    with pytest.raises(UnexpectedAnswerError, match="It speaks v1: declare `api: auto`"):
        pinned.fetch_dags()


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_a_declared_api_needs_no_version_request(
    upgraded: Upgraded, read: Callable[[AirflowClient], Any]
) -> None:
    pinned = upgraded.connect(api=upgraded.server.api)
    upgraded.server.requests.clear()
    assert read(pinned) == read(upgraded.client)
    assert upgraded.server.count("GET", ".*/version") == 0


def test_declaring_v1_for_an_airflow_3_is_an_error_in_airflows_words(
    airflow_v2: Airflow,
) -> None:
    pinned = connect_by_token(airflow_v2.server, api="v1")
    with pytest.raises(UnexpectedAnswerError, match="/api/v1 has been removed in Airflow 3"):
        pinned.fetch_dags()


# What is asked in the midst of an upgrade, one request after another, goes to the old server or to
# the new one, as a balancer has it.
TURNS = list(product(("v1", "v2"), repeat=6))


def test_a_read_during_an_upgrade_is_right_or_unreachable(
    upgraded: Upgraded,
) -> None:
    """Each way in which the next six requests may be answered by the old and by the new."""
    wrong: dict[tuple[str, ...], str] = {}
    for turns in TURNS:
        upgraded.server.turns.clear()
        upgraded.client.fetch_version()  # so that it knows the API that is there when it begins
        upgraded.server.turns.extend(turns)
        try:
            if upgraded.client.fetch_run(*RUN) is None:
                wrong[turns] = "no run"
        except UnreachableError:
            continue
        except AirflowError as error:
            wrong[turns] = f"{type(error).__name__}: {error}"
    assert wrong == {}


def test_a_trigger_during_an_upgrade_starts_one_run_or_is_unreachable(
    upgraded: Upgraded,
) -> None:
    wrong: dict[tuple[str, ...], str] = {}
    database = upgraded.server.database
    for number, turns in enumerate(TURNS):
        upgraded.server.turns.clear()
        upgraded.client.fetch_version()
        upgraded.server.turns.extend(turns)
        try:
            upgraded.client.trigger_run("mapped", f"run-{number}")
            if database.find_run("mapped", f"run-{number}") is None:
                wrong[turns] = "no run"
        except (RunNotStartedError, UnreachableError):
            continue
        except AirflowError as error:
            wrong[turns] = f"{type(error).__name__}: {error}"
    assert wrong == {}


# The version is asked for on one side, and the rest answered by the other.
TO_AND_FRO = {"v1": "v2 v2 v1 v1 v1", "v2": "v1 v1 v1 v2 v2"}


def test_alternating_api_versions_are_reported_as_an_upgrade(upgraded: Upgraded) -> None:
    upgraded.server.turns.extend(TO_AND_FRO[upgraded.server.api].split())
    with pytest.raises(UnreachableError, match="now as Airflow 2, now as Airflow 3"):
        upgraded.client.fetch_run(*RUN)
    assert upgraded.client.fetch_run(*RUN) is not None


@pytest.mark.parametrize("answered", [401, 403, 302])
@pytest.mark.parametrize("api", ["v1", "v2"])
def test_a_gateway_that_wants_the_sign_in_for_everything_gets_it(api: str, answered: int) -> None:
    """Airflow itself returns its version without a sign-in."""

    def ask_to_sign_in() -> Response:
        there = {"Location": "https://login.example.com/"} if answered == 302 else None
        return Response("<h1>Sign in</h1>", answered, there, content_type="text/html")

    with FakeAirflow(api) as server:
        server.gateway = ask_to_sign_in
        server.takes_tokens = True
        server.database.add_dag("load_customers")
        client = connect_by_token(server)
        assert [dag.dag_id for dag in client.fetch_dags()] == ["load_customers"]
        assert client.fetch_version() == server.endpoints.version
        if api == "v1":
            basic = connect(server.url, "basic", PASSWORD)
            assert [dag.dag_id for dag in basic.fetch_dags()] == ["load_customers"]


@pytest.mark.parametrize("answered", [401, 403])
def test_a_gateway_that_refuses_the_sign_in_is_no_wrong_address(answered: int) -> None:
    with FakeAirflow("v2") as server:
        fault = answer(answered, "<h1>Who are you?</h1>")
        server.fail_next(asks("GET", ".*/version"), fault, times=2)
        client = connect_by_token(server)
        with pytest.raises((SignInRefusedError, PermissionMissingError), match=r"/version"):
            client.fetch_dags()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("body", [{}, {"status": "ok"}, [], {"version": None}])
def test_an_invalid_version_is_an_error_and_no_hang(airflow: Airflow, body: object) -> None:
    """The error names the version, and must not fetch it for that."""
    airflow.server.fail_next(asks("GET", ".*/version"), answer(200, body), times=2)
    with pytest.raises(UnexpectedAnswerError, match="/version"):
        connect_to(airflow.server).fetch_dags()
