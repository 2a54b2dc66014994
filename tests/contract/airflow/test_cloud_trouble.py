"""Amazon MWAA that gives no session: by whose fault, and without a word of any secret."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug import Response

from federation_defs.errors import CredentialError, UnreachableError
from tests.contract.clients import format_error_chain
from tests.contract.fakes.sign_ins import ENVIRONMENT, SECRET_KEY, FakeAws, Mwaa, start_mwaa
from tests.processes import find_free_port


@pytest.fixture
def mwaa(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Mwaa]:
    with start_mwaa("v2", monkeypatch, tmp_path) as mwaa:
        yield mwaa


@pytest.mark.parametrize(
    ("code", "status"), [("AccessDeniedException", 403), ("ResourceNotFoundException", 404)]
)
def test_a_refusal_of_aws_is_reported_with_its_code(
    mwaa: Mwaa, caplog: pytest.LogCaptureFixture, code: str, status: int
) -> None:
    mwaa.aws.answer = lambda: FakeAws.refuse(code, status)
    with pytest.raises(CredentialError, match=rf"{ENVIRONMENT} \({code}\)\)\. Check") as error:
        mwaa.declare_client().fetch_dags()
    assert mwaa.server.logins == []
    assert SECRET_KEY not in format_error_chain(error.value) + caplog.text


def test_another_host_gets_no_token(mwaa: Mwaa) -> None:
    mwaa.aws.host = "other.airflow.amazonaws.com"
    with pytest.raises(CredentialError, match=r"at other\..* and `url` is http://127") as error:
        mwaa.declare_client().fetch_dags()
    assert mwaa.server.logins == []
    assert "web-login-token" not in format_error_chain(error.value)


@pytest.mark.parametrize("missing", ["account", "region", "profile", "aws"])
def test_an_unreachable_aws_is_reported(
    mwaa: Mwaa, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    auth: dict[str, Any] = {"region": {"region": None}, "profile": {"profile": "nobody"}}.get(
        missing, {}
    )
    if missing == "account":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    if missing == "aws":
        monkeypatch.setenv("AWS_ENDPOINT_URL_MWAA", f"http://127.0.0.1:{find_free_port()}")
    with pytest.raises(CredentialError, match=f"AWS gave no login for .* {ENVIRONMENT}") as error:
        mwaa.declare_client(**auth).fetch_dags()
    assert SECRET_KEY not in format_error_chain(error.value)
    assert mwaa.server.logins == []


def test_a_login_that_gives_no_session_is_reported_without_its_token(mwaa: Mwaa) -> None:
    mwaa.server.login_answer = lambda: Response("no cookie", 200)
    with pytest.raises(CredentialError, match=r"gave no session") as error:
        mwaa.declare_client().fetch_dags()
    assert "web-login-token" not in format_error_chain(error.value)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_login_that_is_not_possible_now_is_no_fault_of_the_account(
    mwaa: Mwaa, status: int
) -> None:
    """As while the environment is updated: what waits out an instance that is away, waits."""
    mwaa.server.login_answer = lambda: Response("later", status)
    with pytest.raises(UnreachableError, match=str(status)):
        mwaa.declare_client().fetch_dags()
