"""Computes the lake's table `sales_metrics` from `sales`.

| metric | dimension | value |
|---|---|---|
| sales | all | sales in total |
| takings_per_day | a day | money taken on it |
| takings_by_store | a store | money taken there |
| units_by_store | a store | units sold there |
"""

from __future__ import annotations

from functools import partial

from airflow.sdk import Variable, dag, task
from lake import open_lake, require_table
from metrics_table import replace_metrics
from rehearsal import fail_if_asked, take_time

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
        take_time("sales_metrics", read_variable)
        with open_lake() as lake:
            require_table(lake, "sales")
            rows = replace_metrics(lake, "sales_metrics", METRICS)
            # In the transaction: when it fails, the table of the last run stays.
            fail_if_asked("sales_metrics", read_variable)
        return rows

    compute()


sales_metrics()
