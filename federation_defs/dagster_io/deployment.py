"""What a Dagster deployment runs besides this code location, and what this process is to it."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import dagster as dg

# Of a run whose worker starts, or the process of one of its steps.
_ACTIVE = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_STALE_AFTER_S = 300.0
_LEFT_WITHIN_S = 7 * 86400.0
_LAST_TICKS = 100

# Of connections to PostgreSQL and MySQL. Dagster ends a tick after 60 s. Firewalls drop connections
# that are idle for some minutes.
_STATEMENT_TIMEOUT_MS = 60_000
_RECONNECT_S = 240
_MAX_OVERFLOW = 20  # which are closed after use; one is kept per storage

_lock = threading.Lock()
_opened: list[tuple[object, dg.DagsterInstance]] = []  # with its reference; one at most
# By instance, its sensors as they were stored at a time of the monotonic clock.
_sensors: WeakKeyDictionary[dg.DagsterInstance, tuple[float, Sequence[Any]]] = WeakKeyDictionary()


@contextmanager
def share_instance(context: dg.SensorEvaluationContext) -> Iterator[dg.DagsterInstance]:
    """Return the Dagster instance of a tick. All ticks of this process share it.

    `context.instance` opens one for each tick and closes it (1.13), which takes longer than all
    else in most ticks, and connects to PostgreSQL six times. An instance is made for threads: the
    webserver shares one between requests, and keeps its connections. This one is never closed,
    since another tick may be using it. After a connection broke, the next tick opens another.
    """
    if (ref := context.instance_ref) is None:  # the context was built with an instance
        yield context.instance
        return
    if (instance := _find_opened(ref)) is None:
        with _lock:
            instance = _find_opened(ref) or _open(ref)
    try:
        yield instance
    except Exception as error:
        if _is_disconnected(error):
            with _lock:
                _opened[:] = [opened for opened in _opened if opened[1] is not instance]
        raise


def _find_opened(ref: object) -> dg.DagsterInstance | None:
    return next((instance for known, instance in tuple(_opened) if known == ref), None)


def _open(ref: Any) -> dg.DagsterInstance:
    instance = dg.DagsterInstance.from_ref(ref)
    instance.optimize_for_webserver(_STATEMENT_TIMEOUT_MS, _RECONNECT_S, _MAX_OVERFLOW)
    _opened[:] = [(ref, instance)]
    return instance


def _is_disconnected(error: BaseException | None) -> bool:
    """Whether a connection to the database broke. The instance has one per storage. SQLAlchemy
    replaces each when it is used next, and each time an error ends the tick."""
    if error is None:
        return False
    is_broken = getattr(error, "connection_invalidated", False)  # of SQLAlchemy's `DBAPIError`
    return is_broken or _is_disconnected(error.__cause__ or error.__context__)


def has_sensor_threads(instance: dg.DagsterInstance) -> bool:
    """Whether the daemon evaluates sensors in parallel: `sensors: {use_threads: true}`.

    If it doesn't, a slow sensor delays all others.
    """
    return bool((instance.get_settings("sensors") or {}).get("use_threads"))


def fetch_sensor_cursor(
    instance: dg.DagsterInstance, sensor_name: str, code_location: str
) -> str | None:
    """Fetch the cursor that Dagster has stored of a sensor; None if there is none."""

    def find(sensors: Sequence[Any]) -> Any:
        wanted = sensor_name, code_location
        return next((each for each in sensors if _get_name(each) == wanted), None)

    _, known = _sensors.get(instance, (0.0, ()))
    if (sensor := find(known) or find(_fetch_sensors(instance))) is None:
        return None
    state = instance.get_instigator_state(sensor.instigator_origin_id, sensor.selector_id)
    return getattr(state and state.instigator_data, "cursor", None)


def find_same_sensor(
    instance: dg.DagsterInstance, sensor_name: str, code_location: str, max_age_s: float = 0.0
) -> str | None:
    """Find another code location with a running sensor of this name.

    Of several locations, all but the first one by name find one. A sensor that has not ticked for
    five minutes, or three of its intervals, does not count: its location was removed. All times
    are the daemon's.

    Args:
        max_age_s: How long ago this process may have read the sensors. It takes longer, the more
            the deployment has.
    """
    now, found = 0.0, dict[str, float]()
    for state in _fetch_sensors(instance, max_age_s):
        ticked_at = getattr(state.instigator_data, "last_tick_start_timestamp", None)
        now = max(now, ticked_at or 0.0)
        name, location = _get_name(state)
        if name == sensor_name and state.is_running and location < code_location:
            interval_s = getattr(state.instigator_data, "min_interval", None) or 0
            found[location] = (ticked_at or 0.0) + max(_STALE_AFTER_S, 3 * interval_s)
    return min((location for location, until in found.items() if until >= now), default=None)


def get_last_tick(
    instance: dg.DagsterInstance, sensor_name: str, code_location: str
) -> float | None:
    """Return when the last tick of a sensor began, as of when its sensors were fetched last."""
    for state in _fetch_sensors(instance, math.inf):
        if _get_name(state) == (sensor_name, code_location):
            return getattr(state.instigator_data, "last_tick_start_timestamp", None)
    return None


def find_left_cursor(
    instance: dg.DagsterInstance, sensor_name: str, code_location: str
) -> str | None:
    """Find the cursor of the sensor of this name in the code location from which it was moved.

    None if this location's own sensor has ticked before, and did not fail, or no other has ticked
    in the last seven days. Dagster keeps the cursors of sensors whose location was removed (1.13).
    """
    now, found, own = 0.0, dict[float, str | None](), None
    for state in _fetch_sensors(instance):
        ticked_at = getattr(state.instigator_data, "last_tick_start_timestamp", None) or 0.0
        now = max(now, ticked_at)
        name, location = _get_name(state)
        if name == sensor_name and location != code_location:
            found[ticked_at] = getattr(state.instigator_data, "cursor", None)
        elif name == sensor_name:
            own = state
    last = max(found, default=0.0)
    is_left = found and last >= now - _LEFT_WITHIN_S
    return found[last] if is_left and not (own and _has_ticked(instance, own)) else None


def _has_ticked(instance: dg.DagsterInstance, sensor: Any) -> bool:
    """Whether one of a sensor's last ticks did not fail. What is stored of the sensor itself does
    not tell: the daemon forgets the last success before each evaluation (1.13)."""
    ids = sensor.instigator_origin_id, sensor.selector_id
    ticks = instance.get_ticks(*ids, limit=_LAST_TICKS)
    return any(tick.status.value in ("SUCCESS", "SKIPPED") for tick in ticks)


def _fetch_sensors(instance: dg.DagsterInstance, max_age_s: float = 0.0) -> Sequence[Any]:
    """Fetch the stored sensors and schedules of all code locations, or return what this process
    fetched lately."""
    now = time.monotonic()
    fetched_at, sensors = _sensors.get(instance, (-math.inf, ()))
    if now - fetched_at >= max_age_s:
        sensors = instance.all_instigator_state()
        _sensors[instance] = now, sensors
    return sensors


def _get_name(state: Any) -> tuple[str, str]:
    """Return the name of a sensor, and of its code location."""
    origin = state.origin
    return origin.instigator_name, origin.repository_origin.code_location_origin.location_name


def fetch_last_state(instance: dg.DagsterInstance, key: str, path: Path) -> None:
    """Write the last version of a component's state to a file, whatever version this process has
    loaded; nothing if none was stored."""
    storage = instance.defs_state_storage
    if storage and (version := storage.get_latest_version(key)):
        storage.download_state_to_path(key, version, path)


def is_reconstruction() -> bool:
    """Whether Dagster asks for definitions that it has loaded before: in a run worker, and once
    more in a code server. False where that can't be told."""
    context = _get_load_context()
    return context is not None and context.load_type.value == "RECONSTRUCTION"


