"""Starts a DAG of the warehouse Airflow by hand: `trigger.py [DAG_ID]`, or load_customers."""

from __future__ import annotations

import argparse
import sys
from http import HTTPStatus
from urllib.parse import quote

import requests
from instance import AirflowInstance, SignInRefusedError
from instances import Airflow2Instance
from settings import SettingsError, read_settings


class TriggerError(Exception):
    """The DAG was not started."""


def trigger(warehouse: AirflowInstance, dag_id: str) -> str:
    """The id of the DAG run that was started.

    Raises:
        SignInRefusedError: The account is not accepted.
        TriggerError: It does not answer, has no such DAG, or refused.
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
            f"Airflow 'warehouse' refused to start '{dag_id}' ({response.status_code}):"
            f" {response.text}"
        )
    return response.json()["dag_run_id"]


def main() -> int:
    """The exit code: 0 when the DAG was started."""
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
    print(f"Started {dag_id} in warehouse: {demo.warehouse.url}{page}?dag_run_id={quote(run_id)}")
    print(f"Watch it arrive in Dagster: {demo.dagster_url}/assets")
    if dag_id == "load_customers":
        follower = f"{demo.metrics.url}/dags/customer_metrics"
        print(f"Dagster then starts customer_metrics in metrics: {follower}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
