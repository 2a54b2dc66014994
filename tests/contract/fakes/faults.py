"""Faults that a test plans for a fake Airflow.

A fault is given the server's own way to answer, and gives what is sent instead; None is a
connection that is closed without an answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from threading import Event
from typing import Any

from werkzeug import Response

Act = Callable[[], Response]
Fault = Callable[[Act], Response | None]

LOGIN_PAGE = "<!DOCTYPE html><html><title>Sign in</title></html>"


def hang_up(_act: Act) -> None:
    """Do nothing and close the connection."""


def hang_up_after_acting(act: Act) -> None:
    """Do what was asked, but lose the answer."""
    act()


def cut_short(act: Act) -> Response:
    """Answer with the first half of the body, as if it were all."""
    response = act()
    body = response.get_data()
    response.set_data(body[: len(body) // 2])
    return response


def say_no_time(act: Act) -> Response:
    """Answer without a `Date` header."""
    response = act()
    del response.headers["Date"]
    return response


def answer(
    status: int, body: Any = "", headers: Mapping[str, str] | None = None, *, acts: bool = False
) -> Fault:
    """Answer something else: a text as HTML, anything else as JSON.

    Args:
        acts: What was asked is done nevertheless.
    """
    is_html = isinstance(body, str)

    def fault(act: Act) -> Response:
        if acts:
            act()
        content_type = "text/html; charset=utf-8" if is_html else "application/json"
        text = body if is_html else json.dumps(body)
        return Response(text, status, headers, content_type=content_type)

    return fault


def lag(seconds: float) -> Fault:
    """Do what was asked, and answer after a delay."""

    def respond(act: Act) -> Response:
        response = act()
        time.sleep(seconds)
        return response

    return respond


def edit(change: Callable[[Any], None]) -> Fault:
    """Change the JSON of the answer in place."""

    def fault(act: Act) -> Response:
        response = act()
        content = json.loads(response.get_data())
        change(content)
        response.set_data(json.dumps(content))
        return response

    return fault


class Stall:
    """Holds an answer back until the end of the `with` block."""

    def __init__(self) -> None:
        self._entered = Event()
        self._released = Event()

    def __call__(self, act: Act) -> Response:
        self._entered.set()
        self._released.wait(60)
        return act()

    def wait_until_entered(self) -> None:
        assert self._entered.wait(60), "nobody asked within 60 s"

    def release(self) -> None:
        self._released.set()

    def __enter__(self) -> Stall:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
