"""Calls in threads with a time-out."""

from __future__ import annotations

from threading import Event

import pytest

from federation_defs.threads import run_in_threads


def test_results_are_returned_in_order() -> None:
    assert run_in_threads([lambda: "a", lambda: "b", lambda: "c"], 2, 60) == ["a", "b", "c"]
    assert run_in_threads([], 2, 60) == []


def test_a_call_that_is_not_done_in_time_gives_none_and_is_not_waited_for() -> None:
    started, released = Event(), Event()

    def hang() -> bool:
        started.set()
        return released.wait(60)

    results = run_in_threads([hang], 1, 0.05)
    assert not released.is_set()
    released.set()
    assert results == [None]


def test_a_call_that_has_not_started_in_time_never_does() -> None:
    released, first_is_over, second_started = Event(), Event(), Event()

    def hang() -> None:
        released.wait(60)
        first_is_over.set()

    results = run_in_threads([hang, second_started.set], 1, 1.0)
    assert results == [None, None]
    released.set()
    assert first_is_over.wait(60)
    # The only thread ends when it has nothing left to do.
    assert not second_started.wait(0.2)


def test_an_error_in_time_is_raised() -> None:
    def fail() -> None:
        raise LookupError("no")

    with pytest.raises(LookupError, match="no"):
        run_in_threads([fail], 1, 60)
