"""Removes the lake's table `order_metrics`.

It runs when `load_orders` has failed, so that nobody takes the metrics of old orders for those of
today's. The next run of `order_metrics` computes them anew.
"""

from __future__ import annotations

from functools import partial

from airflow.sdk import Variable, dag, task
from fault_injection import fail_if_requested, sleep_if_requested
from lake import open_lake


@dag(
    schedule=None,
    tags=["federated", "orders"],
    default_args={"owner": "analytics"},
    doc_md=__doc__,
)
def remove_order_metrics() -> None:
    @task
    def remove() -> None:
        read_variable = partial(Variable.get, default=None)
        sleep_if_requested("remove_order_metrics", read_variable)
        with open_lake() as lake:
            lake.execute("DROP TABLE IF EXISTS order_metrics")
            # Inside the transaction: a failure keeps the table.
            fail_if_requested("remove_order_metrics", read_variable)

    remove()


remove_order_metrics()
