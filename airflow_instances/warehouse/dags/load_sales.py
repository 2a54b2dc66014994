"""Loads `data/sales.csv`, the sales of the shops, into the lake's table `sales`.

Invalid rows go to `sales_rejected`, with their line in the file and the reason.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path

from airflow.decorators import dag, task
from airflow.models import Variable
from csv_load import CsvLoad, count_rows, load_csv
from fault_injection import fail_if_requested, sleep_if_requested

SALES = CsvLoad(
    table="sales",
    file=Path(__file__).parent.parent / "data" / "sales.csv",
    columns={
        "sale_id": "nullif(trim(raw.sale_id), '')",
        "product_id": "nullif(trim(raw.product_id), '')",
        "store": "lower(trim(raw.store))",
        "sold_on": "try_strptime(raw.sold_on, '%Y-%m-%d')::DATE",
        "quantity": "try_cast(raw.quantity AS INTEGER)",
        "unit_price": "try_cast(raw.unit_price AS DECIMAL(10, 2))",
    },
    rejects={
        "missing id": "new.sale_id IS NULL",
        "missing product": "new.product_id IS NULL",
        "bad date": "new.sold_on IS NULL",
        "bad quantity": "new.quantity IS NULL OR new.quantity <= 0",
        "bad price": "new.unit_price IS NULL OR new.unit_price <= 0",
    },
)


@dag(
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["federated", "sales"],
    default_args={"owner": "warehouse-team"},
    doc_md=__doc__,
)
def load_sales() -> None:
    @task
    def count() -> int:
        return count_rows(SALES)

    @task
    def load(rows: int) -> dict[str, int]:
        read_variable = partial(Variable.get, default_var=None)
        sleep_if_requested("load_sales", read_variable)
        fail_if_requested("load_sales", read_variable)
        return load_csv(SALES, rows)

    load(count())


load_sales()
