"""Waiting with a deadline: what does not come in time fails, and says what was waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(
    find: Callable[[], T | None], what: str, timeout_s: float = 60, interval_s: float = 0.5
) -> T:
    """What `find` finds: the first answer that is neither None nor False."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = find()
        if found is not None and found is not False:
            return found
        assert time.monotonic() < deadline, f"after {timeout_s:.0f} s still not: {what}"
        time.sleep(interval_s)
