"""How long a dependency takes in the running demo, stage by stage.

Runs `load_customers` in warehouse again and again, waits for the `customer_metrics` that follows in
metrics, and prints the seconds since the upstream run's end at which Dagster had its
materialization, had made and had started a run, and the downstream DAG run started. Prints the
medians; it judges nothing, for machines are noisy.

    make demo                        # in one terminal
    make latency LATENCY_RUNS=7      # in another
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import requests
from dotenv import dotenv_values

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.connecting import build_client
from federation_defs.airflow.records import DagRun
from federation_defs.declaration import InstanceDeclaration
from federation_defs.naming import parse_root_run_id

ROOT = Path(__file__).parents[2]
STAGES = ("materialized", "requested", "run started", "DAG started", "DAG ended")
T = TypeVar("T")

_DAGSTER_TIMES = """
query Times($run: ID!, $upstream: AssetKeyInput!) {
  runOrError(runId: $run) { ... on Run { creationTime startTime } }
  assetOrError(assetKey: $upstream) {
    ... on Asset { assetMaterializations(limit: 1) { timestamp } }
  }
}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="How long a dependency takes.")
    parser.add_argument("--runs", type=int, default=7)
    runs: int = parser.parse_args().runs
    settings = {**dotenv_values(ROOT / ".env"), **os.environ}
    warehouse = connect("warehouse", "basic", settings)
    metrics = connect("metrics", "password", settings)
    dagster_url = f"http://127.0.0.1:{settings['DAGSTER_PORT']}/graphql"

    print("seconds after the end of load_customers\n" + "".join(f"{s:>14}" for s in STAGES))
    rows = []
    for number in range(runs):
        rows.append(measure(warehouse, metrics, dagster_url, number))
        print("".join(f"{seconds:14.1f}" for seconds in rows[-1]), flush=True)
        time.sleep(random.uniform(0, 5))  # so that runs end at any moment of the daemons' loops
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    print("".join(f"{seconds:14.1f}" for seconds in medians) + f"   median of {runs}")


def connect(name: str, auth: str, settings: dict[str, Any]) -> AirflowClient:
    prefix = f"{name.upper()}_AIRFLOW_"
    account = {"type": auth, "username": settings[prefix + "USERNAME"]}
    account["password"] = settings[prefix + "PASSWORD"]
    declared = {"name": name, "url": settings[prefix + "URL"], "auth": account}
    return build_client(InstanceDeclaration.model_validate(declared), ".env")


def measure(
    warehouse: AirflowClient, metrics: AirflowClient, dagster_url: str, number: int
) -> list[float]:
    before = datetime.now().astimezone()
    run_id = f"latency__{before.isoformat()}__{number}"
    warehouse.trigger_run("load_customers", run_id)

    def find_end() -> datetime | None:
        run = warehouse.fetch_run("load_customers", run_id)
        return run.end_date if run is not None and run.is_finished else None

    end = wait_for(find_end)

    def find_downstream() -> DagRun | None:
        for run in metrics.fetch_changed_runs(before).runs:
            is_ours = run.dag_id == "customer_metrics" and run.is_finished
            if is_ours and run.start_date is not None and run.start_date > end:
                return run
        return None

    downstream = wait_for(find_downstream)
    variables = {
        "run": parse_root_run_id(downstream.run_id),
        "upstream": {"path": ["warehouse", "dag", "load_customers"]},
    }
    answer = requests.post(
        dagster_url, json={"query": _DAGSTER_TIMES, "variables": variables}, timeout=30
    ).json()["data"]
    assert downstream.start_date
    assert downstream.end_date
    times = [
        float(answer["assetOrError"]["assetMaterializations"][0]["timestamp"]) / 1000,
        answer["runOrError"]["creationTime"],
        answer["runOrError"]["startTime"],
        downstream.start_date.timestamp(),
        downstream.end_date.timestamp(),
    ]
    return [moment - end.timestamp() for moment in times]


def wait_for(find: Callable[[], T | None], timeout_s: float = 120) -> T:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (found := find()) is not None:
            return found
        time.sleep(0.2)
    raise TimeoutError(f"nothing came of it within {timeout_s:.0f} s: is the whole demo running?")


if __name__ == "__main__":
    main()
