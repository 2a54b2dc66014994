"""Amazon MWAA, by the real boto3: a session for an IAM identity, and no login storm."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from federation_defs.airflow.client import AirflowClient
from federation_defs.errors import AirflowError, PermissionMissingError
from tests.contract.clients import ACCOUNT_HINT, FakeClock
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.endpoints import build_json
from tests.contract.fakes.fault_proxy import FaultProxy
from tests.contract.fakes.faults import answer
from tests.contract.fakes.sign_ins import ENDS, ENVIRONMENT, SECRET_KEY, Mwaa, start_mwaa

LOGINS_TRIED = {
    "v1": ["/pluginsv2/aws_mwaa/login", "/aws_mwaa/login"],
    "v2": ["/pluginsv2/aws_mwaa/login"],
}


@pytest.fixture(params=["v1", "v2"])
def api(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def mwaa(api: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Mwaa]:
    with start_mwaa(api, monkeypatch, tmp_path) as mwaa:
        yield mwaa


def assert_works(client: AirflowClient) -> None:
    assert [dag.dag_id for dag in client.fetch_dags()] == ["load_customers"]


def test_an_identity_signs_in_once_for_many_requests(mwaa: Mwaa) -> None:
    client = mwaa.declare_client()
    for _ in range(5):
        assert_works(client)
    assert client.trigger_run("load_customers", "mine").run_id == "mine"
    ((path, headers, _),) = mwaa.aws.requests
    assert path == f"/webtoken/{ENVIRONMENT}"
    assert "eu-west-1" in headers["Authorization"], "signed for another region"
    assert mwaa.server.logins == [mwaa.aws.token]


def test_the_login_token_goes_to_the_web_server_in_a_form_and_nowhere_else(mwaa: Mwaa) -> None:
    with FaultProxy(mwaa.server.url) as proxy:
        client = mwaa.declare_client(proxy.url)
        assert_works(client)
        assert_works(client)
        sent = bytes(proxy.received).decode()
    logins = [request for request in re.split(r"(?=GET |POST )", sent) if mwaa.aws.token in request]
    assert [login.split()[1] for login in logins] == LOGINS_TRIED[mwaa.server.api]
    assert all(login.endswith(f"\r\n\r\ntoken={mwaa.aws.token}") for login in logins)
    assert SECRET_KEY not in sent


@pytest.mark.parametrize("end", ENDS)
def test_a_session_that_ends_after_hours_is_signed_in_to_again(mwaa: Mwaa, end: str) -> None:
    clock = FakeClock()
    client = mwaa.declare_client(timing=clock.timing)
    assert_works(client)
    mwaa.server.end_sessions()
    mwaa.server.end = ENDS[end]
    clock.advance(3600)
    assert_works(client)
    assert client.trigger_run("load_customers", "mine").run_id == "mine"
    assert len(mwaa.server.logins) == len(mwaa.aws.requests) == 2


@pytest.mark.parametrize("api", ["v2"])
def test_a_session_that_is_refused_at_once_is_signed_in_to_again(mwaa: Mwaa) -> None:
    """As when the environment is updated: a 401 is never a missing permission."""
    client = mwaa.declare_client()
    assert_works(client)
    mwaa.server.end_sessions()
    assert_works(client)
    assert len(mwaa.server.logins) == 2


@pytest.mark.parametrize("api", ["v2"])
def test_a_session_whose_signature_is_worthless_is_signed_in_to_again_at_once(
    mwaa: Mwaa,
) -> None:
    """What 3.x says of a token that another secret signed is no missing permission."""
    client = mwaa.declare_client()
    assert_works(client)
    mwaa.server.end_sessions()
    mwaa.server.end = lambda: build_json({"detail": "Invalid JWT token"}, 403)
    assert_works(client)
    assert len(mwaa.server.logins) == 2


@pytest.mark.parametrize("api", ["v2"])
def test_a_trigger_whose_session_ended_starts_one_run(mwaa: Mwaa) -> None:
    client = mwaa.declare_client()
    assert_works(client)
    mwaa.server.end_sessions()
    assert client.trigger_run("load_customers", "mine", {"day": "today"}).conf == {"day": "today"}
    assert [run.run_id for run in mwaa.server.database.runs] == ["mine"]


@pytest.mark.parametrize("api", ["v2"])
def test_a_session_that_is_never_good_is_not_signed_in_to_for_ever(mwaa: Mwaa) -> None:
    client = mwaa.declare_client()
    assert_works(client)
    mwaa.server.fail_next(lambda _: True, answer(401, {"detail": "No."}), times=99)
    mwaa.server.end_sessions()
    for _ in range(3):
        with pytest.raises(AirflowError, match=ACCOUNT_HINT):
            client.fetch_dags()
    assert len(mwaa.server.logins) <= 1 + 3


def test_a_missing_permission_causes_no_login(mwaa: Mwaa) -> None:
    client = mwaa.declare_client()
    mwaa.server.fail_next(asks("GET", "/dags"), answer(403, {"detail": "No DAGs"}), times=9)
    for _ in range(5):
        with pytest.raises(PermissionMissingError, match="No DAGs"):
            client.fetch_dags()
    assert len(mwaa.server.logins) == 1


def test_a_missing_permission_after_hours_causes_one_login(mwaa: Mwaa) -> None:
    clock = FakeClock()
    client = mwaa.declare_client(timing=clock.timing)
    assert_works(client)
    clock.advance(3600)
    mwaa.server.fail_next(asks("GET", "/dags"), answer(403, {"detail": "No DAGs"}), times=99)

    def ask(_: int) -> None:
        with pytest.raises(PermissionMissingError, match="No DAGs"):
            client.fetch_dags()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(ask, range(24)))
    assert len(mwaa.server.logins) == 2


def test_many_threads_sign_in_once(mwaa: Mwaa) -> None:
    client = mwaa.declare_client()
    with ThreadPoolExecutor(16) as threads:
        pending = [threads.submit(client.fetch_dags) for _ in range(48)]
        assert {len(dags.result(timeout=30)) for dags in pending} == {1}
        mwaa.server.end_sessions()
        pending = [threads.submit(client.fetch_dags) for _ in range(48)]
        assert {len(dags.result(timeout=30)) for dags in pending} == {1}
    assert len(mwaa.server.logins) == len(mwaa.aws.requests) == 2


@pytest.mark.parametrize("api", ["v2"])
def test_no_secret_of_a_sign_in_is_logged(mwaa: Mwaa, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="federation_defs")
    caplog.set_level(logging.DEBUG, logger="urllib3")
    client = mwaa.declare_client()
    assert_works(client)
    secrets = (SECRET_KEY, mwaa.aws.token, mwaa.server.session)
    shown = f"{caplog.text} {client!r} {client.session!r} {vars(client.session)}"
    assert not [secret for secret in secrets if secret in shown]


@pytest.mark.parametrize("api", ["v2"])
def test_a_session_is_renewed_before_it_expires(mwaa: Mwaa) -> None:
    """The session of Airflow 3 is a token with a lifetime. That of Airflow 2 is not."""
    mwaa.server.life_s = 1000
    clock = FakeClock()
    client = mwaa.declare_client(timing=clock.timing)
    assert_works(client)
    clock.advance(899)
    assert_works(client)
    assert len(mwaa.server.logins) == 1
    clock.advance(2)
    assert_works(client)
    assert len(mwaa.server.logins) == 2
