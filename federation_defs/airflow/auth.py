"""Ways to sign in: one `requests.auth.AuthBase` each. Secrets never show in a repr."""

from __future__ import annotations

import threading
from typing import Any

import requests
from requests.auth import AuthBase, HTTPBasicAuth

from federation_defs.airflow.session import (
    CONNECT_TIMEOUT_S,
    READ_TIMEOUT_S,
    NoAuth,
    NoTokenError,
)


class PasswordAuth(AuthBase):
    """Airflow 3: a token for user name and password, from `POST /auth/token`.

    The token (valid 24 h unless the server says otherwise) is fetched on first use, and again when
    the server stops accepting it: 401, or 403 `Invalid JWT token` after its secret changed. Many
    threads renew it once.

    Args:
        url: The instance's URL.
    """

    def __init__(self, url: str, username: str, password: str) -> None:
        self._token_url = url.rstrip("/") + "/auth/token"
        self._account = {"username": username, "password": password}
        self._token: str | None = None
        self._lock = threading.Lock()
        self._session = requests.Session()
        self._session.auth = NoAuth()

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        token = self._token or self._renew(None)
        # With no token the server's own 401 comes back, and is told as any other.
        if token:
            r.headers["Authorization"] = f"Bearer {token}"
            r.register_hook("response", self._retry_with_new_token)
        return r

    def _renew(self, refused: str | None) -> str | None:
        with self._lock:
            if self._token == refused:
                answer = self._session.post(
                    self._token_url,
                    json=self._account,
                    timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
                    allow_redirects=False,  # the password would go along
                )
                if answer.status_code >= 500:
                    answer.raise_for_status()  # it can't now, which says nothing of the password
                self._token = _parse_token(answer) if answer.status_code == 201 else None
            return self._token

    def _retry_with_new_token(
        self, response: requests.Response, **kwargs: Any
    ) -> requests.Response:
        if not _is_token_refused(response):
            return response
        refused = str(response.request.headers.get("Authorization")).removeprefix("Bearer ")
        token = self._renew(refused)
        if token is None or token == refused:
            return response
        response.close()
        again = response.request.copy()
        again.headers["Authorization"] = f"Bearer {token}"
        # Past the session and its hooks, so once: a second refusal is final.
        renewed = response.connection.send(again, **kwargs)  # type: ignore[attr-defined]
        renewed.history.append(response)
        return renewed


class BasicAuth(HTTPBasicAuth):
    """Airflow 2 with the `basic_auth` back end: name and password on every request."""

    def __repr__(self) -> str:
        return "BasicAuth()"


def _parse_token(answer: requests.Response) -> str:
    try:
        return answer.json()["access_token"]
    except (requests.JSONDecodeError, KeyError, TypeError) as error:
        raise NoTokenError("no `access_token`") from error


def _is_token_refused(response: requests.Response) -> bool:
    if response.status_code == 401:
        return True
    return response.status_code == 403 and "Invalid JWT token" in response.text
