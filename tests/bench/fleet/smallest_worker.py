"""The least that triggers a DAG from Dagster: what a run worker costs without any code of ours.

An asset per downstream DAG, whose step is executed in the process of the run worker. It asks for a
token and triggers, by what Dagster has imported anyway.
"""

from __future__ import annotations

import json
import os
import urllib.request
from typing import Any

import dagster as dg

# Not by name from modules of the benchmark, which import more.
URL, ACCOUNT, DAGS = (os.environ[f"FLEET_{name}"] for name in ("URL", "ACCOUNT", "DOWNSTREAMS"))


def post(path: str, body: str, token: str = "") -> dict[str, Any]:
    """Return the answer of an Airflow."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{URL}/{path}", body.encode(), headers)  # noqa: S310 - ours
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - as above
        return json.load(answer)


def build_asset(instance: str, dag_id: str) -> dg.AssetsDefinition:
    @dg.asset(name=dag_id, key_prefix=[instance, "dag"])
    def run_dag() -> None:
        token = post(f"{instance}/auth/token", ACCOUNT)["access_token"]
        conf = json.dumps({"dag_run_id": str(os.getpid()), "logical_date": None})
        post(f"{instance}/api/v2/dags/{dag_id}/dagRuns", conf, token)

    return run_dag


defs = dg.Definitions(
    assets=[build_asset(*dag) for dag in json.loads(DAGS)], executor=dg.in_process_executor
)
