"""What the sensors tell that Dagster has stored of all code locations: which location observes an
Airflow instance, whether a sensor was changed, and how many there are."""

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

_MAX_CURSOR_AGE_S = 7 * 86400.0  # of a sensor from whose code location an instance was moved
_LAST_TICKS = 100

# By instance, its sensors as they were stored at a time of the monotonic clock.
_sensors: WeakKeyDictionary[dg.DagsterInstance, tuple[float, Sequence[Any]]] = WeakKeyDictionary()
_sensors_lock = threading.Lock()
_MAX_WAIT_S = 2.0  # for it


def fetch_sensor_cursor(
    instance: dg.DagsterInstance, sensor_name: str, code_location: str
) -> str | None:
    """Fetch the cursor that Dagster has stored of a sensor; None if there is none."""
    state = fetch_sensor_state(instance, sensor_name, code_location)
    return getattr(state and state.instigator_data, "cursor", None)


def fetch_sensor_state(
    instance: dg.DagsterInstance, sensor_name: str, code_location: str, max_age_s: float = 0.0
) -> Any:
    """Fetch what Dagster has stored of a sensor; None if there is nothing.

    Args:
        max_age_s: How long ago this process may have read it. All sensors then share a query, which
            takes about as long as one for a single sensor.
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

    Of several locations that declare the instance, it is the alphabetically first. One whose
    sensors of the instance are all off does not count, nor one where none has ticked for five
    minutes: it was removed. All times are the daemon's.

    Args:
        max_age_s: How long ago this process may have read the sensors. It takes longer, the more
            the deployment has.

    Returns:
        Its name, and when it has ticked; None if there is none.
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
    """Raise an error in a sensor of an Airflow instance that another code location observes.

    Raises:
        DeclaredTwiceError: There is one.
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

    If the instance has moved away from it, its sensors no longer tick. For some minutes, that looks
    like a pause between two ticks. Wait until it is clear: no sensor would request the run again.
    """
    seen, until = None, timing.monotonic() + timing.removed_sensor_s
    while owner := find_observing_location(instance, airflow, location, timing):
        if seen is None:
            log.info(
                f"Airflow '{airflow}' was observed by the code location '{owner[0]}' lately. "
                "Waiting up to five minutes to see whether it still is."
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
    """Find the cursor of the sensor of this name in the code location from which it was moved.

    None if this location's own sensor has ticked before, and did not fail, or no other has ticked
    in the last seven days. Dagster keeps the cursors of sensors whose location was removed (1.13).
    """
    now, found, own = 0.0, dict[float, str](), None
    for state, ticked_at in _fetch_ticked(instance, timing, timing.other_sensors_s):
        now = max(now, ticked_at)
        name, location = _get_name(state)
        cursor = getattr(state.instigator_data, "cursor", None)
        if name == sensor_name and location == code_location:
            own = state
        elif name == sensor_name and cursor:  # it has none where it was only refused
            found[ticked_at] = cursor
    last = max(found, default=0.0)
    is_moved = found and last >= now - _MAX_CURSOR_AGE_S
    return found[last] if is_moved and not (own and _has_ticked(instance, own)) else None


def count_ticking_sensors(
    instance: dg.DagsterInstance, code_location: str | None, timing: Timing
) -> tuple[int, int]:
    """Count the sensors that have ticked within the last five minutes, of a code location and of
    the deployment. Without those of automation conditions, which Dagster evaluates itself."""
    ticked = list(_fetch_ticked(instance, timing, timing.count_sensors_s))
    since = max((at for _, at in ticked), default=0.0) - timing.removed_sensor_s
    locations = [
        _get_name(each)[1] for each, at in ticked if at >= since and not _is_automation(each)
    ]
    return locations.count(code_location or ""), len(locations)


def find_seconds_until_conditions(
    instance: dg.DagsterInstance, began_at: float, timing: Timing
) -> float | None:
    """Find how long after the beginning of a tick the daemon evaluates automation conditions next;
    None if it evaluates none, or if that is not known.

    It does so in a loop of its own, which takes as long as the one of other sensors, unless there
    are too many conditions. All times are the daemon's, so that its clock need not be right.

    Args:
        began_at: When the daemon has begun the tick, in seconds since 1970.
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
    # A loop evaluates one sensor after the other, and pauses then.
    loop_at = min(each for each in at if each > last - loop_s / 2)
    if any(loop_at - loop_s / 2 < each < loop_at for each in at):
        return None
    return (loop_at - began_at) % loop_s


def _has_ticked(instance: dg.DagsterInstance, sensor: Any) -> bool:
    """Whether one of a sensor's last ticks did not fail. The stored sensor does not show it: the
    daemon forgets the last success before each evaluation (1.13)."""
    ids = sensor.instigator_origin_id, sensor.selector_id
    ticks = instance.get_ticks(*ids, limit=_LAST_TICKS)
    return any(tick.status.value in ("SUCCESS", "SKIPPED") for tick in ticks)


def _fetch_ticked(
    instance: dg.DagsterInstance, timing: Timing, max_age_s: float
) -> Iterator[tuple[Any, float]]:
    """Iterate over the stored sensors, with the time at which the last tick of each began; 0 if
    none has. Without those that have ticked in the future: a clock was wrong then."""
    until = (timing.utc_now() + MAX_CLOCK_SKEW).timestamp()
    # Of automation sensors, only the second one is left after a tick (1.13).
    names = "last_tick_start_timestamp", "last_tick_timestamp"
    for state in _fetch_sensors(instance, max_age_s):
        ticked_at = max(getattr(state.instigator_data, name, None) or 0.0 for name in names)
        if ticked_at <= until:
            yield state, ticked_at


def _fetch_sensors(instance: dg.DagsterInstance, max_age_s: float = 0.0) -> Sequence[Any]:
    """Fetch the stored sensors and schedules of all code locations, or return what this process
    fetched lately."""
    asked_at = time.monotonic()
    fetched_at, sensors = _sensors.get(instance, (-math.inf, ()))
    if max_age_s > 0 and fetched_at >= asked_at - max_age_s:
        return sensors
    # The sensors of a code location tick at the same time. None waits long for another's query.
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
