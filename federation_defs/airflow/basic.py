"""Signing in to Airflow 2: name and password, traded for a session where that is taken."""

from __future__ import annotations

import re
import threading

import requests
from requests.auth import HTTPBasicAuth

from federation_defs.airflow.auth import SignIn
from federation_defs.airflow.transport import NoAuth, Transport
from federation_defs.errors import AirflowError

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
