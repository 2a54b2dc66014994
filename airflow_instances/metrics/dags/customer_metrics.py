"""Computes the lake's table `customer_metrics` from `customers`.

| metric | dimension | value |
|---|---|---|
| customers | all | customers in total |
| new_customers | a day | customers that signed up on it |
| customers_by_country | a country code | customers who live there |
"""

from __future__ import annotations

from functools import partial

from airflow.sdk import Variable, dag, task
from lake import open_lake, require_table
from metrics_table import replace_metrics
from rehearsal import fail_if_asked, take_time

METRICS = {
    "customers": "SELECT 'all', count(*) FROM customers",
    "new_customers": "SELECT signed_up_on, count(*) FROM customers GROUP BY ALL",
    "customers_by_country": "SELECT country, count(*) FROM customers GROUP BY ALL",
}


@dag(
    schedule=None,
    tags=["federated", "customers"],
    default_args={"owner": "analytics"},
    doc_md=__doc__,
)
def customer_metrics() -> None:
    @task
    def compute() -> dict[str, int]:
        read_variable = partial(Variable.get, default=None)
        take_time("customer_metrics", read_variable)
        with open_lake() as lake:
            require_table(lake, "customers")
            rows = replace_metrics(lake, "customer_metrics", METRICS)
            # In the transaction: when it fails, the table of the last run stays.
            fail_if_asked("customer_metrics", read_variable)
        return rows

    compute()


customer_metrics()
