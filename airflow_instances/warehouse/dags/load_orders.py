"""Loads `data/orders.csv` into the lake's table `orders`.

Invalid rows go to `orders_rejected`, with their line in the file and the reason.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path

from airflow.decorators import dag, task
from airflow.models import Variable
from csv_load import CsvLoad, count_rows, load_csv
from fault_injection import fail_if_requested, sleep_if_requested

ORDERS = CsvLoad(
    table="orders",
    file=Path(__file__).parent.parent / "data" / "orders.csv",
    columns={
        "order_id": "nullif(trim(raw.order_id), '')",
        "customer_id": "nullif(trim(raw.customer_id), '')",
        "ordered_on": "try_strptime(raw.ordered_on, '%Y-%m-%d')::DATE",
        "status": "lower(trim(raw.status))",
        "amount": "try_cast(raw.amount AS DECIMAL(10, 2))",
    },
    rejects={
        "missing id": "new.order_id IS NULL",
        "missing customer": "new.customer_id IS NULL",
        "bad date": "new.ordered_on IS NULL",
        "bad amount": "new.amount IS NULL OR new.amount <= 0",
        "unknown status": "new.status NOT IN ('completed', 'shipped', 'cancelled', 'returned')",
    },
)


@dag(
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["federated", "orders"],
    default_args={"owner": "warehouse-team"},
    doc_md=__doc__,
)
def load_orders() -> None:
    @task
    def count() -> int:
        return count_rows(ORDERS)

    @task
    def load(rows: int) -> dict[str, int]:
        read_variable = partial(Variable.get, default_var=None)
        sleep_if_requested("load_orders", read_variable)
        fail_if_requested("load_orders", read_variable)
        return load_csv(ORDERS, rows)

    load(count())


load_orders()
