"""How dagster-airlift reaches an instance: by our client's way."""

from __future__ import annotations

from typing import Any

import requests
from dagster_airlift.core import AirflowAuthBackend
from typing_extensions import override

from federation_defs.airflow.client import AirflowClient


class ClientBackend(AirflowAuthBackend):
    """Where the instance is, and the way there; also for whoever asks it something of their own."""

    def __init__(self, client: AirflowClient) -> None:
        self._client = client

    @override
    def get_session(self) -> requests.Session:
        return _ClientSession(self._client)

    @override
    def get_webserver_url(self) -> str:
        return self._client.url


class _ClientSession(requests.Session):
    """Requests that go the client's way: its one pool, its pace, its sign-in, its errors."""

    def __init__(self, client: AirflowClient) -> None:
        super().__init__()
        self._client = client

    @override
    def request(self, method: str, url: str, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        session = self._client.session
        if not url.startswith(f"{session.url}/"):
            raise ValueError(f"{url} is not at {session.url}: its credentials would go along")
        given = {name for name, value in kwargs.items() if value is not None}
        headers = kwargs.get("headers") or {}
        # Time-outs are the client's own, and redirects are never followed.
        unknown = given - {"params", "json", "headers", "timeout", "allow_redirects"}
        if unknown or headers.keys() - {"Accept"}:
            raise TypeError(f"{method} {url}: only params, json and an Accept header are passed on")
        response = session.request(
            method.upper(),
            url.removeprefix(session.url),
            params=kwargs.get("params"),
            json=kwargs.get("json"),
            accept=headers.get("Accept"),
        )
        if response.status_code >= 300:
            raise session.build_error(response)
        return response
