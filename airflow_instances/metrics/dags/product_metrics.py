"""Computes the lake's table `product_metrics` from `products`.

| metric | dimension | value |
|---|---|---|
| products | all | products in total |
| products_by_category | a category | products in it |
| mean_price_by_category | a category | their mean price |
"""

from __future__ import annotations

from functools import partial

from airflow.sdk import Variable, dag, task
from lake import open_lake, require_table
from metrics_table import replace_metrics
from rehearsal import fail_if_asked, take_time

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
        take_time("product_metrics", read_variable)
        with open_lake() as lake:
            require_table(lake, "products")
            rows = replace_metrics(lake, "product_metrics", METRICS)
            # In the transaction: when it fails, the table of the last run stays.
            fail_if_asked("product_metrics", read_variable)
        return rows

    compute()


product_metrics()
