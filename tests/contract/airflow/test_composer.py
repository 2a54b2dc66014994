"""Cloud Composer, by the real google-auth; and what is said where a cloud's package is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from werkzeug import Response

from federation_defs.airflow.client import AirflowClient
from federation_defs.errors import CredentialError, SignInRefusedError
from federation_defs.timing import Timing
from tests.conftest import ROOT
from tests.contract.clients import (
    ACCOUNT_HINT,
    FAST_RETRIES,
    FakeClock,
    call_within,
    clear_environment,
    declare_client,
    format_error_chain,
)
from tests.contract.fakes.endpoints import build_json
from tests.contract.fakes.sign_ins import FakeGoogle, TokenAirflow
from tests.processes import find_free_port

ASK_WITHOUT = """
import sys
from federation_defs.errors import MissingExtraError
from tests.contract.clients import declare_client

mwaa = {"type": "mwaa", "environment": "analytics"}
composer = {"type": "composer"}
declare_client("http://127.0.0.1:1", mwaa)
declare_client("http://127.0.0.1:1", composer)
print({"boto3", "botocore", "google.auth"} & set(sys.modules))
for module, auth in (("boto3", mwaa), ("google.auth", composer), ("google", composer)):
    sys.modules[module] = None  # as if it were not installed
    try:
        declare_client("http://127.0.0.1:1", auth)
    except MissingExtraError as error:
        print(error)
"""


class GoogleAirflow(TokenAirflow):
    """It accepts the last token that Google issued, unless a test makes it accept none."""

    def __init__(self, google: FakeGoogle) -> None:
        super().__init__()
        self._google = google
        self.refuses = False

    def respond(self, request: Any, connection: int) -> Response | None:
        self.token = "none" if self.refuses else self._google.token
        return super().respond(request, connection)


class Composer:
    """Google, an environment of its, and an account's key file."""

    def __init__(self, google: FakeGoogle, server: GoogleAirflow, folder: Path) -> None:
        self.google, self.server = google, server
        self.key_file = google.write_account(folder / "account.json")

    @property
    def secrets(self) -> list[str]:
        """Parts of the key, line by line, and whatever was signed with it."""
        account = json.loads(self.key_file.read_text())
        lines = account["private_key"].splitlines()[1:-1]
        return lines + [body for _, _, body in self.google.requests]

    def declare_client(self, timing: Timing = FAST_RETRIES, **auth: Any) -> AirflowClient:
        declared = {"type": "composer", "credentials_file": str(self.key_file), **auth}
        return declare_client(self.server.url, declared, timing)


@pytest.fixture
def composer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Composer]:
    clear_environment(monkeypatch)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    google = FakeGoogle()
    with ExitStack() as running:
        running.enter_context(google.running())
        server = running.enter_context(GoogleAirflow(google))
        yield Composer(google, server, tmp_path)


def assert_works(client: AirflowClient) -> None:
    assert [dag.dag_id for dag in client.fetch_dags()] == ["load_customers"]


def test_a_service_account_gets_one_token_for_many_requests_and_threads(composer: Composer) -> None:
    client = composer.declare_client()
    with ThreadPoolExecutor(16) as threads:
        pending = [threads.submit(client.fetch_dags) for _ in range(48)]
        assert {len(dags.result(timeout=30)) for dags in pending} == {1}
    assert len(composer.google.requests) == 1


def test_a_token_is_renewed_before_it_expires(composer: Composer) -> None:
    composer.google.life_s = 1000
    clock = FakeClock()
    client = composer.declare_client(timing=clock.timing)
    assert_works(client)
    clock.advance(800)
    assert_works(client)
    assert len(composer.google.requests) == 1
    clock.advance(101)
    assert_works(client)
    assert len(composer.google.requests) == 2


def test_a_token_that_is_refused_is_renewed(composer: Composer) -> None:
    client = composer.declare_client()
    assert_works(client)
    composer.google.requests.append(("nobody", {}, ""))  # which makes the last token worthless
    assert_works(client)
    assert composer.server.count("GET", "/dags") == 3


