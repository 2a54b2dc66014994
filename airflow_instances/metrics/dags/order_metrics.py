"""Computes the lake's table `order_metrics` from `orders`.

| metric | dimension | value |
|---|---|---|
| orders | all | orders in total |
| revenue | all | total amount of completed and shipped orders |
| orders_per_day | a day | orders made that day |
| orders_by_status | a status | orders with that status |
"""

from __future__ import annotations

from functools import partial

from airflow.sdk import Variable, dag, task
from fault_injection import fail_if_requested, sleep_if_requested
from lake import open_lake, require_table
from metrics_table import replace_metrics

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
        sleep_if_requested("order_metrics", read_variable)
        with open_lake() as lake:
            require_table(lake, "orders")
            rows = replace_metrics(lake, "order_metrics", METRICS)
            # Inside the transaction: a failure keeps the table of the last run.
            fail_if_requested("order_metrics", read_variable)
        return rows

    compute()


order_metrics()
