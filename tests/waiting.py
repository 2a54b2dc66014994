"""Waiting with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(
    find: Callable[[], T | None], what: str, timeout_s: float = 120, interval_s: float | None = None
) -> T:
    """Call `find` until it returns neither None nor False, and return the result.

    Args:
        what: What is waited for, for the error.
        timeout_s: The deadline. It only matters when a test fails, so it has room for a machine
            that is busy with other things.
        interval_s: The pause between two calls. By default it grows: each call of a live test costs
            time that its processes need.

    Raises:
        AssertionError: The deadline has passed.
    """
    began = time.monotonic()
    while True:
        found = find()
        if found is not None and found is not False:
            return found
        waited_s = time.monotonic() - began
        assert waited_s < timeout_s, f"still not after {timeout_s:.0f} s: {what}"
        time.sleep(min(2, max(0.5, waited_s / 20)) if interval_s is None else interval_s)
