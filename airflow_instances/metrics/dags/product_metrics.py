"""Computes the lake's table `product_metrics` from `products`.

| metric | dimension | value |
|---|---|---|
| products | all | products in total |
| products_by_category | a category | products in that category |
| mean_price_by_category | a category | mean price in that category |
"""

from __future__ import annotations

from functools import partial

from airflow.sdk import Variable, dag, task
from fault_injection import fail_if_requested, sleep_if_requested
from lake import open_lake, require_table
from metrics_table import replace_metrics

METRICS = {
    "products": "SELECT 'all', count(*) FROM products",
    "products_by_category": "SELECT category, count(*) FROM products GROUP BY ALL",
    "mean_price_by_category": "SELECT category, avg(price) FROM products GROUP BY ALL",
}


@dag(
    schedule=None,
    tags=["federated", "products"],
    default_args={"owner": "analytics"},
    doc_md=__doc__,
)
def product_metrics() -> None:
    @task
    def compute() -> dict[str, int]:
        read_variable = partial(Variable.get, default=None)
        sleep_if_requested("product_metrics", read_variable)
        with open_lake() as lake:
            require_table(lake, "products")
            rows = replace_metrics(lake, "product_metrics", METRICS)
            # Inside the transaction: a failure keeps the table of the last run.
            fail_if_requested("product_metrics", read_variable)
        return rows

    compute()


product_metrics()
