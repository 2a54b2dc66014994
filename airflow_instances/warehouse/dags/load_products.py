"""Loads `data/products.csv` into the lake's table `products`.

Invalid rows go to `products_rejected`, with their line in the file and the reason.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path

from airflow.decorators import dag, task
from airflow.models import Variable
from csv_load import CsvLoad, count_rows, load_csv
from fault_injection import fail_if_requested, sleep_if_requested

PRODUCTS = CsvLoad(
    table="products",
    file=Path(__file__).parent.parent / "data" / "products.csv",
    columns={
        "product_id": "nullif(trim(raw.product_id), '')",
        "name": "trim(raw.name)",
        "category": "nullif(lower(trim(raw.category)), '')",
        "price": "try_cast(raw.price AS DECIMAL(10, 2))",
    },
    rejects={
        "missing id": "new.product_id IS NULL",
        "missing category": "new.category IS NULL",
        "bad price": "new.price IS NULL OR new.price <= 0",
    },
)


@dag(
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["federated", "products"],
    default_args={"owner": "warehouse-team"},
    doc_md=__doc__,
)
def load_products() -> None:
    @task
    def count() -> int:
        return count_rows(PRODUCTS)

    @task
    def load(rows: int) -> dict[str, int]:
        read_variable = partial(Variable.get, default_var=None)
        sleep_if_requested("load_products", read_variable)
        fail_if_requested("load_products", read_variable)
        return load_csv(PRODUCTS, rows)

    load(count())


load_products()
