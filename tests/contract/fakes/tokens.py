"""Tokens as servers and clouds make them, and a fake Airflow that takes any that a test names."""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64encode
from typing import Any

from typing_extensions import Self
from werkzeug import Request, Response

from tests.contract.fakes.airflow import FakeAirflow


def build_jwt(claims: Any, number: int = 0) -> str:
    """A JWT with these claims; as text, they are taken as they are."""
    text = claims if isinstance(claims, str) else json.dumps(claims)
    parts = ['{"alg": "HS512"}', text, f"signature-{number}"]
    return ".".join(urlsafe_b64encode(part.encode()).rstrip(b"=").decode() for part in parts)


def build_timed_jwt(life_s: float, number: int = 0, skew_s: float = 0) -> str:
    """A JWT that was made now and ends so much later, by a clock that is ahead by `skew_s`."""
    now = time.time() + skew_s
    return build_jwt({"iat": now, "exp": now + life_s, "sub": "1"}, number)


class TokenAirflow(FakeAirflow):
    """An Airflow 3 that gives and takes one token, whichever it is.

    Attributes:
        token: That one.
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
