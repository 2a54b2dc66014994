"""Ways to sign in: one `requests.auth.AuthBase` each. Secrets never appear in a repr."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import threading
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import requests
from requests.auth import AuthBase, HTTPBasicAuth

from federation_defs.airflow.http import NoAuth, Transport
from federation_defs.errors import AirflowError
from federation_defs.threads import SingleFlight

COMMAND_TIMEOUT_S = 30.0

_TOKEN = re.compile(r"[!-~]+")

_LIFE_USED = 0.9  # of a token's life, when the next is fetched


class NotSignedInError(Exception):
    """There is nothing to sign in with.

    Attributes:
        reason: What was asked for it and what it did, for a person; no part of a secret.
        response: The server's refusal, if it was the server that was asked.
    """

    def __init__(self, reason: str, response: requests.Response | None = None) -> None:
        self.reason = reason
        self.response = response
        super().__init__(reason)


class SignIn(AuthBase):
    """A way to sign in, which may be able to get new credentials when its old ones are refused."""

    def renew(self, response: requests.Response) -> bool:  # noqa: ARG002 - most can't
        """Whether the request that was answered so is worth sending again."""
        return False

    def prepare(self) -> None:
        """Has credentials at hand for the next request, so that it does not wait for them with a
        connection, and is not repeated for their sake.

        Raises:
            NotSignedInError: There are none.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class OpenAuth(NoAuth, SignIn):
    """Nothing is sent."""


@dataclass(frozen=True)
class Credential:
    """What a request carries.

    Attributes:
        header: Name and value.
        due_at: When to fetch the next one, by the monotonic clock; None if it does not say.
    """

    header: tuple[str, str] = field(repr=False)
    due_at: float | None = None

    @property
    def is_due(self) -> bool:
        return self.due_at is not None and time.monotonic() >= self.due_at


class RenewableAuth(SignIn):
    """Credentials that end: fetched on first use, before they end, and when they are refused.

    Many threads renew them once: those that come meanwhile wait for the one that does.
    """

    def __init__(self) -> None:
        self._credential: Credential | None = None
        self._fetching: SingleFlight[Credential] = SingleFlight()

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        self.prepare()
        assert self._credential is not None  # noqa: S101 - it is prepared
        name, value = self._credential.header
        r.headers[name] = value
        return r

    def prepare(self) -> None:
        credential = self._credential
        if credential is None or self._is_outdated(credential):
            self._replace(credential)

    def renew(self, response: requests.Response) -> bool:
        current = self._credential
        if current is None or not self._is_refusal(response):
            return False
        name, value = current.header
        if response.request.headers.get(name) == value:
            return self._replace(current).header != current.header
        return True  # somebody has renewed it since

    def _replace(self, old: Credential | None) -> Credential:
        return self._fetching.do(lambda: self._fetch_after(old))

    def _fetch_after(self, old: Credential | None) -> Credential:
        current = self._credential
        if current is old or current is None:
            self._credential = current = self._fetch()
        return current

    def _is_outdated(self, credential: Credential) -> bool:
        return credential.is_due

    def _is_refusal(self, response: requests.Response) -> bool:
        return is_refused(response)

    @abstractmethod
    def _fetch(self) -> Credential:
        """A new credential.

        Raises:
            NotSignedInError: There is none.
        """


class PasswordAuth(RenewableAuth):
    """Airflow 3: a token for user name and password, from `POST /auth/token`, valid 24 h unless
    the server says otherwise."""

    def __init__(self, transport: Transport, username: str, password: str) -> None:
        super().__init__()
        self._transport = transport
        self._account = {"username": username, "password": password}

    def _fetch(self) -> Credential:
        response = self._transport.send(
            # One more token does no harm.
            "POST",
            "/auth/token",
            auth=NoAuth(),
            is_repeatable=True,
            json=self._account,
        )
        if response.status_code not in (200, 201):  # 3.0 answered 200 at first
            raise NotSignedInError("no token", response)
        try:
            return build_bearer(_check_token(response.json()["access_token"], "the answer"))
        except (ValueError, RecursionError, KeyError, TypeError, NotSignedInError) as error:
            raise NotSignedInError("no `access_token`", response) from error


class TokenAuth(SignIn):
    """A bearer token that is what it is: once it ends, a person has to declare another."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        name, value = build_bearer(_check_token(self._token, "`auth.token`")).header
        r.headers[name] = value
        return r

    def prepare(self) -> None:
        _check_token(self._token, "`auth.token`")


class TokenFileAuth(RenewableAuth):
    """A bearer token in a file that another program rotates: read again whenever it changes."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = Path(path)
        self._read: tuple[int, int, int] | None = None

    def _is_outdated(self, credential: Credential) -> bool:  # noqa: ARG002 - its file decides
        return self._look() != self._read

    def _fetch(self) -> Credential:
        look = self._look()
        try:
            content = self._path.read_bytes()
        except OSError as error:
            raise self._fail(error) from error
        credential = build_bearer(_check_token(content, f"the token file {self._path}"))
        self._read = look
        return credential

    def _look(self) -> tuple[int, int, int]:
        try:
            stat = self._path.stat()
        except OSError as error:
            raise self._fail(error) from error
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _fail(self, error: OSError) -> NotSignedInError:
        why = error.strerror or type(error).__name__
        return NotSignedInError(f"the token file {self._path} can't be read ({why})")


