"""A client of Dagster's GraphQL API: what a person sees and does in the UI."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import requests

from tests.waiting import wait_for

LOOP_S = 5.0  # of the daemon, which evaluates each sensor in it, or goes on with its tick (1.13)
FINISHED = {"SUCCESS", "FAILURE", "CANCELED"}

_MATERIALIZATIONS = """
query ($key: AssetKeyInput!) {
  assetOrError(assetKey: $key) { ... on Asset { assetMaterializations(limit: 100) {
    runId timestamp partition metadataEntries { label
      ... on TextMetadataEntry { text } ... on FloatMetadataEntry { floatValue }
      ... on UrlMetadataEntry { url } ... on TimestampMetadataEntry { timestamp } } } } } }
"""
_RUNS = """
query { runsOrError(limit: 200) { ... on Runs { results {
  runId status assetSelection { path } } } } }
"""
_RUN_STATUS = "query ($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"
_ATTEMPTS = """
query ($root: String!) {
  first: runsOrError(filter: {runIds: [$root]}) { ... on Runs { results { ...Attempt } } }
  more: runsOrError(filter: {tags: [{key: "dagster/root_run_id", value: $root}]}) {
    ... on Runs { results { ...Attempt } } } }
fragment Attempt on Run { runId status creationTime }
"""
_FAILURES = """
query ($run: ID!) { logsForRun(runId: $run) { ... on EventConnection { events { __typename
  ... on ExecutionStepFailureEvent { error { message }
    failureMetadata { metadataEntries { label ... on MarkdownMetadataEntry { mdStr } } } }
  ... on RunFailureEvent { message } } } } }
"""
_ASSETS = """
query { assetNodes { assetKey { path } isExecutable groupName kinds tags { key value }
  owners { ... on TeamAssetOwner { team } } dependencyKeys { path }
  metadataEntries { label ... on UrlMetadataEntry { url } ... on TextMetadataEntry { text } } } }
"""
_PROGRESS = """
query ($keys: [AssetKeyInput!]!) { assetsLatestInfo(assetKeys: $keys) {
  assetKey { path } unstartedRunIds inProgressRunIds } }
"""
_LOCATIONS = """
query { workspaceOrError { ... on Workspace { locationEntries { name loadStatus updatedTimestamp
  locationOrLoadError { __typename ... on PythonError { message causes { message } } } } } } }
"""
_REPOSITORY = """
query ($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) { ... on AssetNode { repository { name location { name } } } } }
"""
_LAUNCH = """
mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } }
  ... on PythonError { message } ... on InvalidSubsetError { message } } }
"""
_BACKFILL = """
mutation ($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
  __typename ... on PythonError { message } } }
"""
_TERMINATE = """
mutation ($run: String!, $policy: TerminateRunPolicy!) {
  terminateRun(runId: $run, terminatePolicy: $policy) {
    __typename ... on TerminateRunFailure { message } ... on PythonError { message } } }