def test_an_account_that_airflow_does_not_know_is_reported(composer: Composer) -> None:
    composer.server.refuses = True
    with pytest.raises(SignInRefusedError, match=ACCOUNT_HINT):
        composer.declare_client().fetch_dags()
    assert len(composer.google.requests) <= 2


def test_the_default_credentials_are_those_of_the_environment(
    composer: Composer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(composer.key_file))
    assert_works(composer.declare_client(credentials_file=None))


def test_missing_default_credentials_are_reported(composer: Composer) -> None:
    with pytest.raises(CredentialError, match=rf"Google gave no access token.*{ACCOUNT_HINT}"):
        call_within(20, composer.declare_client(credentials_file=None).fetch_dags)


@pytest.mark.parametrize("error", ["invalid_grant", "invalid_client", "unauthorized_client"])
def test_a_refusal_of_google_is_reported_without_the_key(
    composer: Composer, caplog: pytest.LogCaptureFixture, error: str
) -> None:
    words = {"error": error, "error_description": "Invalid JWT Signature."}
    composer.google.answer = lambda: build_json(words, 400)
    with pytest.raises(
        CredentialError, match=rf"{error}: Invalid JWT Signature.*{ACCOUNT_HINT}"
    ) as refused:
        composer.declare_client().fetch_dags()
    shown = format_error_chain(refused.value) + caplog.text
    assert not [secret for secret in composer.secrets if secret in shown]
    composer.google.answer = None


@pytest.mark.parametrize("answer", [Response("<h1>Sign in</h1>", 200), Response("", 404)])
def test_an_invalid_answer_of_google_is_reported_without_the_key(
    composer: Composer, answer: Response
) -> None:
    """As behind a proxy that wants a person to sign in."""
    composer.google.answer = lambda: answer
    with pytest.raises(CredentialError, match="Google gave no access token") as error:
        composer.declare_client().fetch_dags()
    assert not [secret for secret in composer.secrets if secret in format_error_chain(error.value)]


def test_an_unreachable_google_is_reported(composer: Composer) -> None:
    account = json.loads(composer.key_file.read_text())
    account["token_uri"] = f"http://127.0.0.1:{find_free_port()}/token"
    composer.key_file.write_text(json.dumps(account))
    with pytest.raises(CredentialError, match="Google gave no access token"):
        call_within(20, composer.declare_client().fetch_dags)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"type": "else"}', "half a key", None])
def test_an_invalid_key_file_is_named_and_not_quoted(
    composer: Composer, content: str | None
) -> None:
    secrets = composer.secrets
    if content is None:
        composer.key_file.unlink()
    elif content == "half a key":
        account = json.loads(composer.key_file.read_text())
        account["private_key"] = account["private_key"][:400]
        composer.key_file.write_text(json.dumps(account))
    else:
        composer.key_file.write_text(content)
    with pytest.raises(CredentialError, match=str(composer.key_file)) as error:
        composer.declare_client().fetch_dags()
    assert not [secret for secret in secrets if secret in format_error_chain(error.value)]


def test_no_secret_is_in_what_a_debugger_shows(composer: Composer) -> None:
    client = composer.declare_client()
    assert_works(client)
    shown = f"{client!r} {client.session!r} {vars(client.session)}"
    assert not [secret for secret in [*composer.secrets, composer.google.token] if secret in shown]


def test_a_clouds_package_is_imported_lazily_and_its_absence_reported_early() -> None:
    """In a process of its own, where no other test has loaded them yet."""
    finished = subprocess.run(
        [sys.executable, "-c", ASK_WITHOUT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    loaded, *printed = finished.stdout.splitlines()
    assert loaded == "set()"
    for line, extra in zip(printed, ("mwaa", "composer", "composer"), strict=True):
        assert line.startswith("Airflow 'metrics' is declared with")
        assert f"type: {extra}" in line
        assert f"Add the extra '{extra}' of federation-defs" in line