def fetch_active_runs_in_worker() -> Sequence[dg.DagsterRun]:
    """Fetch the active Dagster runs of this code location, in a reconstruction. One of them is the
    worker's own.

    Empty if no code server has loaded the definitions before, as on the command line, or if the
    instance can't be asked. A worker may have no DAGSTER_HOME, or another one than the deployment,
    whose runs are not those of this location.
    """
    context = _get_load_context()
    # A code server hands on which states it has read, and its name.
    if context is None or context.accessed_defs_state_info is None:
        return []
    try:
        instance = _open_instance(os.environ.get("DAGSTER_HOME"))
        records = instance.get_run_records(dg.RunsFilter(statuses=_ACTIVE))
    except Exception:  # noqa: BLE001 - of any configuration and database
        return []
    own = context.code_location_name
    origins = [(record.dagster_run, record.dagster_run.remote_job_origin) for record in records]
    return [run for run, origin in origins if not own or not origin or origin.location_name == own]


@cache  # to open it takes 40 ms, and Dagster loads definitions twice
def _open_instance(_home: str | None) -> dg.DagsterInstance:
    return dg.DagsterInstance.get()


def _get_load_context() -> Any:
    """Return Dagster's `DefinitionsLoadContext`; None if this version has no such thing.

    Nothing public tells whether Dagster initializes or reconstructs (1.13).
    """
    try:
        from dagster._core.definitions import definitions_load_context

        context = definitions_load_context.DefinitionsLoadContext.get()
        _ = context.load_type.value, context.accessed_defs_state_info, context.code_location_name
    except (AttributeError, ImportError):
        return None
    return context
