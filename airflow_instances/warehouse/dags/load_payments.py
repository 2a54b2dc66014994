"""Loads `data/payments.csv` into the lake's table `payments`.

Invalid rows go to `payments_rejected`, with their line in the file and the reason.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path

from airflow.decorators import dag, task
from airflow.models import Variable
from csv_load import CsvLoad, count_rows, load_csv
from fault_injection import fail_if_requested, sleep_if_requested

PAYMENTS = CsvLoad(
    table="payments",
    file=Path(__file__).parent.parent / "data" / "payments.csv",
    columns={
        "payment_id": "nullif(trim(raw.payment_id), '')",
        "order_id": "nullif(trim(raw.order_id), '')",
        "paid_on": "try_strptime(raw.paid_on, '%Y-%m-%d')::DATE",
        "method": "lower(trim(raw.method))",
        "amount": "try_cast(raw.amount AS DECIMAL(10, 2))",
    },
    rejects={
        "missing id": "new.payment_id IS NULL",
        "missing order": "new.order_id IS NULL",
        "bad date": "new.paid_on IS NULL",
        "bad amount": "new.amount IS NULL OR new.amount <= 0",
        "unknown method": "new.method NOT IN ('card', 'paypal', 'transfer', 'voucher')",
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
def load_payments() -> None:
    @task
    def count() -> int:
        return count_rows(PAYMENTS)

    @task
    def load(rows: int) -> dict[str, int]:
        read_variable = partial(Variable.get, default_var=None)
        sleep_if_requested("load_payments", read_variable)
        fail_if_requested("load_payments", read_variable)
        return load_csv(PAYMENTS, rows)

    load(count())


load_payments()
