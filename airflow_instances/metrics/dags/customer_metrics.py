"""Computes the lake's table `customer_metrics` from `customers`.

| metric | dimension | value |
|---|---|---|
| customers | all | customers in total |
| new_customers | a day | customers who signed up that day |
| customers_by_country | a country code | customers in that country |
"""

from __future__ import annotations

from functools import partial

from airflow.sdk import Variable, dag, task
from fault_injection import fail_if_requested, sleep_if_requested
from lake import open_lake, require_table
from metrics_table import replace_metrics

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
        sleep_if_requested("customer_metrics", read_variable)
        with open_lake() as lake:
            require_table(lake, "customers")
            rows = replace_metrics(lake, "customer_metrics", METRICS)
            # Inside the transaction: a failure keeps the table of the last run.
            fail_if_requested("customer_metrics", read_variable)
        return rows

    compute()


customer_metrics()
