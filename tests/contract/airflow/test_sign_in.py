"""Signing in: tokens are fetched once and renewed once, refusals have distinct errors, and secrets
are never shown."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from federation_defs.airflow.auth import BasicAuth, PasswordAuth, TokenAuth
from federation_defs.errors import (
    AirflowError,
    PermissionMissingError,
    RunNotStartedError,
    SignInRefusedError,
    UnexpectedAnswerError,
)
from tests.contract.clients import format_error_chain
from tests.contract.conftest import Airflow, StartAirflow
from tests.contract.fakes.airflow import PASSWORD, asks
from tests.contract.fakes.faults import LOGIN_PAGE, answer, cut_short, hang_up
from tests.contract.worlds import connect

TOKEN = "/auth/token"
ANY = ".*"


def test_airflow_3_is_asked_for_one_token_for_many_requests(airflow_v2: Airflow) -> None:
    for _ in range(5):
        airflow_v2.client.fetch_dags()
    assert airflow_v2.server.count("POST", TOKEN) == 1
    assert airflow_v2.server.count("GET", "/dags") == 5


def test_sixteen_threads_whose_token_went_bad_renew_it_once(airflow_v2: Airflow) -> None:
    airflow_v2.database.add_dag("customer_metrics")
    airflow_v2.client.fetch_dags()
    airflow_v2.server.change_secret()
    with ThreadPoolExecutor(16) as threads:
        reads = [threads.submit(airflow_v2.client.fetch_dag, "customer_metrics") for _ in range(64)]
        dags = [read.result(timeout=60) for read in reads]
    assert {dag.dag_id for dag in dags} == {"customer_metrics"}
    assert airflow_v2.server.count("POST", TOKEN) == 2


def test_a_token_that_expired_is_renewed(airflow_v2: Airflow) -> None:
    airflow_v2.client.fetch_dags()
    expired = answer(401, {"detail": "Token Expired"})
    airflow_v2.server.fail_next(asks("GET", "/dags"), expired)
    airflow_v2.server.change_secret()
    assert airflow_v2.client.fetch_dags() == []
    assert airflow_v2.server.count("POST", TOKEN) == 2


def test_a_trigger_refused_for_its_token_is_sent_again_with_its_body(airflow_v2: Airflow) -> None:
    airflow_v2.database.add_dag("customer_metrics")
    airflow_v2.client.fetch_dags()
    airflow_v2.server.change_secret()
    run = airflow_v2.client.trigger_run("customer_metrics", "mine", {"day": "today"})
    assert (run.run_id, run.conf) == ("mine", {"day": "today"})
    assert len(airflow_v2.database.runs) == 1


def test_a_token_that_is_refused_when_it_is_new_is_not_renewed_for_ever(
    airflow_v2: Airflow,
) -> None:
    refused = answer(401, {"detail": "Not authenticated"})
    airflow_v2.server.fail_next(asks("GET", "/dags"), refused, times=10)
    with pytest.raises(SignInRefusedError):
        airflow_v2.client.fetch_dags()
    assert airflow_v2.server.count("POST", TOKEN) <= 2


def test_a_changed_password_is_reported_as_a_wrong_one(airflow: Airflow) -> None:
    """Airflow 2 then takes the account for the public, and Airflow 3, started again with another
    secret, takes neither the old token nor gives a new one: 403 from both, which is no missing
    permission."""
    airflow.client.fetch_dags()
    airflow.server.password = "another"
    airflow.server.change_secret()
    with pytest.raises(AirflowError, match="Check METRICS_PASSWORD"):
        airflow.client.fetch_dags()


def test_a_wrong_password_names_the_instance_and_where_its_account_is(airflow: Airflow) -> None:
    airflow.server.has_public_role = False
    sign_in = {"v1": "basic", "v2": "password"}[airflow.server.api]
    client = connect(airflow.server.url, sign_in, "not-the-password")
    with pytest.raises(SignInRefusedError) as refused:
        client.fetch_dags()
    asked = {"v1": "GET /api/v1/dags", "v2": "POST /auth/token"}[airflow.server.api]
    assert str(refused.value) == (
        f"Airflow 'metrics' refused {asked} (401). Check METRICS_PASSWORD."
    )


def test_basic_auth_is_refused_by_airflow_3(airflow_v2: Airflow) -> None:
    client = connect(airflow_v2.server.url, "basic", PASSWORD)
    with pytest.raises(SignInRefusedError, match="Check METRICS_PASSWORD"):
        client.fetch_dags()


def test_password_auth_is_refused_by_airflow_2(start_airflow: StartAirflow) -> None:
    airflow = start_airflow("v1")
    client = connect(airflow.server.url, "password", PASSWORD)
    with pytest.raises(UnexpectedAnswerError, match=r"404.* declare `type: basic`"):
        client.fetch_dags()


def test_a_missing_permission_is_reported_in_airflows_words_and_renews_nothing(
    airflow: Airflow,
) -> None:
    airflow.client.fetch_dags()
    words = {"detail": "May not read DAGs", "title": "Forbidden"}
    airflow.server.fail_next(asks("GET", "/dags"), answer(403, words))
    with pytest.raises(
        PermissionMissingError, match=r"\(403: May not read DAGs\)\. .*DAGs.can_read"
    ):
        airflow.client.fetch_dags()
    assert airflow.server.count("POST", TOKEN) <= 1


def test_a_permission_that_was_never_there_is_reported_in_airflows_words_too(
    airflow_v2: Airflow,
) -> None:
    words = {"detail": "May not read DAGs"}
    airflow_v2.server.fail_next(asks("GET", "/dags"), answer(403, words))
    with pytest.raises(AirflowError, match=r"403: May not read DAGs.* permission to read DAGs"):
        airflow_v2.client.fetch_dags()


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_busy_token_endpoint_is_not_reported_as_a_wrong_password(
    airflow_v2: Airflow, status: int
) -> None:
    """A gateway answers so while the server behind it starts again."""
    airflow_v2.server.fail_next(asks("POST", TOKEN), answer(status, LOGIN_PAGE), times=9)
    with pytest.raises(AirflowError) as error:
        airflow_v2.client.fetch_dags()
    assert not isinstance(error.value, SignInRefusedError)
    assert str(status) in str(error.value)


def test_a_token_answer_without_a_token_is_an_unexpected_answer(airflow_v2: Airflow) -> None:
    airflow_v2.server.fail_next(asks("POST", TOKEN), answer(201, {"token": "else"}))
    with pytest.raises(UnexpectedAnswerError, match="access_token"):
        airflow_v2.client.fetch_dags()


def test_a_token_answer_that_is_no_json_is_an_unexpected_answer(airflow_v2: Airflow) -> None:
    airflow_v2.server.fail_next(asks("POST", TOKEN), cut_short)
    with pytest.raises(UnexpectedAnswerError):
        airflow_v2.client.fetch_dags()


def test_no_secret_is_in_any_error_or_log(
    airflow: Airflow, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "urllib3")  # which the Kubernetes client sets to WARNING
    client, server = airflow.client, airflow.server
    client.fetch_dags()
    secrets = {PASSWORD, server.token, "b3Blbi1zZXNhbWU"}  # the last as basic auth has it
    refusals = [answer(status, {"detail": "No."}) for status in (400, 401, 403, 404, 409, 422)]
    for fault in [*refusals, answer(200, LOGIN_PAGE)]:
        server.fail_next(asks("GET", "/dags"), fault)
        with pytest.raises(AirflowError) as error:
            client.fetch_dags()
        assert not [secret for secret in secrets if secret in format_error_chain(error.value)]
    server.fail_next(asks("POST", ANY), hang_up)
    with pytest.raises(RunNotStartedError) as error:
        client.trigger_run("load_customers", "mine")
    messages = format_error_chain(error.value) + caplog.text
    assert caplog.text
    assert not [secret for secret in secrets if secret in messages]


@pytest.mark.parametrize("kind", ["basic", "password", "token"])
def test_no_secret_is_in_a_repr(airflow_v2: Airflow, kind: str) -> None:
    transport = airflow_v2.client.session.transport
    sign_in = {
        "basic": BasicAuth(transport, "federation", PASSWORD),
        "password": PasswordAuth(transport, "federation", PASSWORD),
        "token": TokenAuth(PASSWORD),
    }[kind]
    request = requests.Request("GET", airflow_v2.server.url, auth=sign_in).prepare()
    client = airflow_v2.client
    client.fetch_dags()
    shown = f"{sign_in!r} {sign_in} {request!r} {client!r} {client.session!r}"
    assert PASSWORD not in shown
    assert airflow_v2.server.token not in shown
