"""Measures a dependency of the running demo, stage by stage.

Runs `load_customers` in warehouse several times, and waits for `customer_metrics` to follow in
metrics. Prints the seconds from the upstream run's end to each stage in Dagster and to the start of
the downstream run, and their medians.

    make demo                        # in one terminal
    make latency LATENCY_RUNS=7      # in another
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from federation_defs.airflow.client import AirflowClient, build_client
from federation_defs.airflow.models import DagRun
from federation_defs.declaration import InstanceDeclaration
from federation_defs.naming import parse_root_run_id
from tests.bench.stages import STAGES, fetch_times
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]
ALL_STAGES = (*STAGES, "DAG started", "DAG ended")
WITHIN = {"timeout_s": 120, "interval_s": 0.2}


def main() -> None:
    parser = argparse.ArgumentParser(description="How long a dependency takes.")
    parser.add_argument("--runs", type=int, default=7)
    runs: int = parser.parse_args().runs
    settings = {**dotenv_values(ROOT / ".env"), **os.environ}
    warehouse = connect("warehouse", "basic", settings)
    metrics = connect("metrics", "password", settings)
    dagster_url = f"http://127.0.0.1:{settings['DAGSTER_PORT']}"

    print("seconds after the end of load_customers\n" + "".join(f"{s:>14}" for s in ALL_STAGES))
    rows = []
    for number in range(runs):
        rows.append(measure(warehouse, metrics, dagster_url, number))
        print("".join(f"{seconds:14.1f}" for seconds in rows[-1]), flush=True)
        time.sleep(random.uniform(0, 5))  # runs end at any moment of the daemons' loops
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

    end = wait_for(find_end, "load_customers has ended", **WITHIN)

    def find_downstream() -> DagRun | None:
        for run in metrics.fetch_changed_runs(before).entries:
            is_ours = run.dag_id == "customer_metrics" and run.is_finished
            if is_ours and run.start_date is not None and run.start_date > end:
                return run
        return None

    downstream = wait_for(find_downstream, "customer_metrics has followed", **WITHIN)
    root_run_id = parse_root_run_id(downstream.run_id)
    assert root_run_id
    assert downstream.start_date
    assert downstream.end_date
    times = [
        *fetch_times(dagster_url, root_run_id),
        downstream.start_date.timestamp(),
        downstream.end_date.timestamp(),
    ]
    return [moment - end.timestamp() for moment in times]


if __name__ == "__main__":
    main()
