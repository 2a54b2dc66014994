"""Fakes for signing in: tokens of any kind, Amazon MWAA and Google, each on loopback."""

from __future__ import annotations

import json
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from typing_extensions import Self
from werkzeug import Request, Response
from werkzeug.utils import redirect

from federation_defs.airflow.client import AirflowClient
from federation_defs.timing import Timing
from tests.contract.clients import FAST_RETRIES, clear_environment, declare_client
from tests.contract.fakes.airflow import PASSWORD, USERNAME, FakeAirflow
from tests.contract.fakes.endpoints import build_json
from tests.contract.fakes.faults import LOGIN_PAGE
from tests.contract.fakes.proxies import serve


def build_jwt(claims: Any, number: int = 0) -> str:
    """Build a JWT with these claims, which may be given as text."""
    text = claims if isinstance(claims, str) else json.dumps(claims)
    parts = ['{"alg": "HS512"}', text, f"signature-{number}"]
    return ".".join(urlsafe_b64encode(part.encode()).rstrip(b"=").decode() for part in parts)


def build_timed_jwt(life_s: float, number: int = 0, skew_s: float = 0) -> str:
    """Build a JWT that is issued now and expires after `life_s`, by a clock ahead by `skew_s`."""
    now = time.time() + skew_s
    return build_jwt({"iat": now, "exp": now + life_s, "sub": "1"}, number)


class TokenAirflow(FakeAirflow):
    """An Airflow 3 that issues and accepts a single token.

    Attributes:
        token: That token.
    """

    token: str = ""  # pyright: ignore[reportIncompatibleMethodOverride]

    def __init__(self, token: str = "") -> None:
        super().__init__("v2")
        self.token = token  # pyright: ignore[reportIncompatibleMethodOverride]
        self.database.add_dag("load_customers")

    def __enter__(self) -> Self:
        self.start()
        return self

    def respond(self, request: Request, connection: int) -> Response | None:
        own = super().token
        if request.headers.get("Authorization") == f"Bearer {self.token}":
            request.environ["HTTP_AUTHORIZATION"] = f"Bearer {own}"
        response = super().respond(request, connection)
        if response is not None and own in response.get_data(as_text=True):
            response.set_data(json.dumps({"access_token": self.token}))
        return response


ENVIRONMENT = "analytics"
SECRET_KEY = "aws-secret-access-key"
_LOGINS = {"v1": ("/aws_mwaa/login", "session"), "v2": ("/pluginsv2/aws_mwaa/login", "_token")}

# What a web server says to a session that has ended.
ENDS = {
    "401": lambda: build_json({"detail": "Not authenticated"}, 401),
    "403": lambda: build_json({"detail": "Forbidden", "title": "Forbidden", "status": 403}, 403),
    "a login page": lambda: redirect("https://signin.aws.example.com/login?state=secret-state"),
}


@dataclass
class HttpService:
    """An HTTP service other than Airflow.

    Attributes:
        answer: What it says, if not what it is there for.
        requests: All requests, as (path, headers, body).
    """

    url: str = ""
    answer: Callable[[], Response] | None = None
    requests: list[tuple[str, dict[str, str], str]] = field(default_factory=list)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        request = Request(environ)
        body = request.get_data(as_text=True)
        self.requests.append((request.path, dict(request.headers), body))
        answer = self.answer() if self.answer else self.give(request.path)
        return answer(environ, start_response)

    def give(self, path: str) -> Response:
        raise NotImplementedError

    @contextmanager
    def running(self) -> Iterator[None]:
        with serve(self) as self.url:
            yield


@dataclass
class FakeAws(HttpService):
    """The API of MWAA.

    Attributes:
        host: Where it says that the environment's web server is.
    """

    host: str = "127.0.0.1"

    @property
    def token(self) -> str:
        """The last web login token."""
        return f"web-login-token-{len(self.requests)}"

    def give(self, path: str) -> Response:
        if path != f"/webtoken/{ENVIRONMENT}":
            return self.refuse("ResourceNotFoundException", 404)
        return build_json({"WebServerHostname": self.host, "WebToken": self.token})

    @staticmethod
    def refuse(code: str, status: int = 403) -> Response:
        response = build_json({"message": "You may not."}, status)
        response.headers["x-amzn-ErrorType"] = code
        return response


