"""Long polling: a tick without news goes on, so that Dagster's daemon begins fewer of them.

A tick costs the daemon 0.05 to 0.1 CPU seconds, whatever it does (dagster 1.13). It takes a thread
of the daemon and one of the code server as long as it goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TypeVar

import dagster as dg

from federation_defs.dagster_io.code_locations import count_ticking_sensors, fetch_sensor_state
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
) -> _Result:
    """Poll until there is news, for as long as a tick may take.

    It polls once where long ticks would delay others: the daemon or the code server has no thread
    for each sensor. So it does for a person, who evaluates the sensor in the UI.

    Args:
        poll: Takes a share of the time that it may usually take. Returns the tick's result, and the
            interval in seconds until the next poll begins; None if the tick ends with this result.
        threads: Of the code server.

    Raises:
        TickOutdatedError: The sensor was switched off, or its cursor was changed, in a pause.
    """
    tick_began_at = began_at = timing.monotonic()
    result, interval_s = poll(1.0)
    polls = 1
    while interval_s is not None:
        now, loop_at = timing.monotonic(), tick_began_at + timing.daemon_loop_s
        next_at = began_at + interval_s
        if began_at < loop_at < next_at and interval_s < timing.daemon_loop_s:
            # The daemon evaluates automation conditions next then: what has ended is known by then.
            next_at = loop_at
        next_at = max(next_at, now)
        # The first poll of the next tick is not much sooner after the last one of this one.
        margin_s = max(now - began_at, interval_s - timing.long_tick_slack_s)
        is_last = next_at + margin_s >= tick_began_at + timing.long_tick_s
        if polls == 1 and (is_last or not _may_be_long(context, instance, timing, threads)):
            break
        if is_last:  # but not before the daemon's next loop, which would begin another tick
            next_at = loop_at + timing.long_tick_slack_s
        timing.sleep(max(0.0, next_at - now))
        if not _is_current(context, instance):
            raise TickOutdatedError(context.sensor_name)
        if is_last:
            break
        began_at, polls = timing.monotonic(), polls + 1
        result, interval_s = poll(timing.repeated_poll_share)
    return result


def _may_be_long(
    context: dg.SensorEvaluationContext, instance: dg.DagsterInstance, timing: Timing, threads: int
) -> bool:
    """Whether the daemon evaluates this tick, and has a thread for each sensor of the deployment,
    and the code server one for each sensor of the code location."""
    # The UI passes neither. The first is missing after the cursor was set there (1.13).
    if context.last_sensor_start_time is None and context.last_tick_completion_time is None:
        return False
    settings = instance.get_settings("sensors") or {}
    if not settings.get("use_threads") or not settings.get("num_workers"):
        return False
    origin = context.code_location_origin
    own, of_deployment = count_ticking_sensors(instance, origin and origin.location_name, timing)
    has_threads = of_deployment <= settings["num_workers"] and own <= threads - _SPARE_THREADS
    return has_threads and _is_current(context, instance)


def _is_current(context: dg.SensorEvaluationContext, instance: dg.DagsterInstance) -> bool:
    """Whether the sensor is as it was when the tick began. Dagster stores the cursor that a tick
    returns, and would undo what a person has changed meanwhile."""
    if (origin := context.code_location_origin) is None:
        return True
    state = fetch_sensor_state(instance, context.sensor_name, origin.location_name)
    if state is None:
        return True
    stored = getattr(state.instigator_data, "cursor", None)
    return state.is_running and (stored or None) == (context.cursor or None)
