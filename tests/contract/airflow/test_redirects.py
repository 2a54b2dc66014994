"""Redirects: nobody is followed, and no credential arrives anywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from federation_defs.airflow.client import AirflowClient
from federation_defs.errors import UnexpectedAnswerError
from tests.contract.clients import (
    SIGN_INS,
    call_within,
    declare_client,
    format_error_chain,
    start_proxied_airflow,
)
from tests.contract.conftest import StartAirflow
from tests.contract.fakes.airflow import FakeAirflow, asks
from tests.contract.fakes.fault_proxy import FaultProxy
from tests.contract.fakes.faults import answer

STATUSES = [301, 302, 307]
TRIGGER = "/dags/load_customers/dagRuns"
NOWHERE = ["http://[bad", "http://elsewhere:port/", "//", "\xff\xfe", "http://a/\x00", "?", "#"]
TOKEN = {"type": "token", "token": "token-1-of-federation"}


@dataclass(frozen=True)
class Two:
    """An instance, and another server that keeps all that arrives there."""

    ours: FakeAirflow
    theirs: FaultProxy
    client: AirflowClient

    def redirect(self, method: str, path: str, status: int) -> None:
        away = {"Location": f"{self.theirs.url}/elsewhere?token=of-the-login-page"}
        self.ours.fail_next(asks(method, path), answer(status, "", away))

    def assert_nobody_came(self) -> None:
        assert (self.theirs.total, bytes(self.theirs.received)) == (0, b"")
        assert [dag.dag_id for dag in self.client.fetch_dags()] == ["load_customers"]


@pytest.fixture(params=["basic", "password", "token"])
def two(request: pytest.FixtureRequest) -> Iterator[Two]:
    api = "v1" if request.param == "basic" else "v2"
    auth = TOKEN if request.param == "token" else SIGN_INS[api]
    with FakeAirflow(api) as ours, FakeAirflow(api) as other, FaultProxy(other.url) as theirs:
        ours.database.add_dag("load_customers")
        yield Two(ours, theirs, declare_client(ours.url, auth))


@pytest.mark.parametrize("status", STATUSES)
def test_a_read_that_is_redirected_is_reported_and_not_followed(two: Two, status: int) -> None:
    two.redirect("GET", "/dags", status)
    with pytest.raises(UnexpectedAnswerError, match=f"{status}: go to {two.theirs.url}/elsewhere"):
        two.client.fetch_dags()
    two.assert_nobody_came()


@pytest.mark.parametrize("status", STATUSES)
def test_a_trigger_that_is_redirected_is_reported_and_not_followed(two: Two, status: int) -> None:
    two.redirect("POST", TRIGGER, status)
    with pytest.raises(UnexpectedAnswerError, match=f"{status}: go to {two.theirs.url}/elsewhere"):
        two.client.trigger_run("load_customers", "mine", {"key": "of the conf"})
    two.assert_nobody_came()
    assert two.ours.database.runs == []


@pytest.mark.parametrize("status", STATUSES)
def test_a_sign_in_that_is_redirected_is_reported_and_not_followed(
    start_airflow: StartAirflow, status: int
) -> None:
    ours, other = start_airflow("v2").server, start_airflow("v2").server
    ours.database.add_dag("load_customers")
    with FaultProxy(other.url) as theirs:
        two = Two(ours, theirs, declare_client(ours.url))
        two.redirect("POST", "/auth/token", status)
        with pytest.raises(UnexpectedAnswerError, match=f"POST /auth/token with {status}: go to"):
            two.client.fetch_dags()
        two.assert_nobody_came()


def test_an_error_about_a_redirect_leaves_out_its_query(two: Two) -> None:
    two.redirect("GET", "/dags", 302)
    with pytest.raises(UnexpectedAnswerError) as error:
        two.client.fetch_dags()
    assert "of-the-login-page" not in format_error_chain(error.value)


@pytest.mark.parametrize("location", [*NOWHERE, None])
def test_a_redirect_to_nowhere_is_an_unexpected_answer_and_takes_no_connection(
    location: str | None,
) -> None:
    """requests reads where a redirect leads even when nobody follows it."""
    headers = {} if location is None else {"Location": location}
    with start_proxied_airflow(max_connections=2) as proxied:
        proxied.server.fail_next(asks("GET", "/dags"), answer(302, "Moved.", headers), times=3)
        for _ in range(3):
            with pytest.raises(UnexpectedAnswerError, match="GET /api/v2/dags with 302"):
                call_within(60, proxied.client.fetch_dags)
        assert len(call_within(60, proxied.client.fetch_dags)) == 1
