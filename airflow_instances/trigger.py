"""Trigger a DAG of the warehouse Airflow: `trigger.py [DAG_ID]`, by default load_customers."""

from __future__ import annotations

import argparse
import sys
from http import HTTPStatus
from urllib.parse import quote

import requests
from instances import Airflow2Instance, AirflowInstance, SignInRefusedError
from settings import SettingsError, read_settings


class TriggerError(Exception):
    """The DAG was not triggered."""


def trigger(warehouse: AirflowInstance, dag_id: str) -> str:
    """Trigger a DAG and return its run id.

    Raises:
        SignInRefusedError: The account is refused.
        TriggerError: The instance does not answer, has no such DAG, or refuses the trigger.
    """
    url = warehouse.settings.url
    try:
        warehouse.sign_in()
        response = warehouse.request("POST", f"/dags/{quote(dag_id, safe='')}/dagRuns", {})
    except requests.RequestException as error:
        raise TriggerError(
            f"Airflow 'warehouse' does not answer at {url} ({type(error).__name__})."
            " Is 'make demo' running, on this port?"
        ) from error
    if response.status_code == HTTPStatus.NOT_FOUND:
        raise TriggerError(f"Airflow 'warehouse' has no DAG '{dag_id}'. Its DAGs: {url}/home")
    if not response.ok:
        raise TriggerError(
            f"Airflow 'warehouse' refused to trigger '{dag_id}' ({response.status_code}):"
            f" {response.text}"
        )
    return response.json()["dag_run_id"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dag_id", nargs="?", default="load_customers")
    dag_id: str = parser.parse_args().dag_id
    try:
        demo = read_settings()
        warehouse = Airflow2Instance(demo.warehouse, demo)
        run_id = trigger(warehouse, dag_id)
    except (SettingsError, SignInRefusedError, TriggerError) as error:
        print(error, file=sys.stderr)
        return 1
    page = warehouse.dag_page.format(dag_id=dag_id)
    print(f"Triggered {dag_id} in warehouse: {demo.warehouse.url}{page}?dag_run_id={quote(run_id)}")
    print(f"Watch it arrive in Dagster: {demo.dagster_url}/assets")
    if dag_id == "load_customers":
        downstream = f"{demo.metrics.url}/dags/customer_metrics"
        print(f"Dagster then triggers customer_metrics in metrics: {downstream}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
