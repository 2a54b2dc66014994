"""Long polling: a tick without news continues and polls again, which reduces the number of ticks.

Each tick costs Dagster's daemon 0.05 to 0.1 CPU seconds, whatever it does (dagster 1.13). While it
runs, it occupies a thread of the daemon and a thread of the code server.

All times here are in seconds. A tick's schedule is counted from the moment when the daemon began
the tick, or, if that is not known, from the call of `long_poll`.
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
_SPARE_THREADS = 2  # of a code server, for requests of the daemon, of run workers and of the UI


def count_threads(environment: Mapping[str, str], cpus: int) -> int:
    """Return the number of threads in which a code server answers requests.

    `dagster code-server start` is a proxy with threads of its own, so the smaller of the two
    numbers counts. Where no number is set, Python's default applies: four threads plus one per
    core, at most 32. A number that was passed to the code server as `--max-workers` can't be read
    here.

    Args:
        environment: The environment variables of the code server.
        cpus: The number of cores.
    """
    usual = min(32, cpus + 4)
    declared = [environment.get(name, "") for name in _MAX_THREADS]
    return min(int(each) if each.isdecimal() else usual for each in declared)


_cpus = getattr(os, "process_cpu_count", os.cpu_count)() or 1  # the former from Python 3.13 on
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
    """Poll until there is news, or until the next poll can be left to the next tick.

    After a tick with several polls and no news, the daemon begins the next one
    `timing.long_tick_s` after the beginning of this one.

    Polls only once, and immediately, if the daemon or the code server does not have a thread for
    each sensor: a long tick would then delay other sensors. Does the same if a person evaluates
    the sensor in the UI.

    Args:
        poll: Called with the share of its usual time that the poll may take, from 0 to 1. Returns
            the tick's result, and the interval in seconds from the beginning of this poll to that
            of the next one; None instead of the interval ends the tick.
        threads: The number of threads of the code server.
        lead_s: One poll begins this many seconds before each time that the daemon evaluates
            automation conditions. It does so every five seconds, so an event that is stored just
            after that has to wait for five more seconds. If None, or if the time of the evaluation
            is not known, the first poll begins immediately.

    Returns:
        The result of the last poll.

    Raises:
        TickOutdatedError: The sensor was switched off, or its cursor was changed, during the tick.
    """
    entered_at = began_at = timing.monotonic()
    first_at_s, polled_at_s, is_long = 0.0, 0.0, False
    has_threads = partial(_has_threads, context, instance, timing, threads)

    def read_clock() -> float:
        return timing.monotonic() - began_at

    def pause_until(at_s: float) -> None:
        timing.sleep(max(0.0, at_s - read_clock()))
        # Sensors tick at the same time, and share a query of the stored sensors. Its result must
        # not be older than this tick, so that a change since the tick began is seen.
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
        # The next tick polls first at about `long_tick_s + first_at_s`. The last poll of this tick
        # has to begin this long before: nearly the interval, or the duration of a poll if longer.
        margin_s = max(now_s - polled_at_s, interval_s - timing.long_tick_slack_s)
        is_last = next_at_s + margin_s >= timing.long_tick_s + first_at_s
        if not (is_last or is_long) and (is_long := has_threads()):
            _fetch_current_state(context, instance)
        if is_last or not is_long:
            if polls > 1:  # or the daemon's next loop would already begin the next tick
                pause_until(timing.daemon_loop_s + timing.long_tick_slack_s)
            break
        pause_until(next_at_s)
        polls += 1
        result, interval_s = poll_now(timing.repeated_poll_share)
    return result


def _find_first_poll(
    state: Any, instance: dg.DagsterInstance, timing: Timing, lead_s: float
) -> tuple[float, float]:
    """Find how long ago the daemon began the tick, and when to poll first.

    Args:
        state: The sensor's state as Dagster has stored it.

    Returns:
        Seconds since the daemon began the tick, and the time of the first poll in seconds after
        that beginning. Two zeros if the beginning, or the time of the conditions, is not known.
    """
    began_at = getattr(state and state.instigator_data, "last_tick_start_timestamp", None)
    if began_at is None:
        return 0.0, 0.0
    until_conditions_s = find_seconds_until_conditions(instance, began_at, timing)
    if until_conditions_s is None:
        return 0.0, 0.0
    elapsed_s, loop_s = timing.utc_now().timestamp() - began_at, timing.daemon_loop_s
    if not 0.0 <= elapsed_s < timing.long_tick_slack_s:  # the daemon's clock differs from this one
        elapsed_s = 0.0
    # The first poll is early enough that a tick with news ends before the daemon's next loop, which
    # then begins the next tick.
    return elapsed_s, min((until_conditions_s - lead_s) % loop_s, loop_s - lead_s)


def _find_next_poll(
    timing: Timing, first_at_s: float, polled_at_s: float, interval_s: float, lead_s: float
) -> float:
    """Find when to poll again, in seconds since the beginning of the tick.

    In each loop of the daemon, polls begin no sooner than the first poll did in the first loop. An
    earlier poll that found news would end the tick, and the next tick begins only with the daemon's
    next loop. DAG runs that end after such a poll would miss the daemon's next evaluation of
    conditions.

    This does not apply if the interval is longer than a loop plus `timing.long_tick_slack_s`.

    Args:
        first_at_s: When the first poll of the tick began.
        polled_at_s: When the last poll began.
        interval_s: How long after that the next poll is due.
        lead_s: No poll begins in the last `lead_s` seconds of a loop.
    """
    loop_s, due_at_s = timing.daemon_loop_s, polled_at_s + interval_s
    # Because of rounding, 4.999999999 s count as a whole loop, too.
    loops = math.floor((polled_at_s - first_at_s) / loop_s + 1e-6)
    next_loop_at_s = loop_s * (loops + 1)
    is_in_next_loop = due_at_s > next_loop_at_s - lead_s
    if is_in_next_loop and interval_s < loop_s + timing.long_tick_slack_s:
        return next_loop_at_s + first_at_s
    return due_at_s


def _has_threads(
    context: dg.SensorEvaluationContext, instance: dg.DagsterInstance, timing: Timing, threads: int
) -> bool:
    """Whether a long tick delays no other sensor.

    For that, the daemon has to evaluate the tick, and to have a thread for each sensor of the
    deployment. The code server needs a thread for each sensor of the code location, and
    `_SPARE_THREADS` more.
    """
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
    # The UI passes neither of these. The daemon passes at least one: the first is missing after a
    # person has set the cursor in the UI (1.13).
    return (context.last_sensor_start_time, context.last_tick_completion_time) != (None, None)


def _fetch_current_state(
    context: dg.SensorEvaluationContext, instance: dg.DagsterInstance, max_age_s: float = 0.0
) -> Any:
    """Fetch the sensor's state as Dagster has stored it; None if it has stored none.

    Args:
        max_age_s: As `fetch_sensor_state` takes it.

    Raises:
        TickOutdatedError: Since the tick began, the sensor was switched off, or its cursor was
            changed. The tick has to fail: otherwise Dagster would store the cursor that the tick
            returns, and so undo the change.
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
