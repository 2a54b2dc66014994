"""Computes the lake's table `payment_metrics` from `payments`.

| metric | dimension | value |
|---|---|---|
| payments | all | payments in total |
| paid_per_day | a day | amount paid that day |
| paid_by_method | a method | amount paid by that method |
"""

from __future__ import annotations

from functools import partial

from airflow.sdk import Variable, dag, task
from fault_injection import fail_if_requested, sleep_if_requested
from lake import open_lake, require_table
from metrics_table import replace_metrics

METRICS = {
    "payments": "SELECT 'all', count(*) FROM payments",
    "paid_per_day": "SELECT paid_on, sum(amount) FROM payments GROUP BY ALL",
    "paid_by_method": "SELECT method, sum(amount) FROM payments GROUP BY ALL",
}


@dag(
    schedule=None,
    tags=["federated", "orders"],
    default_args={"owner": "analytics"},
    doc_md=__doc__,
)
def payment_metrics() -> None:
    @task
    def compute() -> dict[str, int]:
        read_variable = partial(Variable.get, default=None)
        sleep_if_requested("payment_metrics", read_variable)
        with open_lake() as lake:
            require_table(lake, "payments")
            rows = replace_metrics(lake, "payment_metrics", METRICS)
            # Inside the transaction: a failure keeps the table of the last run.
            fail_if_requested("payment_metrics", read_variable)
        return rows

    compute()


payment_metrics()
