"""Long polling: a tick without news goes on, so that Dagster's daemon begins fewer of them.

A tick costs the daemon 0.05 to 0.1 CPU seconds, whatever it does (dagster 1.13). It takes a thread
of the daemon and one of the code server as long as it goes on.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import dagster as dg

from federation_defs.dagster_io.code_locations import (
    count_ticking_sensors,
    fetch_sensor_state,
    find_seconds_until_conditions,
)
from federation_defs.errors import TickOutdatedError
from federation_defs.timing import Timing

_Result = TypeVar("_Result")

_MAX_THREADS = "DAGSTER_GRPC_MAX_WORKERS", "DAGSTER_CODE_SERVER_MAX_WORKERS"
_SPARE_THREADS = 2  # of a code server, for what the daemon, run workers and the UI ask


def count_threads(environment: Mapping[str, str], cpus: int) -> int:
    """Count the threads in which a code server answers. `dagster code-server start` is a proxy with
    threads of its own: the smaller number counts.

    Python gives an executor four, and one for each core, unless told otherwise. Here it can't be
    seen that `--max-workers` was passed to the code server.
    """
    usual = min(32, cpus + 4)
    declared = [environment.get(name, "") for name in _MAX_THREADS]
    return min(int(each) if each.isdecimal() else usual for each in declared)


_cpus = getattr(os, "process_cpu_count", os.cpu_count)() or 1  # from Python 3.13 on
_threads = count_threads(os.environ, _cpus)


def long_poll(
    context: dg.SensorEvaluationContext,
    instance: dg.DagsterInstance,
    timing: Timing,
    poll: Callable[[float], tuple[_Result, float | None]],
    threads: int = _threads,
    *,
    lead_s: float | None = None,
) -> _Result:
    """Poll until there is news, for as long as a tick may take.

    It polls once, and at once, where long ticks would delay others: the daemon or the code server
    has no thread for each sensor. So it does for a person, who evaluates the sensor in the UI.

    Args:
        poll: Takes a share of the time that it may usually take. Returns the tick's result, and the
            interval in seconds until the next poll begins; None if the tick ends with this result.
        threads: Of the code server.
        lead_s: How long before the daemon evaluates automation conditions, which it does every
            five seconds, one of the polls begins. What is stored a moment after that waits for five
            seconds more. If it is None, the first poll begins at once.

    Raises:
        TickOutdatedError: The sensor was switched off, or its cursor was changed, meanwhile.
    """
    entered_at = began_at = timing.monotonic()
    first_at_s, polled_at_s, is_long = 0.0, 0.0, False
    has_threads = partial(_has_threads, context, instance, timing, threads)

    def read_clock() -> float:
        return timing.monotonic() - began_at

    def pause_until(at_s: float) -> None:
        timing.sleep(max(0.0, at_s - read_clock()))
        # Sensors tick at the same time, and share what was read after each of them had begun.
        max_age_s = min(timing.sensor_state_s, timing.monotonic() - entered_at)
        _fetch_current_state(context, instance, max_age_s)

    def poll_now(share: float) -> tuple[_Result, float | None]:
        nonlocal polled_at_s
        polled_at_s = read_clock()
        polled = poll(share)
        is_slow = read_clock() - polled_at_s > timing.sensor_state_s
        if is_slow and _is_by_daemon(context):
            _fetch_current_state(context, instance)
        return polled

    if lead_s is not None and (is_long := has_threads()):
        state = _fetch_current_state(context, instance)
        elapsed_s, first_at_s = _find_first_poll(state, instance, timing, lead_s)
        began_at = timing.monotonic() - elapsed_s
        pause_until(first_at_s)
    polls = 1
    result, interval_s = poll_now(1.0)
    while interval_s is not None:
        now_s = read_clock()
        next_at_s = _find_next_poll(timing, first_at_s, polled_at_s, interval_s, lead_s or 0.0)
        next_at_s = max(now_s, next_at_s)
        # The first poll of the next tick is not much sooner after the last one of this one.
        margin_s = max(now_s - polled_at_s, interval_s - timing.long_tick_slack_s)
        is_last = next_at_s + margin_s >= timing.long_tick_s + first_at_s
        if not (is_last or is_long) and (is_long := has_threads()):
            _fetch_current_state(context, instance)
        if is_last or not is_long:
            if polls > 1:  # or the daemon's next loop would begin another tick
                pause_until(timing.daemon_loop_s + timing.long_tick_slack_s)
            break
        pause_until(next_at_s)
        polls += 1
        result, interval_s = poll_now(timing.repeated_poll_share)
    return result


def _find_first_poll(
    state: Any, instance: dg.DagsterInstance, timing: Timing, lead_s: float
) -> tuple[float, float]:
    """Find how long ago the daemon has begun the tick, and when to poll first, in seconds since
    then; zeros if that is not known.

    Args:
        state: Of the sensor, as Dagster has stored it.
    """
    began_at = getattr(state and state.instigator_data, "last_tick_start_timestamp", None)
    if began_at is None:
        return 0.0, 0.0
    until_conditions_s = find_seconds_until_conditions(instance, began_at, timing)
    if until_conditions_s is None:
        return 0.0, 0.0
    elapsed_s, loop_s = timing.utc_now().timestamp() - began_at, timing.daemon_loop_s
    if not 0.0 <= elapsed_s < timing.long_tick_slack_s:  # another machine's clock
        elapsed_s = 0.0
    # If there is news, the tick ends before the daemon's next loop, which begins the next tick.
    return elapsed_s, min((until_conditions_s - lead_s) % loop_s, loop_s - lead_s)


def _find_next_poll(
    timing: Timing, first_at_s: float, polled_at_s: float, interval_s: float, lead_s: float
) -> float:
    """Find when to poll again, in seconds since the beginning of the tick.

    In each loop of the daemon, the first poll is as late as in the first loop. One before that
    would end the tick if there is news, and no other tick begins before the daemon's next loop.

    Args:
        first_at_s: When the tick has polled first.
        polled_at_s: When it has polled last.
        lead_s: Within this time before the daemon's next loop, no poll begins.
    """
    loop_s, due_at_s = timing.daemon_loop_s, polled_at_s + interval_s
    loops = math.floor((polled_at_s - first_at_s) / loop_s + 1e-6)  # 4.999999999 is one, too
    next_loop_at_s = loop_s * (loops + 1)
    is_in_next_loop = due_at_s > next_loop_at_s - lead_s
    if is_in_next_loop and interval_s < loop_s + timing.long_tick_slack_s:
        return next_loop_at_s + first_at_s
    return due_at_s


def _has_threads(
    context: dg.SensorEvaluationContext, instance: dg.DagsterInstance, timing: Timing, threads: int
) -> bool:
    """Whether the daemon evaluates this tick, and has a thread for each sensor of the deployment,
    and the code server one for each sensor of the code location."""
    if not _is_by_daemon(context):
        return False
    settings = instance.get_settings("sensors") or {}
    if not settings.get("use_threads") or not settings.get("num_workers"):
        return False
    origin = context.code_location_origin
    own, of_deployment = count_ticking_sensors(instance, origin and origin.location_name, timing)
    return of_deployment <= settings["num_workers"] and own <= threads - _SPARE_THREADS


def _is_by_daemon(context: dg.SensorEvaluationContext) -> bool:
    """Whether the daemon evaluates this tick, and not a person in the UI."""
    # The UI passes neither. The first is missing after the cursor was set there (1.13).
    return (context.last_sensor_start_time, context.last_tick_completion_time) != (None, None)


def _fetch_current_state(
    context: dg.SensorEvaluationContext, instance: dg.DagsterInstance, max_age_s: float = 0.0
) -> Any:
    """Fetch the sensor as Dagster has stored it; None if there is nothing.

    Raises:
        TickOutdatedError: It is not as it was when the tick began. Dagster stores the cursor that a
            tick returns, and would undo what a person has changed meanwhile, unless the tick fails.
    """
    if (origin := context.code_location_origin) is None:
        return None
    name, location = context.sensor_name, origin.location_name
    state = fetch_sensor_state(instance, name, location, max_age_s)
    if state is not None:
        stored = getattr(state.instigator_data, "cursor", None)
        if not state.is_running or (stored or None) != (context.cursor or None):
            raise TickOutdatedError(context.sensor_name)
    return state
