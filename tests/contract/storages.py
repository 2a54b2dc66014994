"""The storages on which tests of observation and execution run: `pytest --storage NAME`.

- `sqlite`: SQLite, the default of Dagster.
- `postgres`: a PostgreSQL server that the tests start.
- `cloud`: SQLite that refuses what Dagster+ refuses in user code.
"""

from __future__ import annotations

import gc
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.storage.event_log.sqlite import consolidated_sqlite_event_log
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from dagster._core.storage.schedules.sqlite import sqlite_schedule_storage
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from sqlalchemy import event

from tests.contract.dagster_plus import IN_USER_CODE, UserCodeInstance
from tests.contract.postgres import start_postgres

STORAGES = ("sqlite", "postgres", "cloud")
CLOUD = {"instance_class": {"module": UserCodeInstance.__module__, "class": "UserCodeInstance"}}
# The default starts four processes for each step, two of them Python: they copy its output to ours.
NO_COMPUTE_LOGS = {
    "compute_logs": {
        "module": "dagster._core.storage.noop_compute_log_manager",
        "class": "NoOpComputeLogManager",
    }
}

_COMPILED: dict[Any, Any] = {}
_SQLITE_MODULES = (consolidated_sqlite_event_log, sqlite_run_storage, sqlite_schedule_storage)

# Opens an empty instance, with its files in a folder that does not exist yet. Keyword arguments are
# settings, as in a dagster.yaml.
OpenInstance = Callable[..., AbstractContextManager[dg.DagsterInstance]]


@contextmanager
def prepare(storage: str, folder: Path) -> Iterator[OpenInstance]:
    """Prepare a kind of storage, since creating its tables takes longer than most tests."""
    folder.mkdir(exist_ok=True)
    if storage == "postgres":
        with _prepare_postgres(folder) as open_instance:
            yield open_instance
    elif storage == "cloud":
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(IN_USER_CODE, "1")
            # As the storage of Dagster+: one event says which partitions a run was created for.
            patch.setenv("DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS", "1")
            yield _prepare_sqlite(folder, CLOUD)
    else:
        yield _prepare_sqlite(folder, {})


def _prepare_sqlite(template: Path, overrides: Mapping[str, Any]) -> OpenInstance:
    @contextmanager
    def open_copy(folder: Path, **settings: Any) -> Iterator[dg.DagsterInstance]:
        shutil.copytree(template, folder)
        with _keeping_connections(), _open_sqlite(folder, {**overrides, **settings}) as instance:
            yield instance

    with _open_sqlite(template, overrides) as instance:
        _create_tables(instance)
    return open_copy


def _open_sqlite(folder: Path, overrides: Mapping[str, Any]) -> dg.DagsterInstance:
    """Open an instance that keeps the events of all runs in one file.

    The default is a file for each run. Creating it takes longer than all else in most runs.
    """
    storage = {
        "module": "dagster._core.storage.event_log",
        "class": "ConsolidatedSqliteEventLogStorage",
        "config": {"base_dir": str(folder)},
    }
    return _open(folder, {"event_log_storage": storage, **overrides})


@contextmanager
def _keeping_connections() -> Iterator[None]:
    """Let SQLite storages keep their connections, and let nothing have to reach the disk.

    Dagster makes an engine for each query, which connects, compiles the SQL and disconnects (1.13).
    Here, all tests share what is compiled. It is kept by the dialect, which each engine has anew.
    """
    engines: dict[str, sa.Engine] = {}

    def get_engine(url: str, **_options: object) -> sa.Engine:
        if url not in engines:
            options = {"pool_size": 0, "connect_args": {"timeout": SQLITE_BUSY_TIMEOUT_SECONDS}}
            engine = sa.create_engine(
                url, execution_options={"compiled_cache": _COMPILED}, **options
            )
            engine.dialect = _get_dialect()
            event.listen(engine, "connect", _do_not_sync)
            engines.setdefault(url, engine)
        return engines[url]

    with pytest.MonkeyPatch.context() as patch:
        for module in _SQLITE_MODULES:
            patch.setattr(module, "create_engine", get_engine)
        yield
    for engine in engines.values():
        engine.dispose()


@cache
def _get_dialect() -> sa.Dialect:
    """Return a dialect that has seen a database, as its first connection completes it."""
    engine = sa.create_engine("sqlite://")
    engine.connect().close()
    return engine.dialect


def _do_not_sync(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA synchronous = OFF")


@contextmanager
def _prepare_postgres(template: Path) -> Iterator[OpenInstance]:
    with start_postgres() as server:

        @contextmanager
        def open_copy(folder: Path, **settings: Any) -> Iterator[dg.DagsterInstance]:
            folder.mkdir()
            name = str(folder)[-63:]  # the longest that it can be
            url = server.create_database(name, template="empty")
            with _open_postgres(folder, url, settings) as instance:
                # Keep the connections. Without this, the server starts a process for each query.
                instance.optimize_for_webserver(
                    statement_timeout=600_000, pool_recycle=-1, max_overflow=-1
                )
                yield instance
                # A step that was interrupted here, and not in a process of its own, ends only when
                # its generator is collected. It may then read its run.
                gc.collect()
            server.drop_database(name)

        with _open_postgres(template, server.create_database("empty"), {}) as instance:
            _create_tables(instance)
        yield open_copy


def _open_postgres(folder: Path, url: str, overrides: Mapping[str, Any]) -> dg.DagsterInstance:
    storage = {"postgres": {"postgres_url": url}}
    return _open(folder, {"storage": storage, **overrides})


def _open(folder: Path, settings: Mapping[str, Any]) -> dg.DagsterInstance:
    return dg.DagsterInstance.local_temp(str(folder), overrides={**NO_COMPUTE_LOGS, **settings})


def _create_tables(instance: dg.DagsterInstance) -> None:
    instance.get_runs()
    instance.fetch_materializations(dg.AssetKey("any"), limit=1)