class MwaaAirflow(FakeAirflow):
    """An Airflow on MWAA, which only accepts the login tokens of AWS.

    Attributes:
        logins: The tokens that were traded for sessions, or tried to.
        life_s: Of a session, as its token says (3.x).
        end: What is answered without a session.
        login_answer: What the login answers, if no session.
    """

    def __init__(self, api: str, aws: FakeAws) -> None:
        super().__init__(api)
        self.logins: list[str] = []
        self.life_s = 3600.0
        self.end: Callable[[], Response] = ENDS["401"]
        self.login_answer: Callable[[], Response] | None = None
        self.session = "none yet"
        self._aws = aws
        self.database.add_dag("load_customers")

    def __enter__(self) -> Self:
        self.start()
        return self

    def end_sessions(self) -> None:
        self.session = "none any more"

    def respond(self, request: Request, connection: int) -> Response | None:
        path, cookie = _LOGINS[self.api]
        if request.path == path:
            return self._log_in(request, cookie)
        if request.path.startswith(f"/api/{self.api}/") and not request.path.endswith("/version"):
            sent = request.headers.get("Authorization" if self.api == "v2" else "Cookie", "")
            if sent != f"{'Bearer ' if self.api == 'v2' else 'session='}{self.session}":
                return self.end()
        # Which the fake itself knows by what it gives out.
        account = b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
        known = f"Basic {account}" if self.api == "v1" else f"Bearer {self.token}"
        request.environ["HTTP_AUTHORIZATION"] = known
        return super().respond(request, connection)

    def _log_in(self, request: Request, cookie: str) -> Response:
        self.logins.append(request.form.get("token", ""))
        if self.login_answer is not None:
            return self.login_answer()
        if self.logins[-1] != self._aws.token:
            return Response(LOGIN_PAGE, 401, content_type="text/html")
        number = len(self.logins)
        timed = build_timed_jwt(self.life_s, number)
        self.session = timed if self.api == "v2" else f"session-{number}"
        response = redirect("/home")
        response.set_cookie(cookie, self.session, httponly=True, secure=True, path="/")
        return response


@dataclass
class Mwaa:
    """A fake AWS and an MWAA environment."""

    aws: FakeAws
    server: MwaaAirflow

    def declare_client(
        self, url: str = "", timing: Timing = FAST_RETRIES, **auth: Any
    ) -> AirflowClient:
        declared = {"type": "mwaa", "environment": ENVIRONMENT, "region": "eu-west-1", **auth}
        return declare_client(url or self.server.url, declared, timing)


@contextmanager
def start_mwaa(api: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Mwaa]:
    """Start an environment, and a fake AWS where boto3 looks for it."""
    clear_environment(monkeypatch)
    aws = FakeAws()
    with aws.running(), MwaaAirflow(api, aws) as server:
        for name, value in {
            "AWS_ENDPOINT_URL_MWAA": aws.url,
            "AWS_DISABLE_HOST_PREFIX_INJECTION": "true",  # else it is env.127.0.0.1
            "AWS_ACCESS_KEY_ID": "federation",
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": str(folder / "config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials"),
            "AWS_MAX_ATTEMPTS": "1",
        }.items():
            monkeypatch.setenv(name, value)
        yield Mwaa(aws, server)


@dataclass
class FakeGoogle(HttpService):
    """Google's token endpoint for service accounts.

    Attributes:
        life_s: Of these.
    """

    life_s: int = 3600

    @property
    def token(self) -> str:
        return f"google-access-token-{len(self.requests)}"

    def give(self, path: str) -> Response:
        assert path == "/token"
        return build_json(
            {"access_token": self.token, "expires_in": self.life_s, "token_type": "Bearer"}
        )

    def write_account(self, path: Path) -> Path:
        """Write a service account's key file, and return its path."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        account = {
            "type": "service_account",
            "project_id": "analytics",
            "private_key_id": "1",
            "private_key": pem.decode(),
            "client_email": "federation@analytics.iam.gserviceaccount.com",
            "client_id": "1",
            "token_uri": f"{self.url}/token",
        }
        path.write_text(json.dumps(account))
        return path