"""
_REEXECUTE = """
mutation ($params: ReexecutionParams!) { launchRunReexecution(reexecutionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }
"""


@dataclass(frozen=True)
class Materialization:
    """A materialization of an asset.

    Attributes:
        run_id: The Airflow run's.
        dagster_run_id: None for a materialization that a sensor reported.
    """

    run_id: str
    dagster_run_id: str | None
    partition: str | None
    timestamp: float
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A Dagster run."""

    run_id: str
    status: str

    @property
    def is_finished(self) -> bool:
        return self.status in FINISHED


class DagsterApi:
    """The GraphQL API of a webserver on this machine.

    Attributes:
        port: The webserver's.
    """

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def query(self, query: str, **variables: Any) -> dict[str, Any]:
        """Return the data of a GraphQL response without errors."""
        response = requests.post(
            f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=120
        )
        content = response.json()
        assert "errors" not in content, content["errors"]
        return content["data"]

    def fetch_locations(self) -> list[dict[str, Any]]:
        return self.query(_LOCATIONS)["workspaceOrError"]["locationEntries"]

    def fetch_assets(self) -> dict[str, dict[str, Any]]:
        """Return the defined assets by key, as "a/b/c"."""
        nodes = self.query(_ASSETS)["assetNodes"]
        return {"/".join(node["assetKey"]["path"]): node for node in nodes}

    def fetch_materializations(self, instance: str, dag_id: str) -> list[Materialization]:
        """Return the last 100 materializations of a DAG's asset, the newest first."""
        asset = self.query(_MATERIALIZATIONS, key=_build_key(instance, dag_id))
        events = asset["assetOrError"].get("assetMaterializations", [])
        return [_parse_materialization(event) for event in events]

    def fetch_runs(self, dag_id: str) -> list[Run]:
        """Return the last Dagster runs that select a DAG's asset, the newest first."""
        return [
            Run(run["runId"], run["status"])
            for run in self.query(_RUNS)["runsOrError"]["results"]
            if dag_id in {key["path"][-1] for key in run["assetSelection"] or ()}
        ]

    def fetch_failure(self, run_id: str) -> tuple[str, dict[str, str]]:
        """Return the messages of a failed run, and the metadata of the failed step."""
        messages, metadata = [], {}
        for event in self.query(_FAILURES, run=run_id)["logsForRun"]["events"]:
            if event["__typename"] == "ExecutionStepFailureEvent":
                messages.append(event["error"]["message"])
                entries = (event["failureMetadata"] or {}).get("metadataEntries", [])
                metadata |= {entry["label"]: entry.get("mdStr", "") for entry in entries}
            elif event["__typename"] == "RunFailureEvent":
                messages.append(event["message"])
        return "\n".join(messages), metadata

    def fetch_status(self, run_id: str) -> str:
        return self.query(_RUN_STATUS, run=run_id)["runOrError"]["status"]

    def is_in_progress(self, instance: str, *dag_ids: str) -> bool:
        """Whether a run of one of these DAGs' assets is queued or running."""
        keys = [_build_key(instance, dag_id) for dag_id in dag_ids]
        infos = self.query(_PROGRESS, keys=keys)["assetsLatestInfo"]
        return any(info["unstartedRunIds"] or info["inProgressRunIds"] for info in infos)

    def materialize(self, instance: str, *dag_ids: str) -> str:
        """Launch a run, as a person does, and return its id."""
        key = _build_key(instance, dag_ids[0])
        repository = self.query(_REPOSITORY, key=key)["assetNodeOrError"]["repository"]
        selector = {
            "repositoryName": repository["name"],
            "repositoryLocationName": repository["location"]["name"],
            "jobName": "__ASSET_JOB",
            "assetSelection": [_build_key(instance, dag_id) for dag_id in dag_ids],
        }
        launched = self.query(_LAUNCH, params={"selector": selector, "mode": "default"})
        assert launched["launchRun"]["__typename"] == "LaunchRunSuccess", launched
        return launched["launchRun"]["run"]["runId"]

    def backfill(self, instance: str, dag_id: str, partitions: Sequence[str]) -> None:
        """Launch a backfill of some partitions of a DAG, as a person does."""
        params = {"assetSelection": [_build_key(instance, dag_id)], "partitionNames": partitions}
        launched = self.query(_BACKFILL, params=params)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched

    def wait_for_run(self, run_id: str, timeout_s: float = 300) -> str:
        """Return the status with which a run ends."""

        def find_end() -> str | None:
            status = self.fetch_status(run_id)
            return status if status in FINISHED else None

        return wait_for(find_end, f"Dagster run {run_id} has ended", timeout_s)

    def fetch_attempts(self, root_run_id: str) -> list[Run]:
        """Return a run and its re-executions, the oldest first."""
        found = self.query(_ATTEMPTS, root=root_run_id)
        runs = [*found["first"]["results"], *found["more"]["results"]]
        runs.sort(key=lambda run: run["creationTime"])
        return [Run(run["runId"], run["status"]) for run in runs]

    def wait_for_attempts(self, root_run_id: str, timeout_s: float = 240) -> list[Run]:
        """Return a run and its re-executions when all of them have ended."""

        def find() -> list[Run] | None:
            attempts = self.fetch_attempts(root_run_id)
            return attempts if all(run.is_finished for run in attempts) else None

        return wait_for(find, f"all attempts of Dagster run {root_run_id} have ended", timeout_s)

    def terminate(self, run_id: str, *, is_forced: bool = False) -> str | None:
        """Cancel a run, as a person does.

        Args:
            is_forced: Mark the run as canceled even if its worker lives on.

        Returns:
            Why Dagster refused; None if it did not.
        """
        policy = "MARK_AS_CANCELED_IMMEDIATELY" if is_forced else "SAFE_TERMINATE"
        return self.query(_TERMINATE, run=run_id, policy=policy)["terminateRun"].get("message")

    def reexecute(self, run_id: str) -> str | None:
        """Re-execute a failed or canceled run from the failure, or all of it if no step ran.

        Returns:
            The id of the new run; None if Dagster can't launch one now.
        """
        for strategy in ("FROM_FAILURE", "ALL_STEPS"):
            params = {"parentRunId": run_id, "strategy": strategy, "useParentRunTags": True}
            launched = self.query(_REEXECUTE, params=params)["launchRunReexecution"]
            if launched["__typename"] == "LaunchRunSuccess":
                return launched["run"]["runId"]
        return None


def _build_key(instance: str, dag_id: str) -> dict[str, list[str]]:
    return {"path": [instance, "dag", dag_id]}


def _parse_materialization(event: dict[str, Any]) -> Materialization:
    metadata = {
        entry["label"]: next((value for key, value in entry.items() if key != "label"), "")
        for entry in event["metadataEntries"]
    }
    return Materialization(
        run_id=metadata["Run ID"],
        dagster_run_id=event["runId"] or None,
        partition=event["partition"],
        timestamp=float(event["timestamp"]) / 1000,
        metadata=metadata,
    )


def count_evaluations(ticks: Iterable[Any], since: float) -> int:
    """Count how often a sensor was evaluated since then, by its stored ticks that have ended. One
    without news evaluates it again every few seconds."""
    ended = [tick for tick in ticks if tick.timestamp > since and tick.status.value != "STARTED"]
    return sum(1 + int((tick.end_timestamp - tick.timestamp) // LOOP_S) for tick in ended)
