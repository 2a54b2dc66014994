"""The lake: one DuckDB file that the DAGs of both Airflows read and write.

DuckDB lets a single process hold the file, and refuses every other one, readers included
(https://duckdb.org/docs/stable/connect/concurrency). So nobody keeps a connection: each task
opens one for the moment of its work, and whoever finds the file held tries again.

Nothing heavy is imported up here: Airflow imports this module each time it parses a DAG file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

_DEADLINE_S = 60.0


class LakeBusyError(Exception):
    """Other processes held the lake for as long as we were ready to wait."""

    def __init__(self, path: Path, deadline_s: float) -> None:
        super().__init__(
            f"The lake {path} was held by other processes for {deadline_s:g} s. Something keeps"
            " a connection to it open: close it (a DuckDB shell, for instance), run the task again."
        )


class TableMissingError(Exception):
    """A DAG needs a table that no DAG has loaded yet."""

    def __init__(self, table: str) -> None:
        super().__init__(
            f"The lake has no table '{table}'. Run load_{table} in the warehouse Airflow first."
        )


def lake_path() -> Path:
    """The lake's file, from FEDERATION_LAKE."""
    return Path(os.environ["FEDERATION_LAKE"])


@contextmanager
def open_lake(deadline_s: float = _DEADLINE_S) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to the lake, in one transaction: all of what is done shows, or none of it.

    Keep it short: nobody else reads or writes meanwhile.

    Raises:
        LakeBusyError: Others held the file until the deadline.
    """
    with _connect(lake_path(), deadline_s) as connection:
        connection.begin()
        try:
            yield connection
        except BaseException:
            connection.rollback()
            raise
        connection.commit()


def require_table(connection: duckdb.DuckDBPyConnection, table: str) -> None:
    """Nothing, if the lake has this table.

    Raises:
        TableMissingError: It has not.
    """
    found = connection.execute(
        "SELECT 1 FROM duckdb_tables() WHERE table_name = ?", [table]
    ).fetchone()
    if found is None:
        raise TableMissingError(table)


def _connect(path: Path, deadline_s: float) -> duckdb.DuckDBPyConnection:
    import duckdb
    from tenacity import (
        RetryError,
        Retrying,
        retry_if_exception,
        stop_after_delay,
        wait_random_exponential,
    )

    retrying = Retrying(
        retry=retry_if_exception(_is_lock_error),
        wait=wait_random_exponential(multiplier=0.05, max=1),
        stop=stop_after_delay(deadline_s),
    )
    try:
        # The tables are small: threads would cost more than they bring.
        return retrying(duckdb.connect, path, config={"threads": 1})
    except RetryError as error:
        raise LakeBusyError(path, deadline_s) from error.last_attempt.exception()


def _is_lock_error(error: BaseException) -> bool:
    import duckdb

    # DuckDB has no class of its own for it (1.5): any failed read or write is an IOException.
    return isinstance(error, duckdb.IOException) and "Could not set lock" in str(error)
