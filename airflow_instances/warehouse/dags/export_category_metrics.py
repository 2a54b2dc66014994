"""Writes the lake's table `category_metrics` to `category_metrics.csv` beside the lake."""

from __future__ import annotations

from datetime import datetime
from functools import partial

from airflow.decorators import dag, task
from airflow.models import Variable
from fault_injection import fail_if_requested, sleep_if_requested
from lake import lake_path, open_lake, require_table


@dag(
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["federated", "products", "sales"],
    default_args={"owner": "warehouse-team"},
    doc_md=__doc__,
)
def export_category_metrics() -> None:
    @task
    def export() -> str:
        read_variable = partial(Variable.get, default_var=None)
        sleep_if_requested("export_category_metrics", read_variable)
        fail_if_requested("export_category_metrics", read_variable)
        file = str(lake_path().with_name("category_metrics.csv"))
        with open_lake() as lake:
            require_table(lake, "category_metrics", written_by="category_metrics")
            lake.table("category_metrics").order("metric, dimension").write_csv(file)
        return file

    export()


export_category_metrics()
