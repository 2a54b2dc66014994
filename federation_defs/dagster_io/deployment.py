"""What a Dagster deployment runs besides this code location, and what this process is to it."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import dagster as dg

from federation_defs.dagster_io.run_tags import fetch_runs
from federation_defs.errors import DeclaredTwiceError
from federation_defs.naming import build_sensor_name
from federation_defs.timing import MAX_CLOCK_SKEW, Timing

_log = logging.getLogger(__name__)

# Of a run whose worker starts, or the process of one of its steps.
_ACTIVE = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_MAX_CURSOR_AGE_S = 7 * 86400.0  # of a sensor from whose code location an instance was moved
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


def find_owner(
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
    if owner := find_owner(instance, airflow, code_location, timing, max_age_s):
        raise DeclaredTwiceError(airflow, code_location, owner[0])


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


def _has_ticked(instance: dg.DagsterInstance, sensor: Any) -> bool:
    """Whether one of a sensor's last ticks did not fail. What is stored of the sensor itself does
    not tell: the daemon forgets the last success before each evaluation (1.13)."""
    ids = sensor.instigator_origin_id, sensor.selector_id
    ticks = instance.get_ticks(*ids, limit=_LAST_TICKS)
    return any(tick.status.value in ("SUCCESS", "SKIPPED") for tick in ticks)


def _fetch_ticked(
    instance: dg.DagsterInstance, timing: Timing, max_age_s: float
) -> Iterator[tuple[Any, float]]:
    """Iterate over the stored sensors, with the time at which the last tick of each began; 0 if
    none has. Without those that have ticked in the future: a clock was wrong then."""
    until = (timing.utc_now() + MAX_CLOCK_SKEW).timestamp()
    for state in _fetch_sensors(instance, max_age_s):
        ticked_at = getattr(state.instigator_data, "last_tick_start_timestamp", None) or 0.0
        if ticked_at <= until:
            yield state, ticked_at


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


def fetch_last_states(
    instance: dg.DagsterInstance, keys: Iterable[str], folder: Path
) -> tuple[dict[str, Path], set[str]]:
    """Fetch the last versions of components' states.

    Returns:
        The files of those that this process has not loaded, by key, and the keys of those that it
        has. A version that its storage does not give is in neither, and a warning.
    """
    storage = instance.defs_state_storage
    if storage is None or (last := storage.get_latest_defs_state_info()) is None:
        return {}, set()
    context = _get_load_context()
    loaded = context and context.accessed_defs_state_info
    newer, same = dict[str, Path](), set[str]()
    for number, key in enumerate(keys):
        version = last.get_version(key)
        if version is None:
            continue
        if loaded is not None and loaded.get_version(key) == version:
            same.add(key)
            continue
        try:
            storage.download_state_to_path(key, version, folder / str(number))
        except Exception as error:  # noqa: BLE001 - of any storage; a lost one is a ValueError
            _log.warning("The last version of the state %s can't be read: %s.", key, error)
        else:
            newer[key] = folder / str(number)
    return newer, same


def restore_versions(instance: dg.DagsterInstance, versions: Mapping[str, str]) -> None:
    """Make versions of states the last ones again, by key, if another process has undone that.

    Dagster keeps the last versions of all keys in one value. Who stores one writes the others as
    it has read them just before (1.13, `UPathDefsStateStorage`).
    """
    storage = instance.defs_state_storage
    for key, version in versions.items():
        if storage is not None and storage.get_latest_version(key) != version:
            storage.set_latest_version(key, version)


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
        runs = fetch_runs(_open_instance(os.environ.get("DAGSTER_HOME")), statuses=_ACTIVE)
    except Exception:  # noqa: BLE001 - of any configuration and database
        return []
    own = context.code_location_name
    origins = [(run, run.remote_job_origin) for run in runs]
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
