"""Loads `data/customers.csv` into the lake's table `customers`.

Countries become two-letter codes, dates become dates, e-mail addresses lower case.
Invalid rows go to `customers_rejected`, with their line in the file and the reason.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path

from airflow.decorators import dag, task
from airflow.models import Variable
from csv_load import CsvLoad, count_rows, load_csv
from fault_injection import fail_if_requested, sleep_if_requested

_COUNTRIES = {
    "DE": ["de", "germany", "deutschland"],
    "ES": ["es", "spain", "españa"],
    "FR": ["fr", "france"],
    "GB": ["gb", "uk", "united kingdom", "great britain"],
    "IT": ["it", "italy", "italia"],
    "NL": ["nl", "netherlands", "the netherlands", "holland"],
    "PL": ["pl", "poland", "polska"],
    "US": ["us", "usa", "u.s.a.", "united states"],
}
_COUNTRY_CODE = " ".join(
    f"WHEN lower(trim(raw.country)) IN ({', '.join(repr(name) for name in names)}) THEN '{code}'"
    for code, names in _COUNTRIES.items()
)

CUSTOMERS = CsvLoad(
    table="customers",
    file=Path(__file__).parent.parent / "data" / "customers.csv",
    columns={
        "customer_id": "nullif(trim(raw.customer_id), '')",
        "name": "trim(raw.name)",
        "email": "lower(trim(raw.email))",
        "country": f"CASE {_COUNTRY_CODE} END",
        "signed_up_on": "try_strptime(raw.signed_up_on, ['%Y-%m-%d', '%d.%m.%Y'])::DATE",
    },
    rejects={
        "missing id": "new.customer_id IS NULL",
        "bad date": "new.signed_up_on IS NULL",
        "missing e-mail": "new.email IS NULL OR new.email NOT LIKE '%_@_%'",
        "unknown country": "new.country IS NULL",
    },
)


@dag(
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["federated", "customers"],
    default_args={"owner": "warehouse-team"},
    doc_md=__doc__,
)
def load_customers() -> None:
    @task
    def count() -> int:
        return count_rows(CUSTOMERS)

    @task
    def load(rows: int) -> dict[str, int]:
        read_variable = partial(Variable.get, default_var=None)
        sleep_if_requested("load_customers", read_variable)
        fail_if_requested("load_customers", read_variable)
        return load_csv(CUSTOMERS, rows)

    load(count())


load_customers()
