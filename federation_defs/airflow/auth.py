"""Ways to sign in, each a `requests.auth.AuthBase`."""

from __future__ import annotations

import base64
import json
import math
import re
import subprocess
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import requests
from requests.auth import AuthBase, HTTPBasicAuth

from federation_defs.airflow.http import NoAuth, Transport, read_cookie
from federation_defs.errors import AirflowError
from federation_defs.threads import SingleFlight

TOKEN_COMMAND_TIMEOUT_S = 30.0
_TOKEN = re.compile(r"[!-~]+")
_RENEW_AFTER = 0.9  # of a credential's lifetime


class NotSignedInError(Exception):
    """There are no credentials to sign in with.

    Attributes:
        reason: The source of the credentials and what it did, without any part of a secret.
        response: The server's answer that gave no credentials; None if it was not asked.
    """

    def __init__(self, reason: str, response: requests.Response | None = None) -> None:
        self.reason = reason
        self.response = response
        super().__init__(reason)


class SignIn(AuthBase):
    """A way to sign in. Some can renew their credentials when these are refused."""

    def prepare(self) -> None:
        """Fetch credentials if there are no valid ones, before the request takes a connection.

        Raises:
            NotSignedInError: There are no credentials.
        """

    def renew(self, response: requests.Response) -> bool:  # noqa: ARG002 - most can't
        """Renew the credentials if this answer refuses them. Return whether to send the request
        again."""
        return False


class OpenAuth(NoAuth, SignIn):
    """Sends no credentials."""


class UnsetAuth(SignIn):
    """Refuses every request, because environment variables are not set."""

    def prepare(self) -> None:
        raise NotSignedInError("environment variables are not set")


@dataclass(frozen=True)
class Credential:
    """A header that signs a request in.

    Attributes:
        header: Name and value.
        lifetime_s: The seconds that it is valid from now on; infinite if that is not known.
    """

    header: tuple[str, str] = field(repr=False)
    lifetime_s: float = math.inf


class RenewableAuth(SignIn):
    """A credential that expires. It is fetched on first use, before it expires, and when it is
    refused. Concurrent requests share one fetch."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._credential: Credential | None = None
        self._renew_at = math.inf
        self._single_fetch: SingleFlight[Credential] = SingleFlight()

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        self.prepare()
        assert self._credential is not None  # noqa: S101 - prepared above
        name, value = self._credential.header
        r.headers[name] = value
        return r

    def prepare(self) -> None:
        credential = self._credential
        if credential is None or self._is_outdated():
            self._replace(credential)

    def renew(self, response: requests.Response) -> bool:
        current = self._credential
        if current is None or not self._is_refusal(response):
            return False
        name, value = current.header
        if response.request.headers.get(name) == value:
            return self._replace(current).header != current.header
        return True  # another thread has renewed it since

    def _replace(self, old: Credential | None) -> Credential:
        """Fetch a new credential, unless another thread has replaced the old one."""

        def fetch() -> Credential:
            current = self._credential
            if current is None or current is old:
                current = self._fetch()
                self._renew_at = self._monotonic() + current.lifetime_s * _RENEW_AFTER
                self._credential = current
            return current

        return self._single_fetch.do(fetch)

    def _is_outdated(self) -> bool:
        return self._monotonic() >= self._renew_at

    def _is_refusal(self, response: requests.Response) -> bool:
        return is_refused(response)

    @abstractmethod
    def _fetch(self) -> Credential:
        """Fetch a new credential, or raise a `NotSignedInError`."""


class PasswordAuth(RenewableAuth):
    """Airflow 3: a token from `POST /auth/token`, valid for 24 h by default."""

    def __init__(self, transport: Transport, username: str, password: str) -> None:
        super().__init__(transport.timing.monotonic)
        self._transport = transport
        self._account = {"username": username, "password": password}

    def _fetch(self) -> Credential:
        # Repeatable: a second token does no harm.
        response = self._transport.send(
            "POST", "/auth/token", auth=NoAuth(), is_repeatable=True, json=self._account
        )
        if response.status_code not in (200, 201):  # early 3.0 answered 200
            raise NotSignedInError("no token", response)
        try:
            return build_bearer(_check_token(response.json()["access_token"], "the answer"))
        except (ValueError, RecursionError, KeyError, TypeError, NotSignedInError) as error:
            raise NotSignedInError("no `access_token`", response) from error


class TokenAuth(RenewableAuth):
    """A fixed bearer token. It is not renewed: after it expires, declare a new one."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token

    def _fetch(self) -> Credential:
        return build_bearer(_check_token(self._token, "`auth.token`"))


