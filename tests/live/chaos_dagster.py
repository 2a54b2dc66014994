"""A `dagster dev` whose parts are killed, and what a person does about it."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from tests.live.dagster_dev import FINISHED, DagsterDev
from tests.waiting import wait_for

_ATTEMPTS = """
query ($root: String!) {
  first: runsOrError(filter: {runIds: [$root]}) { ... on Runs { results { ...Attempt } } }
  more: runsOrError(filter: {tags: [{key: "dagster/root_run_id", value: $root}]}) {
    ... on Runs { results { ...Attempt } } } }
fragment Attempt on Run { runId status creationTime }
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
_LOCATIONS = """
query { workspaceOrError { ... on Workspace {
  locationEntries { updatedTimestamp locationOrLoadError { __typename } } } } }
"""


@dataclass(frozen=True)
class CurrentRun:
    """A Dagster run, or a re-execution of it."""

    run_id: str
    status: str

    @property
    def is_over(self) -> bool:
        return self.status in FINISHED


class MortalDagster(DagsterDev):
    """`dagster dev`, whose processes can be found and whose runs can be ended and repeated."""

    _lost: tuple[float, str] | None = None

    def find_workers(self) -> list[psutil.Process]:
        """The processes of the runs; with the in-process executor their steps are in there."""
        return self._find_processes("multiprocessing.spawn")

    def find_code_server(self) -> list[psutil.Process]:
        """Its processes: the one that Dagster talks to, and the one that has the code."""
        return self._find_processes("code-server start", "dagster api grpc")

    def _find_processes(self, *names: str) -> list[psutil.Process]:
        assert self.process
        found = []
        for process in psutil.Process(self.process.process.pid).children(recursive=True):
            try:
                command = " ".join(process.cmdline())
            except psutil.Error:  # it has ended meanwhile
                continue
            if any(name in command for name in names):
                found.append(process)
        return found

    def kill_code_server(self) -> None:
        """It is started again within seconds, and its code location loaded anew."""
        self._lost = self._fetch_location()
        for process in self.find_code_server():
            process.kill()

    def wait_until_back(self) -> None:
        """Returns when the code location that was lost last is loaded again."""

        def is_back() -> bool:
            location = self._fetch_location()
            return location[1] == "RepositoryLocation" and location != self._lost

        wait_for(is_back, "the code location is loaded again", timeout_s=120)

    def _fetch_location(self) -> tuple[float, str]:
        """When the one code location was loaded, or failed to be, and as what."""
        (entry,) = self.query(_LOCATIONS)["workspaceOrError"]["locationEntries"]
        return entry["updatedTimestamp"], (entry["locationOrLoadError"] or {}).get("__typename", "")

    def fetch_attempts(self, root_run_id: str) -> list[CurrentRun]:
        """A run and all its re-executions, the oldest first."""
        found = self.query(_ATTEMPTS, root=root_run_id)
        runs = [*found["first"]["results"], *found["more"]["results"]]
        runs.sort(key=lambda run: run["creationTime"])
        return [CurrentRun(run["runId"], run["status"]) for run in runs]

    def fetch_status(self, run_id: str) -> str:
        return self.fetch_attempts(run_id)[0].status

    def terminate(self, run_id: str, *, is_forced: bool = False) -> str | None:
        """Ends a run as a person does; why Dagster would not, or None.

        Args:
            is_forced: The run is marked as canceled, whatever becomes of its worker.
        """
        policy = "MARK_AS_CANCELED_IMMEDIATELY" if is_forced else "SAFE_TERMINATE"
        answer = self.query(_TERMINATE, run=run_id, policy=policy)["terminateRun"]
        return answer.get("message")

    def reexecute(self, run_id: str) -> str | None:
        """The id of the run in which a person executes one again that failed or was canceled: from
        the failure on, or all of it if nothing ran yet. None if Dagster can't just now."""
        for strategy in ("FROM_FAILURE", "ALL_STEPS"):
            params = {"parentRunId": run_id, "strategy": strategy, "useParentRunTags": True}
            answer = self.query(_REEXECUTE, params=params)["launchRunReexecution"]
            if answer["__typename"] == "LaunchRunSuccess":
                return answer["run"]["runId"]
        return None

    def wait_for_attempts(self, root_run_id: str, timeout_s: float = 120) -> list[CurrentRun]:
        """A run and its re-executions, when all of them are over."""

        def find() -> list[CurrentRun] | None:
            attempts = self.fetch_attempts(root_run_id)
            return attempts if all(one.is_over for one in attempts) else None

        return wait_for(find, f"all attempts of Dagster run {root_run_id} are over", timeout_s)
