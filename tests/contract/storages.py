"""The storages on which tests of observation and execution run: `pytest --storage NAME`.

- `sqlite`: SQLite, the default of Dagster.
- `postgres`: a PostgreSQL server that the tests start.
- `cloud`: SQLite that refuses what Dagster+ refuses in user code.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import dagster as dg

from tests.contract.dagster_plus import IN_USER_CODE, UserCodeInstance
from tests.contract.postgres import start_postgres

STORAGES = ("sqlite", "postgres", "cloud")
CLOUD = {"instance_class": {"module": UserCodeInstance.__module__, "class": "UserCodeInstance"}}

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
        os.environ[IN_USER_CODE] = "1"
        yield _prepare_sqlite(folder, CLOUD)
        del os.environ[IN_USER_CODE]
    else:
        yield _prepare_sqlite(folder, {})


def _prepare_sqlite(template: Path, overrides: Mapping[str, Any]) -> OpenInstance:
    @contextmanager
    def open_copy(folder: Path, **settings: Any) -> Iterator[dg.DagsterInstance]:
        shutil.copytree(template, folder)
        with _open_sqlite(folder, {**overrides, **settings}) as instance:
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
    return dg.DagsterInstance.local_temp(
        str(folder), overrides={"event_log_storage": storage, **overrides}
    )


@contextmanager
def _prepare_postgres(template: Path) -> Iterator[OpenInstance]:
    with start_postgres() as server:

        @contextmanager
        def open_copy(folder: Path, **settings: Any) -> Iterator[dg.DagsterInstance]:
            folder.mkdir()
            name = str(folder)[-63:]  # the longest that it can be
            url = server.create_database(name, template="empty")
            with _open_postgres(folder, url, settings) as instance:
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
    return dg.DagsterInstance.local_temp(str(folder), overrides={"storage": storage, **overrides})


def _create_tables(instance: dg.DagsterInstance) -> None:
    instance.get_runs()
    instance.fetch_materializations(dg.AssetKey("any"), limit=1)
