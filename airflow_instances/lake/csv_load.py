"""Loads a CSV file into two tables of the lake: valid rows, and rejected rows with the reason."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lake import open_lake

if TYPE_CHECKING:
    import duckdb

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CsvLoad:
    """How to load a CSV file.

    Attributes:
        table: The table of valid rows. Rejected rows go unchanged to `<table>_rejected`.
        file: The CSV file, with a header line.
        columns: Column of the table -> SQL over `raw`, the columns of the file, all text. The first
            column is the key: of valid rows with the same key, only the first is loaded.
        rejects: Reason -> SQL condition over `raw` and `new`, the row as it would
            be loaded. The first condition that holds gives the reason.
    """

    table: str
    file: Path
    columns: Mapping[str, str]
    rejects: Mapping[str, str]


class IncompleteLoadError(Exception):
    """The tables have more or fewer rows than the file."""

    def __init__(self, table: str, read: int, stored: int) -> None:
        super().__init__(f"'{table}': {read} rows counted in the CSV file, {stored} stored.")


def count_rows(load: CsvLoad) -> int:
    """Count the rows of the file, without its header.

    Raises:
        FileNotFoundError: The file does not exist.
    """
    import csv

    with load.file.open(encoding="utf-8", newline="") as lines:
        rows = sum(1 for _ in csv.reader(lines)) - 1
    log.info("%s has %d rows", load.file.name, rows)
    return rows


def load_csv(load: CsvLoad, expected_rows: int) -> dict[str, int]:
    """Replace both tables, and return their numbers of rows: `{"loaded": 1200, "missing id": 8}`.

    Loading the same file again gives the same tables. Readers see either the old tables or the new.

    Raises:
        IncompleteLoadError: The number of stored rows is not `expected_rows`.
        LakeBusyError: Other processes had the lake locked until the timeout.
    """
    with open_lake() as lake:
        _classify(lake, load)
        lake.execute(f"""
            CREATE OR REPLACE TABLE {load.table} AS
            SELECT {", ".join(load.columns)} FROM classified WHERE reason IS NULL ORDER BY line
        """)
        lake.execute(f"""
            CREATE OR REPLACE TABLE {load.table}_rejected AS
            SELECT line, reason, as_it_came FROM classified WHERE reason IS NOT NULL ORDER BY line
        """)
        counted = lake.execute(
            "SELECT coalesce(reason, 'loaded'), count(*) FROM classified GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        rows: dict[str, int] = dict(counted)
        if sum(rows.values()) != expected_rows:
            raise IncompleteLoadError(load.table, expected_rows, sum(rows.values()))
    log.info("Table %s: %s", load.table, rows)
    return rows


def _classify(lake: duckdb.DuckDBPyConnection, load: CsvLoad) -> None:
    """Create the temporary table `classified`: each row with its line and why it is rejected."""
    new = ", ".join(f"{sql} AS {column}" for column, sql in load.columns.items())
    reasons = " ".join(f"WHEN {sql} THEN '{reason}'" for reason, sql in load.rejects.items())
    key = next(iter(load.columns))
    lake.execute(
        f"""
        CREATE TEMP TABLE classified AS
        WITH raw AS (
            SELECT row_number() OVER () + 1 AS line, *  -- line 1 is the header
            FROM read_csv(?, header = true, all_varchar = true, parallel = false)
        ),
        judged AS (
            SELECT new.*, raw.line, to_json(raw)::VARCHAR AS as_it_came,
                   CASE {reasons} END AS fault
            FROM raw, LATERAL (SELECT {new}) AS new
        )
        SELECT * EXCLUDE (fault),
               coalesce(fault, CASE WHEN row_number() OVER (
                   PARTITION BY {key}, fault IS NULL ORDER BY line) > 1
                   THEN 'duplicate id' END) AS reason
        FROM judged
        """,
        [str(load.file)],
    )
