"""Calls that have to be over by a moment."""

from __future__ import annotations

import time
from threading import Event

import pytest

from federation_defs.threads import run_calls


def test_all_that_is_over_in_time_is_given_in_order() -> None:
    soon = time.monotonic() + 10
    assert run_calls([lambda: "a", lambda: "b", lambda: "c"], 2, soon) == ["a", "b", "c"]
    assert run_calls([], 2, soon) == []


def test_what_is_not_over_in_time_is_none_and_waited_for_no_longer() -> None:
    is_over = Event()
    began = time.monotonic()
    given = run_calls([lambda: True, lambda: is_over.wait(30)], 2, began + 0.2)
    assert time.monotonic() - began < 10
    is_over.set()
    assert given == [True, None]


def test_what_has_not_even_begun_by_then_never_does() -> None:
    is_over, begun = Event(), []
    calls = [lambda: is_over.wait(30), lambda: begun.append(True) is None]
    assert run_calls(calls, 1, time.monotonic() + 0.2) == [None, None]
    is_over.set()
    time.sleep(0.2)
    assert begun == []


def test_an_error_in_time_is_raised() -> None:
    def fail() -> None:
        raise LookupError("no")

    with pytest.raises(LookupError, match="no"):
        run_calls([fail], 1, time.monotonic() + 10)
