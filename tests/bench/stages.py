"""The stages of a dependency, from Dagster's event log."""

from __future__ import annotations

import requests

# The upstream's materialization is stored, the run is created, it leaves the queue, its worker has
# started, and the step that triggers has started.
STAGES = ("seen", "decided", "launched", "run started", "step started")

_TIMES = """
query ($run: ID!, $upstream: AssetKeyInput!) {
  assetOrError(assetKey: $upstream) { ... on Asset {
    assetMaterializations(limit: 1) { timestamp } } }
  runOrError(runId: $run) { ... on Run { creationTime } }
  logsForRun(runId: $run) { ... on EventConnection { events {
    __typename ... on MessageEvent { timestamp } } } } }
"""


def fetch_times(dagster_url: str, run_id: str) -> list[float]:
    """Return the time of each stage, in seconds since 1970.

    Args:
        run_id: The Dagster run that follows the latest materialization of `load_customers`.
    """
    variables = {"run": run_id, "upstream": {"path": ["warehouse", "dag", "load_customers"]}}
    body = {"query": _TIMES, "variables": variables}
    data = requests.post(f"{dagster_url}/graphql", json=body, timeout=30).json()["data"]
    events = {
        event["__typename"]: float(event["timestamp"]) / 1000
        for event in reversed(data["logsForRun"]["events"])  # the first of each kind
    }
    return [
        float(data["assetOrError"]["assetMaterializations"][0]["timestamp"]) / 1000,
        data["runOrError"]["creationTime"],
        events["RunStartingEvent"],
        events["RunStartEvent"],
        events["ExecutionStepStartEvent"],
    ]
