"""Tables of metrics: one row per metric and dimension, replaced by every run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

log = logging.getLogger(__name__)


def replace_metrics(
    lake: duckdb.DuckDBPyConnection, table: str, queries: Mapping[str, str]
) -> dict[str, int]:
    """Replace a table of metrics, and return the number of rows per metric.

    Its columns: `metric` (text), `dimension` (text: a day, a country, or 'all'), `value` (number),
    `computed_at` (UTC).

    Args:
        lake: An open transaction.
        table: The table's name.
        queries: Metric -> SQL that selects its dimensions and values, in this order.
    """
    lake.execute(f"""
        CREATE OR REPLACE TABLE {table} (
            metric VARCHAR NOT NULL,
            dimension VARCHAR NOT NULL,
            value DOUBLE NOT NULL,
            computed_at TIMESTAMP NOT NULL,
            PRIMARY KEY (metric, dimension)
        )
    """)
    for metric, query in queries.items():
        lake.execute(
            f"""
            INSERT INTO {table}
            SELECT ?, result.*, now() AT TIME ZONE 'UTC' FROM ({query}) AS result ORDER BY 2
            """,
            [metric],
        )
    counted = lake.execute(f"SELECT metric, count(*) FROM {table} GROUP BY ALL ORDER BY ALL")
    rows: dict[str, int] = dict(counted.fetchall())
    log.info("Table %s: %s", table, rows)
    return rows
