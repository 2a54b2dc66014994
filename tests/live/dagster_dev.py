"""A real `dagster dev`, and what a person sees of it, asked for through its GraphQL API."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from tests.conftest import ROOT
from tests.processes import LoggedProcess, find_free_port
from tests.waiting import wait_for

FINISHED = {"SUCCESS", "FAILURE", "CANCELED"}

_MATERIALIZATIONS = """
query ($key: AssetKeyInput!) {
  assetOrError(assetKey: $key) { ... on Asset { assetMaterializations(limit: 100) {
    runId timestamp metadataEntries { label
      ... on TextMetadataEntry { text } ... on FloatMetadataEntry { floatValue }
      ... on UrlMetadataEntry { url } ... on TimestampMetadataEntry { timestamp } } } } } }
"""
_RUNS = """
query { runsOrError(limit: 200) { ... on Runs { results {
  runId status creationTime startTime assetSelection { path } tags { key value } } } } }
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
query { workspaceOrError { ... on Workspace { locationEntries { name loadStatus
  locationOrLoadError { __typename ... on PythonError { message causes { message } } } } } } }
"""


@dataclass(frozen=True)
class Materialization:
    """One event of an asset; `run_id` is the Airflow run's, `dagster_run_id` is None if Dagster
    did not run it but saw it."""

    run_id: str
    dagster_run_id: str | None
    timestamp: float
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    run_id: str
    status: str
    dag_ids: frozenset[str]


def copy_project(folder: Path) -> Path:
    """The project as a person has it, in a folder of its own, so that nothing of a demo that runs
    from this checkout is touched."""
    project = folder / "project"
    state = shutil.ignore_patterns(".local_defs_state", "__pycache__")
    shutil.copytree(ROOT / "federation_defs", project / "federation_defs", ignore=state)
    shutil.copy(ROOT / "pyproject.toml", project)
    shutil.copy(ROOT / ".env.example", project / ".env")
    return project


class DagsterDev:
    """`dagster dev` over a copy of the project; it can be killed and started again.

    Args:
        folder: A scratch folder: it gets the project's copy, DAGSTER_HOME and the log.
        env: The variables that tell where the Airflows are.
    """

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.project = copy_project(folder)
        self.home = folder / "dagster"
        self.home.mkdir()
        shutil.copy(ROOT / "deployment" / "dagster.yaml", self.home)
        self.port = find_free_port()
        self.env = {**env, "DAGSTER_HOME": str(self.home), "PYTHONPATH": str(self.project)}
        self.log = folder / "dagster.log"
        self.process: LoggedProcess | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when the code location is loaded."""
        dagster = Path(sys.executable).with_name("dagster")
        command = [dagster, "dev", "--host", "127.0.0.1", "--port", str(self.port)]
        process = LoggedProcess(command, self.log, cwd=self.project, env=self.env)
        self.process = process

        def is_loaded() -> bool:
            assert process.is_running, process.read_log()[-5000:]
            try:
                entries = self.query(_LOCATIONS)["workspaceOrError"]["locationEntries"]
            except requests.ConnectionError:
                return False
            for entry in entries:
                error = entry["locationOrLoadError"]
                assert not error or error["__typename"] != "PythonError", error
            return bool(entries) and all(entry["loadStatus"] == "LOADED" for entry in entries)

        wait_for(is_loaded, "dagster dev has loaded the project", timeout_s=120)

    def kill(self) -> None:
        assert self.process
        self.process.kill_tree()

    def stop(self) -> None:
        assert self.process
        self.process.terminate()

    def query(self, query: str, **variables: Any) -> dict[str, Any]:
        answer = requests.post(
            f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=60
        )
        content = answer.json()
        assert "errors" not in content, content["errors"]
        return content["data"]

    def fetch_materializations(self, instance: str, dag_id: str) -> list[Materialization]:
        """The newest first."""
        asset = self.query(_MATERIALIZATIONS, key={"path": [instance, "dag", dag_id]})
        events = asset["assetOrError"].get("assetMaterializations", [])
        return [_parse_materialization(event) for event in events]

    def fetch_runs(self, dag_id: str) -> list[Run]:
        """The runs that select a DAG's asset, the newest first."""
        runs = [
            Run(
                run["runId"],
                run["status"],
                frozenset(key["path"][-1] for key in run["assetSelection"] or ()),
            )
            for run in self.query(_RUNS)["runsOrError"]["results"]
        ]
        return [run for run in runs if dag_id in run.dag_ids]

    def fetch_failure(self, run_id: str) -> tuple[str, dict[str, str]]:
        """What a person reads about a failed run: the messages, and the step's metadata."""
        messages, metadata = [], {}
        for event in self.query(_FAILURES, run=run_id)["logsForRun"]["events"]:
            if event["__typename"] == "ExecutionStepFailureEvent":
                messages.append(event["error"]["message"])
                entries = (event["failureMetadata"] or {}).get("metadataEntries", [])
                metadata |= {entry["label"]: entry.get("mdStr", "") for entry in entries}
            elif event["__typename"] == "RunFailureEvent":
                messages.append(event["message"])
        return "\n".join(messages), metadata

    def fetch_assets(self) -> dict[str, dict[str, Any]]:
        """The assets that are defined, by key as "a/b/c"."""
        nodes = self.query(_ASSETS)["assetNodes"]
        return {"/".join(node["assetKey"]["path"]): node for node in nodes}

    def is_in_progress(self, instance: str, dag_id: str) -> bool:
        keys = [{"path": [instance, "dag", dag_id]}]
        (info,) = self.query(_PROGRESS, keys=keys)["assetsLatestInfo"]
        return bool(info["unstartedRunIds"] or info["inProgressRunIds"])

    def materialize(self, instance: str, *dag_ids: str) -> str:
        """The id of a run that a person starts."""
        mutation = """
        mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) {
          __typename ... on LaunchRunSuccess { run { runId } }
          ... on PythonError { message } ... on InvalidSubsetError { message } } }
        """
        entry = self.query(
            "{ repositoriesOrError { ... on RepositoryConnection { nodes { "
            "name location { name } } } } }"
        )["repositoriesOrError"]["nodes"][0]
        selector = {
            "repositoryName": entry["name"],
            "repositoryLocationName": entry["location"]["name"],
            "jobName": "__ASSET_JOB",
            "assetSelection": [{"path": [instance, "dag", dag_id]} for dag_id in dag_ids],
        }
        launched = self.query(mutation, params={"selector": selector, "mode": "default"})
        assert launched["launchRun"]["__typename"] == "LaunchRunSuccess", launched
        return launched["launchRun"]["run"]["runId"]

    def wait_for_run(self, run_id: str, timeout_s: float = 90) -> str:
        """The status in which a run ends."""
        query = "query ($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"

        def find_end() -> str | None:
            status = self.query(query, run=run_id)["runOrError"]["status"]
            return status if status in FINISHED else None

        return wait_for(find_end, f"Dagster run {run_id} is over", timeout_s)

    def settle(self, instance: str, dag_id: str, seconds: float = 20) -> None:
        """Returns after a time in which whatever was to happen too often would have happened:
        several turns of each sensor and of the automation."""
        wait_for(lambda: not self.is_in_progress(instance, dag_id), "nothing goes on")
        time.sleep(seconds)
        wait_for(lambda: not self.is_in_progress(instance, dag_id), "nothing goes on")


def _parse_materialization(event: dict[str, Any]) -> Materialization:
    metadata = {
        entry["label"]: next((value for key, value in entry.items() if key != "label"), "")
        for entry in event["metadataEntries"]
    }
    return Materialization(
        run_id=metadata["Run ID"],
        dagster_run_id=event["runId"] or None,
        timestamp=float(event["timestamp"]) / 1000,
        metadata=metadata,
    )
