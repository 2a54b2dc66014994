"""Computes the lake's table `sales_metrics` from `sales`.

| metric | dimension | value |
|---|---|---|
| sales | all | sales in total |
| takings_per_day | a day | sum of sales that day |
| takings_by_store | a store | sum of sales in that store |
| units_by_store | a store | units sold in that store |
"""

from __future__ import annotations

from functools import partial

from airflow.sdk import Variable, dag, task
from fault_injection import fail_if_requested, sleep_if_requested
from lake import open_lake, require_table
from metrics_table import replace_metrics

METRICS = {
    "sales": "SELECT 'all', count(*) FROM sales",
    "takings_per_day": "SELECT sold_on, sum(quantity * unit_price) FROM sales GROUP BY ALL",
    "takings_by_store": "SELECT store, sum(quantity * unit_price) FROM sales GROUP BY ALL",
    "units_by_store": "SELECT store, sum(quantity) FROM sales GROUP BY ALL",
}


@dag(
    schedule=None,
    tags=["federated", "sales"],
    default_args={"owner": "analytics"},
    doc_md=__doc__,
)
def sales_metrics() -> None:
    @task
    def compute() -> dict[str, int]:
        read_variable = partial(Variable.get, default=None)
        sleep_if_requested("sales_metrics", read_variable)
        with open_lake() as lake:
            require_table(lake, "sales")
            rows = replace_metrics(lake, "sales_metrics", METRICS)
            # Inside the transaction: a failure keeps the table of the last run.
            fail_if_requested("sales_metrics", read_variable)
        return rows

    compute()


sales_metrics()
