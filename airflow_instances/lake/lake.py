"""The lake: one DuckDB file that the DAGs of both Airflows read and write.

DuckDB locks the file for one process, readers included
(https://duckdb.org/docs/stable/connect/concurrency). So each task keeps its connection short, and
retries while another process has the lock.

duckdb and tenacity are imported inside functions, because Airflow imports this module each time it
parses a DAG file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

_LOCK_TIMEOUT_S = 60.0


class LakeBusyError(Exception):
    """Other processes had the lake locked until the timeout."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__(
            f"The lake {path} was locked by other processes for {timeout_s:g} s. Close the program"
            " that keeps a connection to it (a DuckDB shell, for instance), and run the task again."
        )


class TableMissingError(Exception):
    """A table that a DAG reads has not been loaded yet."""

    def __init__(self, table: str, written_by: str) -> None:
        super().__init__(f"The lake has no table '{table}'. Run {written_by} first.")


def lake_path() -> Path:
    """Return the path in the environment variable FEDERATION_LAKE."""
    return Path(os.environ["FEDERATION_LAKE"])


@contextmanager
def open_lake(timeout_s: float = _LOCK_TIMEOUT_S) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a connection to the lake with one transaction, committed at the end of the block.

    Keep the block short: no other process can read or write during it.

    Raises:
        LakeBusyError: Other processes had the file locked until the timeout.
    """
    with _connect(lake_path(), timeout_s) as connection:
        connection.begin()
        try:
            yield connection
        except BaseException:
            connection.rollback()
            raise
        connection.commit()


def require_table(
    connection: duckdb.DuckDBPyConnection, table: str, written_by: str | None = None
) -> None:
    """Check that the lake has a table.

    Args:
        written_by: The DAG that writes it, unless it is `load_<table>`.

    Raises:
        TableMissingError: It does not.
    """
    found = connection.execute(
        "SELECT 1 FROM duckdb_tables() WHERE table_name = ?", [table]
    ).fetchone()
    if found is None:
        raise TableMissingError(table, written_by or f"load_{table}")


def _connect(path: Path, timeout_s: float) -> duckdb.DuckDBPyConnection:
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
        stop=stop_after_delay(timeout_s),
    )
    try:
        # The tables are small, so threads would only add cost.
        return retrying(duckdb.connect, path, config={"threads": 1})
    except RetryError as error:
        raise LakeBusyError(path, timeout_s) from error.last_attempt.exception()


def _is_lock_error(error: BaseException) -> bool:
    import duckdb

    # DuckDB 1.5 has no class for lock errors: any failed read or write is an IOException.
    return isinstance(error, duckdb.IOException) and "Could not set lock" in str(error)