class TokenFileAuth(RenewableAuth):
    """A bearer token in a file that another program rotates. It is read again after each change."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = Path(path)
        self._version: tuple[int, int, int] | None = None

    def _is_outdated(self) -> bool:
        return self._read_version() != self._version

    def _fetch(self) -> Credential:
        version = self._read_version()
        try:
            content = self._path.read_bytes()
        except OSError as error:
            raise self._build_error(error) from error
        credential = build_bearer(_check_token(content, f"the token file {self._path}"))
        self._version = version
        return credential

    def _read_version(self) -> tuple[int, int, int]:
        try:
            stat = self._path.stat()
        except (OSError, ValueError) as error:  # ValueError for a null byte in its path
            raise self._build_error(error) from error
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _build_error(self, error: OSError | ValueError) -> NotSignedInError:
        reason = getattr(error, "strerror", None) or str(error)
        return NotSignedInError(f"the token file {self._path} can't be read ({reason})")


class TokenCommandAuth(RenewableAuth):
    """A bearer token that a program prints. The program is run on first use, when the token is
    refused, and, if the token is a JWT, before it expires."""

    def __init__(self, command: Sequence[str], monotonic: Callable[[], float]) -> None:
        super().__init__(monotonic)
        self._command = list(command)

    def _fetch(self) -> Credential:
        program = self._command[0]
        try:
            # The command is from the same declaration as passwords, and runs without a shell.
            completed = subprocess.run(  # noqa: S603
                self._command,
                capture_output=True,
                timeout=TOKEN_COMMAND_TIMEOUT_S,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            took = f"took more than {TOKEN_COMMAND_TIMEOUT_S:.0f} s"
            # Without the cause, which quotes the arguments.
            raise NotSignedInError(f"the token command {program} {took}") from None
        except (OSError, ValueError) as error:  # ValueError for a null byte in its arguments
            reason = getattr(error, "strerror", None) or str(error)
            raise NotSignedInError(f"the token command {program} failed ({reason})") from error
        if completed.returncode != 0:
            # Without its output, which may contain a secret.
            ended = f"ended with exit code {completed.returncode}"
            raise NotSignedInError(f"the token command {program} {ended}")
        return build_bearer(_check_token(completed.stdout, f"the token command {program}"))


def build_bearer(token: str) -> Credential:
    """Return the credential of a bearer token. The lifetime of a JWT counts from now on, since the
    server's clock may differ from this one's."""
    claims = _read_claims(token)
    lifetime_s = claims.get("exp", 0) - claims.get("iat", math.inf)
    header = ("Authorization", f"Bearer {token}")
    return Credential(header, lifetime_s if lifetime_s > 0 else math.inf)


def is_refused(response: requests.Response) -> bool:
    """Return whether the credentials were refused: a 401, or the 403 that 3.x answers to a token
    signed with another secret. Any other 403 is a missing permission."""
    if response.status_code == 401:
        return True
    return response.status_code == 403 and b"Invalid JWT token" in response.content


def _read_claims(token: str) -> dict[str, float]:
    """Return `iat` and `exp` of a JWT, unverified, in seconds since 1970; {} for other tokens."""
    parts = token.split(".")
    if len(parts) != 3:
        return {}
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return {name: float(claims[name]) for name in ("exp", "iat") if name in claims}
    except (ValueError, TypeError, OverflowError, RecursionError):
        return {}


def _check_token(value: object, source: str) -> str:
    """Return the token without surrounding white space. Refuse one that a header can't hold.

    Args:
        source: Where the token is from, for the error.

    Raises:
        NotSignedInError: There is no token, or a header can't hold it.
    """
    token = value.strip() if isinstance(value, bytes | str) else b""
    text = token.decode("ascii", "replace") if isinstance(token, bytes) else token
    if not _TOKEN.fullmatch(text):
        content = "no token that a header can hold" if text else "no token"
        raise NotSignedInError(f"{source} holds {content}")
    return text


# A login takes two requests and one password hash; it pays off after about this many requests.
REQUESTS_BEFORE_LOGIN = 5
_LOGIN = "/login/"
_CSRF_INPUT = re.compile(r"<input[^>]*\bname=\"csrf_token\"[^>]*>")
_VALUE = re.compile(r"\bvalue=\"([^\"]+)\"")


class BasicAuth(HTTPBasicAuth, SignIn):
    """Airflow 2 with the `basic_auth` back end: name and password with every request.

    Each such request costs the server 0.1 s of CPU, since it hashes the password (2.11). Where the
    `session` back end is enabled too (as in Airflow's docker-compose.yaml), a request within a
    session of the web pages costs a fifth. So after a few requests, the client logs in to these
    pages. It tries that once, and again when a session that was accepted has ended.
    """

    def __init__(self, transport: Transport, username: str, password: str) -> None:
        # As bytes: requests encodes text as Latin-1, and Airflow reads UTF-8.
        super().__init__(username.encode(errors="replace"), password.encode(errors="replace"))
        self._transport = transport
        self._cookie: str | None = None
        self._has_session_worked = False
        self._requests_before_login = REQUESTS_BEFORE_LOGIN  # below 0 after the login
        self._lock = threading.Lock()

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        if (cookie := self._cookie) is not None:
            r.headers["Cookie"] = cookie
            return r
        return super().__call__(r)

    def prepare(self) -> None:
        if self._is_login_due():
            self._cookie = self._log_in()

    def renew(self, response: requests.Response) -> bool:
        sent = response.request.headers.get("Cookie")
        is_refused = response.status_code in (401, 403)
        if sent is None:
            with self._lock:
                if self._requests_before_login > 0 and not is_refused:
                    self._requests_before_login -= 1
            return False
        if not is_refused:
            self._has_session_worked = True
            return False
        # The session expired or is not accepted, or a permission is missing. The request is sent
        # again with name and password: if it is refused again, a permission is missing.
        with self._lock:
            if self._cookie == sent:
                self._cookie = None
                if self._has_session_worked:
                    self._requests_before_login = REQUESTS_BEFORE_LOGIN
        return True

    def _is_login_due(self) -> bool:
        """Return True to one thread only. The others continue with name and password."""
        with self._lock:
            is_due = self._requests_before_login == 0
            self._requests_before_login -= is_due
            return is_due

    def _log_in(self) -> str | None:
        """Return a session's cookie, or None if the login page gives none."""
        try:
            page = self._transport.send("GET", _LOGIN, auth=NoAuth(), is_repeatable=False)
            html = page.content.decode(errors="replace")  # whatever charset it declares
            csrf_input = _CSRF_INPUT.search(html) if page.status_code == 200 else None
            csrf_token = _VALUE.search(csrf_input[0]) if csrf_input else None
            if csrf_token is None:
                return None
            account = {"username": self.username, "password": self.password}
            answer = self._transport.send(
                "POST",
                _LOGIN,
                auth=_PageSession(page),
                is_repeatable=False,
                data={"csrf_token": csrf_token[1], **account},
            )
        except AirflowError:
            return None  # name and password still work
        session = read_cookie(answer, "session")
        # A refused login redirects back to the login page.
        is_in = answer.is_redirect and not answer.headers["Location"].endswith(_LOGIN)
        return f"session={session}" if is_in and session else None


class _PageSession(NoAuth):
    """The session that the login page started. The form is only accepted within it."""

    def __init__(self, page: requests.Response) -> None:
        self._session = read_cookie(page, "session", _LOGIN)

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._session:
            r.headers["Cookie"] = f"session={self._session}"
        return r
