"""Long polling: a tick without news goes on, so that Dagster's daemon begins fewer of them.

A tick costs the daemon 0.05 to 0.1 CPU seconds, whatever it does (dagster 1.13). It takes a thread
of the daemon and one of the code server as long as it goes on.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

import dagster as dg

from federation_defs.dagster_io.code_locations import count_ticking_sensors
from federation_defs.timing import Timing

_Result = TypeVar("_Result")

_MAX_THREADS = "DAGSTER_GRPC_MAX_WORKERS", "DAGSTER_CODE_SERVER_MAX_WORKERS"
# Of a code server's threads, for other sensors, and for what the UI asks.
_SPARE_THREADS = 2


def count_threads(environment: Mapping[str, str], cpus: int) -> int:
    """Count the threads in which a code server answers. `dagster code-server start` is a proxy with
    threads of its own: the smaller number counts."""
    declared = [environment.get(name, "") for name in _MAX_THREADS]
    usual = _count_usual_threads(cpus)
    return min(int(each) if each.isdecimal() else usual for each in declared)


def _count_usual_threads(cpus: int) -> int:
    """Count the threads that Python gives an executor unless told otherwise."""
    return min(32, cpus + 4)


_cpus = os.cpu_count() or 1
long_ticks = threading.BoundedSemaphore(max(0, count_threads(os.environ, _cpus) - _SPARE_THREADS))


def long_poll(
    context: dg.SensorEvaluationContext,
    instance: dg.DagsterInstance,
    timing: Timing,
    poll: Callable[[float], tuple[_Result, float | None]],
) -> _Result:
    """Poll until there is news, for as long as a tick may take.

    It polls once where long ticks would delay others: the daemon or the code server has no thread
    for each. So it does for a person, who evaluates the sensor in the UI.

    Args:
        poll: Takes a share of the time that it may usually take. Returns the tick's result, and the
            interval in seconds until the next poll begins; None if the tick ends with this result.
    """
    began_at = timing.monotonic()
    last_poll_at = began_at + timing.last_poll_s
    result, interval_s = poll(1.0)
    is_daemon = context.last_sensor_start_time is not None
    if interval_s is None or not (is_daemon and _has_thread_for_each(instance, timing)):
        return result
    if not long_ticks.acquire(blocking=False):
        return result
    try:
        while interval_s is not None:
            began_at = max(began_at + interval_s, now := timing.monotonic())
            if began_at > last_poll_at:
                break
            timing.sleep(began_at - now)
            result, interval_s = poll(timing.repeated_poll_share)
    finally:
        long_ticks.release()
    return result


def _has_thread_for_each(instance: dg.DagsterInstance, timing: Timing) -> bool:
    """Whether the daemon has a thread for each sensor of the deployment. By default it evaluates
    one after the other."""
    settings = instance.get_settings("sensors") or {}
    threads = settings.get("num_workers") or _count_usual_threads(_cpus)
    return bool(settings.get("use_threads")) and threads >= count_ticking_sensors(instance, timing)
