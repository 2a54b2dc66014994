"""Adds the prices in the lake's table `products` to `price_history`: one day of prices per run.

A run that is cleared and runs again replaces its own rows.
"""

from __future__ import annotations

from functools import partial

from airflow.sdk import Variable, dag, get_current_context, task
from fault_injection import fail_if_requested, sleep_if_requested
from lake import open_lake, require_table


@dag(
    schedule=None,
    tags=["federated", "products"],
    default_args={"owner": "analytics"},
    doc_md=__doc__,
)
def price_history() -> None:
    @task
    def append() -> int:
        read_variable = partial(Variable.get, default=None)
        sleep_if_requested("price_history", read_variable)
        run_id = get_current_context()["run_id"]
        with open_lake() as lake:
            require_table(lake, "products")
            lake.execute("""
                CREATE TABLE IF NOT EXISTS price_history (
                    run_id VARCHAR, product_id VARCHAR, price DECIMAL(10, 2), noted_at TIMESTAMP
                )
            """)
            lake.execute("DELETE FROM price_history WHERE run_id = ?", [run_id])
            (rows,) = lake.execute(
                """
                INSERT INTO price_history
                SELECT ?, product_id, price, now() AT TIME ZONE 'UTC' FROM products
                """,
                [run_id],
            ).fetchone()
            # Inside the transaction: a failure adds nothing.
            fail_if_requested("price_history", read_variable)
        return rows

    append()


price_history()
