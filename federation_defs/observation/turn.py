"""Several looks in one turn of Dagster's sensor daemon."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import dagster as dg

# The daemon takes a turn every 5 s at best (1.13). A tick whose last look begins by then is over
# when the next turn comes. So late, for the asset daemon, which decides what follows, has turns of
# its own, often at the same moment as these: what is seen at their beginning waits for all of 5 s.
LAST_LOOK_S = 4.1
# Ticks of several instances that do so at a time, of the half a dozen threads of a code server.
_may_linger = threading.BoundedSemaphore(3)


def look_for_news(look: Callable[[], dg.SensorResult], interval_s: float) -> dg.SensorResult:
    """What one look gives; if that is no event, what the next ones of this turn do."""
    began = time.monotonic()
    result = look()
    if interval_s > LAST_LOOK_S or not _may_linger.acquire(blocking=False):
        return result
    try:
        offset_s = interval_s
        while not result.asset_events and offset_s <= LAST_LOOK_S:
            time.sleep(max(0.0, began + offset_s - time.monotonic()))
            result = look()
            offset_s += interval_s
        return result
    finally:
        _may_linger.release()
