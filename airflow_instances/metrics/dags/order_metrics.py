"""Computes the lake's table `order_metrics` from `orders`.

| metric | dimension | value |
|---|---|---|
| orders | all | orders in total |
| revenue | all | amounts of the completed and the shipped |
| orders_per_day | a day | orders made on it |
| orders_by_status | a status | orders that have it |
"""

from __future__ import annotations

from functools import partial

from airflow.sdk import Variable, dag, task
from lake import open_lake, require_table
from metrics_table import replace_metrics
from rehearsal import fail_if_asked, take_time

METRICS = {
    "orders": "SELECT 'all', count(*) FROM orders",
    "revenue": "SELECT 'all', sum(amount) FROM orders WHERE status IN ('completed', 'shipped')",
    "orders_per_day": "SELECT ordered_on, count(*) FROM orders GROUP BY ALL",
    "orders_by_status": "SELECT status, count(*) FROM orders GROUP BY ALL",
}


@dag(
    schedule=None,
    tags=["federated", "orders"],
    default_args={"owner": "analytics"},
    doc_md=__doc__,
)
def order_metrics() -> None:
    @task
    def compute() -> dict[str, int]:
        read_variable = partial(Variable.get, default=None)
        take_time("order_metrics", read_variable)
        with open_lake() as lake:
            require_table(lake, "orders")
            rows = replace_metrics(lake, "order_metrics", METRICS)
            # In the transaction: when it fails, the table of the last run stays.
            fail_if_asked("order_metrics", read_variable)
        return rows

    compute()


order_metrics()
