"""Computes the lake's table `category_metrics` from `products` and `sales`.

| metric | dimension | value |
|---|---|---|
| takings_by_category | a category | sum of sales of its products |
| units_by_category | a category | units sold of its products |
"""

from __future__ import annotations

from functools import partial

from airflow.sdk import Variable, dag, task
from fault_injection import fail_if_requested, sleep_if_requested
from lake import open_lake, require_table
from metrics_table import replace_metrics

_SALES = "FROM sales JOIN products USING (product_id) GROUP BY ALL"
METRICS = {
    "takings_by_category": f"SELECT category, sum(quantity * unit_price) {_SALES}",
    "units_by_category": f"SELECT category, sum(quantity) {_SALES}",
}


@dag(
    schedule=None,
    tags=["federated", "products", "sales"],
    default_args={"owner": "analytics"},
    doc_md=__doc__,
)
def category_metrics() -> None:
    @task
    def compute() -> dict[str, int]:
        read_variable = partial(Variable.get, default=None)
        sleep_if_requested("category_metrics", read_variable)
        with open_lake() as lake:
            require_table(lake, "products")
            require_table(lake, "sales")
            rows = replace_metrics(lake, "category_metrics", METRICS)
            # Inside the transaction: a failure keeps the table of the last run.
            fail_if_requested("category_metrics", read_variable)
        return rows

    compute()


category_metrics()