class TokenCommandAuth(RenewableAuth):
    """A bearer token that a program prints: run on first use, before the token ends (if it is a
    JWT, which says when), and when it is refused."""

    def __init__(self, command: Sequence[str]) -> None:
        super().__init__()
        self._command = list(command)

    def _fetch(self) -> Credential:
        program = self._command[0]
        try:
            # Declared by whoever declares the passwords, and read by no shell.
            ran = subprocess.run(  # noqa: S603
                self._command,
                capture_output=True,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            said = f"the token command {program} took more than {COMMAND_TIMEOUT_S:.0f} s"
            raise NotSignedInError(said) from None  # it quotes the arguments
        except (OSError, ValueError) as error:  # the latter for a null in its arguments
            why = getattr(error, "strerror", None) or str(error)
            raise NotSignedInError(f"the token command {program} failed ({why})") from error
        if ran.returncode != 0:
            # Not its words: whoever can't print a secret may print how it asked for it.
            said = f"the token command {program} ended with exit code {ran.returncode}"
            raise NotSignedInError(said)
        return build_bearer(_check_token(ran.stdout, f"the token command {program}"))


def build_bearer(token: str) -> Credential:
    """The credential that a token is; of a JWT, it knows when it ends.

    By the life it was given, from now on: the server's clock may be another than ours.
    """
    claims = _read_claims(token)
    life_s = claims.get("exp", 0) - claims.get("iat", 0) if "iat" in claims else 0
    due_at = time.monotonic() + life_s * _LIFE_USED if life_s > 0 else None
    return Credential(("Authorization", f"Bearer {token}"), due_at)


def is_refused(response: requests.Response) -> bool:
    """Whether the credentials were not accepted: 401, or what 3.x says of a token that another
    secret signed. (Any other 403 is a missing permission.)"""
    if response.status_code == 401:
        return True
    return response.status_code == 403 and "Invalid JWT token" in response.text


def _read_claims(token: str) -> dict[str, float]:
    """When a JWT was made and when it ends, unverified, as the server is the one to judge it."""
    parts = token.split(".")
    if len(parts) != 3:
        return {}
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return {name: float(claims[name]) for name in ("exp", "iat") if name in claims}
    except (ValueError, TypeError, OverflowError, RecursionError):
        return {}


def _check_token(given: object, source: str) -> str:
    """The token that was given, without the white space around it."""
    token = given.strip() if isinstance(given, bytes | str) else b""
    text = token.decode("ascii", "replace") if isinstance(token, bytes) else token
    if not _TOKEN.fullmatch(text):
        seen = "no token that a header can hold" if text else "no token"
        raise NotSignedInError(f"{source} holds {seen}")
    return text


# Fewer requests than this cost less than the two of a login.
PATIENCE = 5

_LOGIN = "/login/"

_CSRF_INPUT = re.compile(r"<input[^>]*\bname=\"csrf_token\"[^>]*>")

_VALUE = re.compile(r"\bvalue=\"([^\"]+)\"")


class BasicAuth(HTTPBasicAuth, SignIn):
    """Airflow 2 with the `basic_auth` back end: name and password on every request.

    That costs the server 0.1 s of CPU each time, for it hashes the password anew (2.11). Where the
    `session` back end stands beside (as in Airflow's own docker-compose.yaml), a session of the web
    pages is taken as well, for a fifth of that: whoever asks much signs in there, once.
    """

    def __init__(self, transport: Transport, username: str, password: str) -> None:
        # As bytes: requests would take them for Latin-1, and Airflow reads UTF-8.
        super().__init__(username.encode(), password.encode())
        self._transport = transport
        self._cookie: str | None = None
        self._has_worked = False
        self._may_trade = True
        self._patience = PATIENCE
        self._lock = threading.Lock()

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        if (cookie := self._cookie) is not None:
            r.headers["Cookie"] = cookie
            return r
        return super().__call__(r)

    def __repr__(self) -> str:
        return "BasicAuth()"

    def renew(self, response: requests.Response) -> bool:
        used = response.request.headers.get("Cookie")
        is_refused = response.status_code in (401, 403)
        if used is None:
            if not is_refused and self._may_trade:
                self._trade_when_it_pays()
            return False
        if not is_refused:
            self._has_worked = True
            return False
        # Ended, or never taken, or a missing permission: name and password tell which.
        with self._lock:
            if self._cookie == used:
                self._cookie = None
                self._patience = PATIENCE
                self._may_trade = self._has_worked
        return True

    def _trade_when_it_pays(self) -> None:
        with self._lock:
            self._patience -= 1
            if self._patience != 0:
                return
        # Outside of the lock: the other threads go on with name and password meanwhile.
        cookie = self._sign_in()
        with self._lock:
            self._cookie = cookie
            self._may_trade = cookie is not None

    def _sign_in(self) -> str | None:
        """A session's cookie, or None if there is no such sign-in here."""
        try:
            page = self._transport.send("GET", _LOGIN, auth=NoAuth(), is_repeatable=False)
            field = _CSRF_INPUT.search(page.text) if page.status_code == 200 else None
            token = _VALUE.search(field[0]) if field else None
            if token is None:
                return None
            form = {"csrf_token": token[1], "username": self.username, "password": self.password}
            answer = self._transport.send(
                "POST",
                _LOGIN,
                auth=_CookieOf(page),
                is_repeatable=False,
                data=form,
            )
        except AirflowError:
            return None  # what it was good for goes on without
        session = answer.cookies.get("session")
        # Who is not let in is sent back to where they were.
        is_in = answer.is_redirect and not answer.headers["Location"].endswith(_LOGIN)
        return f"session={session}" if is_in and session else None


class _CookieOf(NoAuth):
    """The session that a page began, which its form belongs to."""

    def __init__(self, page: requests.Response) -> None:
        self._session = page.cookies.get("session")

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._session:
            r.headers["Cookie"] = f"session={self._session}"
        return r
