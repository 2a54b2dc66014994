"""Queries of the sensors that Dagster has stored for all code locations: which location observes an
Airflow instance, whether a sensor was changed, and how many sensors tick."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import dagster as dg

from federation_defs.errors import DeclaredTwiceError
from federation_defs.naming import build_sensor_name
from federation_defs.timing import MAX_CLOCK_SKEW, Timing

# Since the last tick of the sensor whose cursor is taken over after an instance has moved.
_MAX_CURSOR_AGE_S = 7 * 86400.0
_LAST_TICKS = 100

# By Dagster instance: when its sensors were read, by the monotonic clock, and the sensors.
_sensors: WeakKeyDictionary[dg.DagsterInstance, tuple[float, Sequence[Any]]] = WeakKeyDictionary()
_sensors_lock = threading.Lock()
_MAX_WAIT_S = 2.0  # for the lock


def fetch_sensor_cursor(
    instance: dg.DagsterInstance, sensor_name: str, code_location: str
) -> str | None:
    """Fetch the cursor that Dagster has stored for a sensor; None if it has stored none."""
    state = fetch_sensor_state(instance, sensor_name, code_location)
    return getattr(state and state.instigator_data, "cursor", None)


def fetch_sensor_state(
    instance: dg.DagsterInstance, sensor_name: str, code_location: str, max_age_s: float = 0.0
) -> Any:
    """Fetch the state that Dagster has stored for a sensor; None if it has stored none.

    Args:
        max_age_s: How old, in seconds, the result may be. If it is more than 0, all sensors of this
            process share one query, which takes about as long as that for a single sensor.
    """
    if max_age_s > 0:
        return _find_sensor(_fetch_sensors(instance, max_age_s), sensor_name, code_location)
    _, known = _sensors.get(instance, (0.0, ()))
    sensor = _find_sensor(known, sensor_name, code_location)
    sensor = sensor or _find_sensor(_fetch_sensors(instance), sensor_name, code_location)
    if sensor is None:
        return None
    return instance.get_instigator_state(sensor.instigator_origin_id, sensor.selector_id)


def find_observing_location(
    instance: dg.DagsterInstance,
    airflow: str,
    code_location: str,
    timing: Timing,
    max_age_s: float = 0.0,
) -> tuple[str, float] | None:
    """Find the other code location that observes an Airflow instance and runs its DAGs.

    Of several locations that declare the instance, the alphabetically first one does. A location
    does not count if all of its sensors of the instance are off. Nor does it if none of them has
    ticked for five minutes (`timing.removed_sensor_s`): it is taken for removed. All times are by
    the daemon's clock.

    Args:
        code_location: This location. Only those before it in the alphabet are considered.
        max_age_s: How old, in seconds, the list of sensors may be. Reading it takes the longer, the
            more sensors the deployment has.

    Returns:
        The location's name, and when one of its sensors last ticked, in seconds since 1970. None if
        there is no such location.
    """
    names = {build_sensor_name(airflow, kind) for kind in ("observation", "automation", "events")}
    now, found = 0.0, dict[str, float]()
    for state, ticked_at in _fetch_ticked(instance, timing, max_age_s):
        now = max(now, ticked_at)
        name, location = _get_name(state)
        if name in names and state.is_running and location < code_location:
            found[location] = max(ticked_at, found.get(location, 0.0))
    living = (each for each in found.items() if each[1] >= now - timing.removed_sensor_s)
    return min(living, default=None)


def refuse_second_location(
    instance: dg.DagsterInstance, airflow: str, code_location: str | None, timing: Timing
) -> None:
    """Raise an error if another code location observes an Airflow instance.

    Args:
        code_location: This location; None in tests, where nothing is checked.

    Raises:
        DeclaredTwiceError: Another code location observes the instance.
    """
    max_age_s = timing.other_sensors_s
    if code_location is None:
        return
    if owner := find_observing_location(instance, airflow, code_location, timing, max_age_s):
        raise DeclaredTwiceError(airflow, code_location, owner[0])


def wait_for_observing_location(
    instance: dg.DagsterInstance,
    airflow: str,
    location: str,
    timing: Timing,
    log: logging.Logger,
) -> str | None:
    """Find the other code location that observes an Airflow instance, and so runs its DAGs.

    If the instance has moved away from a location, that location's sensors no longer tick. For up
    to five minutes (`timing.removed_sensor_s`), this looks like a pause between two ticks. The
    function waits until the two can be distinguished, because no sensor would request a refused
    Dagster run again.

    Returns:
        The location's name; None if no other location observes the instance.
    """
    seen, until = None, timing.monotonic() + timing.removed_sensor_s
    while owner := find_observing_location(instance, airflow, location, timing):
        if seen is None:
            log.info(
                f"The code location '{owner[0]}' has observed Airflow '{airflow}' recently. "
                "Waiting up to five minutes to find out whether it still does."
            )
        elif owner[0] == seen[0] and owner != seen:
            return owner[0]
        elif timing.monotonic() > until:
            break
        seen = owner
        timing.sleep(timing.max_tick_interval_s)
    return None


def find_moved_cursor(
    instance: dg.DagsterInstance, sensor_name: str, code_location: str, timing: Timing
) -> str | None:
    """Find the cursor that a sensor had in the code location from which its instance was moved.

    Dagster keeps the cursors of sensors whose location was removed (1.13). If several locations
    have a cursor of a sensor of this name, the sensor that ticked last is taken.

    Returns:
        The cursor. None if this location's own sensor has ticked without failing, or if none of the
        others has ticked in the last seven days.
    """
    now, found, own = 0.0, dict[float, str](), None
    for state, ticked_at in _fetch_ticked(instance, timing, timing.other_sensors_s):
        now = max(now, ticked_at)
        name, location = _get_name(state)
        cursor = getattr(state.instigator_data, "cursor", None)
        if name == sensor_name and location == code_location:
            own = state
        elif name == sensor_name and cursor:  # a sensor that was only refused has no cursor
            found[ticked_at] = cursor
    last = max(found, default=0.0)
    is_moved = found and last >= now - _MAX_CURSOR_AGE_S
    return found[last] if is_moved and not (own and _has_ticked(instance, own)) else None


def count_ticking_sensors(
    instance: dg.DagsterInstance, code_location: str | None, timing: Timing
) -> tuple[int, int]:
    """Count the sensors that have ticked within the last five minutes (`timing.removed_sensor_s`).

    Sensors of automation conditions don't count: Dagster evaluates them without the code server.

    Returns:
        The numbers of the code location and of the whole deployment.
    """
    ticked = list(_fetch_ticked(instance, timing, timing.count_sensors_s))
    since = max((at for _, at in ticked), default=0.0) - timing.removed_sensor_s
    locations = [
        _get_name(each)[1] for each, at in ticked if at >= since and not _is_automation(each)
    ]
    return locations.count(code_location or ""), len(locations)


def find_seconds_until_conditions(
    instance: dg.DagsterInstance, began_at: float, timing: Timing
) -> float | None:
    """Find how many seconds after the beginning of a tick the daemon next evaluates automation
    conditions.

    The daemon evaluates conditions in a loop of their own. It takes as long as the loop of other
    sensors (`timing.daemon_loop_s`), unless there are too many conditions. All times are by the
    daemon's clock, which therefore need not be right.

    Args:
        began_at: When the daemon began the tick, in seconds since 1970.

    Returns:
        Less than `timing.daemon_loop_s`. None if the daemon evaluates no conditions, or if its
        loops can't be distinguished because one takes too long.
    """
    loop_s = timing.daemon_loop_s
    at = [
        ticked_at
        for each, ticked_at in _fetch_ticked(instance, timing, timing.other_sensors_s)
        if _is_automation(each) and each.is_running
    ]
    last = max(at, default=0.0)
    if last < began_at - timing.removed_sensor_s:
        return None
    # A loop evaluates one sensor after the other, then pauses. Ticks less than half a loop before
    # the last one belong to its loop. If there was no pause before these, the loop takes too long.
    loop_at = min(each for each in at if each > last - loop_s / 2)
    if any(loop_at - loop_s / 2 < each < loop_at for each in at):
        return None
    return (loop_at - began_at) % loop_s


def _has_ticked(instance: dg.DagsterInstance, sensor: Any) -> bool:
    """Whether one of a sensor's last 100 ticks did not fail. The stored sensor does not show this:
    the daemon clears the last success before each evaluation (1.13)."""
    ids = sensor.instigator_origin_id, sensor.selector_id
    ticks = instance.get_ticks(*ids, limit=_LAST_TICKS)
    return any(tick.status.value in ("SUCCESS", "SKIPPED") for tick in ticks)


def _fetch_ticked(
    instance: dg.DagsterInstance, timing: Timing, max_age_s: float
) -> Iterator[tuple[Any, float]]:
    """Iterate over the stored sensors, each with the time at which its last tick began, in seconds
    since 1970; 0 if it has never ticked.

    A sensor that has ticked more than `MAX_CLOCK_SKEW` in the future is left out: a clock was wrong
    then.
    """
    until = (timing.utc_now() + MAX_CLOCK_SKEW).timestamp()
    # After a tick, an automation sensor has only the second of these (1.13).
    names = "last_tick_start_timestamp", "last_tick_timestamp"
    for state in _fetch_sensors(instance, max_age_s):
        ticked_at = max(getattr(state.instigator_data, name, None) or 0.0 for name in names)
        if ticked_at <= until:
            yield state, ticked_at


def _fetch_sensors(instance: dg.DagsterInstance, max_age_s: float = 0.0) -> Sequence[Any]:
    """Fetch the stored sensors and schedules of all code locations, or return those that this
    process fetched at most `max_age_s` ago."""
    asked_at = time.monotonic()
    fetched_at, sensors = _sensors.get(instance, (-math.inf, ()))
    if max_age_s > 0 and fetched_at >= asked_at - max_age_s:
        return sensors
    # The sensors of a code location tick at the same time, and share a query. No sensor waits long
    # for the query of another one.
    is_locked = max_age_s > 0 and _sensors_lock.acquire(timeout=_MAX_WAIT_S)
    try:
        fetched_at, sensors = _sensors.get(instance, (-math.inf, ()))
        if not is_locked or fetched_at < asked_at - max_age_s:
            now = time.monotonic()
            sensors = instance.all_instigator_state()
            _sensors[instance] = now, sensors
    finally:
        if is_locked:
            _sensors_lock.release()
    return sensors


def _find_sensor(sensors: Sequence[Any], name: str, code_location: str) -> Any:
    wanted = name, code_location
    return next((each for each in sensors if _get_name(each) == wanted), None)


def _is_automation(state: Any) -> bool:
    kind = getattr(state.instigator_data, "sensor_type", None)
    return getattr(kind, "value", None) == "AUTO_MATERIALIZE"


def _get_name(state: Any) -> tuple[str, str]:
    """Return the name of a sensor, and of its code location."""
    origin = state.origin
    return origin.instigator_name, origin.repository_origin.code_location_origin.location_name
