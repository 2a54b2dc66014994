"""The moments of a dependency, as Dagster has noted them."""

from __future__ import annotations

import requests

# When Dagster had the upstream's materialization, had made a run, had it out of the queue, when the
# run's worker came up, and when the step that triggers began.
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
    """Of each stage, in seconds since 1970.

    Args:
        run_id: Of the run that the latest materialization of `load_customers` led to.
    """
    variables = {"run": run_id, "upstream": {"path": ["warehouse", "dag", "load_customers"]}}
    asked = {"query": _TIMES, "variables": variables}
    answer = requests.post(f"{dagster_url}/graphql", json=asked, timeout=30).json()["data"]
    events = {
        event["__typename"]: float(event["timestamp"]) / 1000
        for event in reversed(answer["logsForRun"]["events"])  # the first of each kind
    }
    return [
        float(answer["assetOrError"]["assetMaterializations"][0]["timestamp"]) / 1000,
        answer["runOrError"]["creationTime"],
        events["RunStartingEvent"],
        events["RunStartEvent"],
        events["ExecutionStepStartEvent"],
    ]
