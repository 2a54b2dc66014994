"""The Dagster deployment of this process: its instance, the states of its components, and the
active runs, which decide what a run worker has to load."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg

from federation_defs.dagster_io.run_tags import NOT_ENDED, fetch_dagster_runs

_log = logging.getLogger(__name__)

# The statuses of a run whose worker, or the process of one of its steps, may be starting.
_ACTIVE = [status for status in NOT_ENDED if status is not dg.DagsterRunStatus.QUEUED]

# For connections to PostgreSQL and MySQL. Dagster ends a tick after 60 s. Firewalls drop
# connections that are idle for some minutes.
_STATEMENT_TIMEOUT_MS = 60_000
_RECONNECT_S = 240
_MAX_OVERFLOW = 20  # connections, closed after use, besides the one that each storage keeps

_lock = threading.Lock()
_opened: list[tuple[object, dg.DagsterInstance]] = []  # at most one, with its reference

# Dagster's executors that start a process for each step.
_STARTING_PROCESSES = ("multiprocess", "multi_or_in_process_executor")
_steps_in_worker = threading.Event()


@contextmanager
def share_instance(context: dg.SensorEvaluationContext) -> Iterator[dg.DagsterInstance]:
    """Yield the Dagster instance of a tick, which all ticks of this process share.

    `context.instance` opens an instance for each tick and closes it afterwards (1.13). That takes
    longer than the rest of most ticks, and connects to PostgreSQL six times. An instance is
    thread-safe: the webserver, too, shares one between requests, and keeps its connections. The
    shared instance is never closed, because another tick may be using it. After a connection has
    broken, the next tick opens a new instance.
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
    """Whether a broken database connection caused an error.

    An instance has one connection per storage. SQLAlchemy replaces a broken one only after its next
    use has failed, so that with the old instance each storage could fail a tick.
    """
    if error is None:
        return False
    is_broken = getattr(error, "connection_invalidated", False)  # of SQLAlchemy's `DBAPIError`
    return is_broken or _is_disconnected(error.__cause__ or error.__context__)


def fetch_last_states(
    instance: dg.DagsterInstance, keys: Iterable[str], folder: Path
) -> tuple[dict[str, Path], set[str]]:
    """Fetch the last versions of components' states.

    Args:
        folder: Where the states are written, one file each.

    Returns:
        By key, the files of the states of which this process has loaded another version, or none.
        And the keys of the states whose last version it has loaded. A state that can't be
        downloaded is in neither, and is logged as a warning.
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
        except Exception as error:  # noqa: BLE001 - of any storage; ValueError for a lost version
            _log.warning("The last version of the state %s can't be read: %s.", key, error)
        else:
            newer[key] = folder / str(number)
    return newer, same


def restore_versions(instance: dg.DagsterInstance, versions: Mapping[str, str]) -> None:
    """Make versions of states the last ones again, where another process has undone that.

    Dagster keeps the last versions of all keys in one value. A process that stores the version of
    one key also writes back the others as it has read them just before, and so may undo what was
    stored in between (1.13, `UPathDefsStateStorage`).

    Args:
        versions: By key of the state.
    """
    storage = instance.defs_state_storage
    for key, version in versions.items():
        if storage is not None and storage.get_latest_version(key) != version:
            storage.set_latest_version(key, version)


def is_reconstruction() -> bool:
    """Whether Dagster loads definitions that were loaded before: in a run worker, or a second time
    in a code server. False if that is not known."""
    context = _get_load_context()
    return context is not None and context.load_type.value == "RECONSTRUCTION"


def fetch_active_runs_in_worker() -> Sequence[dg.DagsterRun]:
    """Fetch the active Dagster runs of this code location, in a run worker. One of them is the
    worker's own.

    Empty if no code server has loaded the definitions before, as on the command line, or if the
    instance can't be read. A worker may have no DAGSTER_HOME, or one of another deployment, whose
    runs belong to other code locations.
    """
    context = _get_load_context()
    # A code server passes to its workers its name and the versions of the states that it has read.
    if context is None or context.accessed_defs_state_info is None:
        return []
    try:
        runs = fetch_dagster_runs(_open_instance(os.environ.get("DAGSTER_HOME")), statuses=_ACTIVE)
    except Exception:  # noqa: BLE001 - of any configuration and database
        return []
    own = context.code_location_name
    origins = [(run, run.remote_job_origin) for run in runs]
    return [run for run, origin in origins if not own or not origin or origin.location_name == own]


def is_dagster_plus() -> bool:
    """Whether this process is user code of Dagster+, which sets DAGSTER_CLOUD_DEPLOYMENT_NAME."""
    return "DAGSTER_CLOUD_DEPLOYMENT_NAME" in os.environ


def note_steps_in_worker() -> None:
    """Note that this process, the run worker, executes the steps of its run itself."""
    _steps_in_worker.set()


def has_step_processes(job: dg.JobDefinition) -> bool:
    """Whether Dagster's multiprocess executor may execute each step of a job in its own process."""
    return job.executor_def.name in _STARTING_PROCESSES and not _steps_in_worker.is_set()


@cache  # opening it takes 40 ms, and Dagster loads definitions twice
def _open_instance(_home: str | None) -> dg.DagsterInstance:
    return dg.DagsterInstance.get()


def _get_load_context() -> Any:
    """Return Dagster's `DefinitionsLoadContext`; None if this version of Dagster lacks it, or lacks
    an attribute that is used here.

    No public API shows whether Dagster initializes or reconstructs definitions (1.13).
    """
    try:
        from dagster._core.definitions import definitions_load_context

        context = definitions_load_context.DefinitionsLoadContext.get()
        _ = context.load_type.value, context.accessed_defs_state_info, context.code_location_name
    except (AttributeError, ImportError):
        return None
    return context
