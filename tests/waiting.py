"""Waiting with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(
    find: Callable[[], T | None], what: str, timeout_s: float = 120, interval_s: float = 0.5
) -> T:
    """Call `find` until it returns neither None nor False, and return the result.

    Args:
        what: What is waited for, for the error.
        timeout_s: The deadline. It only matters when a test fails, so it has room for a machine
            that is busy with other things.
        interval_s: The pause between two calls.

    Raises:
        AssertionError: The deadline has passed.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        found = find()
        if found is not None and found is not False:
            return found
        assert time.monotonic() < deadline, f"still not after {timeout_s:.0f} s: {what}"
        time.sleep(interval_s)
