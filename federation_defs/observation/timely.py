"""Calls that have to be over by a moment: what Dagster gives a sensor is a minute, all in all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")


def run_in_time(calls: Sequence[Callable[[], T]], threads: int, deadline: float) -> list[T | None]:
    """What the calls give, in their order; None for those that are not over by then.

    Those that are under way are left to themselves: requests end by their own time-outs.

    Args:
        threads: How many are made at a time.
        deadline: By the monotonic clock.

    Raises:
        Exception: What one of them raised in time.
    """
    pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="timely")
    try:
        futures = [pool.submit(call) for call in calls]
        done, _ = wait(futures, timeout=max(0.0, deadline - time.monotonic()))
        return [future.result() if future in done else None for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
