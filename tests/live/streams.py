"""A deployment as that of `make demo-production`, over DAGs that no other test has.

Runs of `streamed` end again and again in warehouse. Each run of its `relayed` that succeeds is
followed by one of metrics.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

import dagster as dg
from dagster_postgres.utils import DagsterPostgresException
from sqlalchemy.exc import DBAPIError

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun
from federation_defs.naming import build_asset_key
from tests.contract.observation.daemon import fetch_reported_runs
from tests.live.federation import Federation, fetch_runs, replace_dags, trigger, wait_for_state
from tests.live.production import DagsterProduction
from tests.waiting import wait_for

STREAMED, RELAYED = "streamed", "relayed"
_FOLLOWING = {
    RELAYED: {
        "depends_on": [f"warehouse/{RELAYED}"],
        "trigger": {"runs": "each", "pass_upstream": True},
    }
}


class Production(Federation):
    """A federation whose Dagster is that of `make demo-production`."""

    dagster: DagsterProduction

    def list_reports(self, name: str, dag_id: str) -> list[object]:
        """Return the ids of the reported runs of a DAG, oldest first; none without a database."""
        try:
            events = fetch_reported_runs(self.event_log, build_asset_key(name, dag_id))
        except (DBAPIError, DagsterPostgresException):  # the database is not back yet
            return []
        return [event["Run ID"].value for event in events]

    def fetch_report_times(self, name: str, dag_id: str) -> dict[object, float]:
        """Return when each run of a DAG was reported, by its id."""
        records = self.event_log.fetch_materializations(
            build_asset_key(name, dag_id), limit=10_000
        ).records
        return {
            record.asset_materialization.metadata["Run ID"].value: record.timestamp
            for record in records
            if record.asset_materialization
        }

    def assert_all_reported_once(self, name: str, dag_id: str, run_ids: list[str]) -> None:
        """Wait until these runs are reported, and check that each is reported once."""
        missing = set(run_ids)
        wait_for(
            lambda: missing <= set(self.list_reports(name, dag_id)),
            f"all runs of {dag_id} are reported",
            timeout_s=300,
        )
        self.wait_for_ticks()
        reported = Counter(self.list_reports(name, dag_id))
        assert {run_id: reported[run_id] for run_id in run_ids} == dict.fromkeys(run_ids, 1)

    def _describe_runs(self) -> list[str]:
        """Return the status and the tags of all Dagster runs."""
        return [
            f"{run.run_id} {run.status.value}, root {run.root_run_id}: "
            + ", ".join(f"{key}={value}" for key, value in run.tags.items())
            for run in self.event_log.get_runs()
        ]

    def assert_each_followed_once(self, relayed: list[str], since: datetime) -> list[DagRun]:
        """Wait until runs have followed these, check that one did for each, and return them."""
        metrics = self.clients["metrics"]

        def find_followers() -> list[str] | None:
            runs = fetch_runs(metrics, since, {RELAYED})
            return [run.run_id for run in runs] if len(runs) >= len(relayed) else None

        try:
            followers = wait_for(find_followers, f"{len(relayed)} runs follow", timeout_s=600)
        except AssertionError as error:
            raise AssertionError(f"{error}. Dagster has {self._describe_runs()}") from error
        for run_id in followers:
            wait_for_state(metrics, RELAYED, run_id, "success")
        self.settle("metrics", RELAYED)
        runs = fetch_runs(metrics, since, {RELAYED})
        followed = [cause["run_id"] for run in runs for cause in run.conf["federation"]["upstream"]]
        assert Counter(followed) == Counter(relayed)
        self.assert_all_reported_once("metrics", RELAYED, [run.run_id for run in runs])
        return runs


@contextmanager
def start_production(
    folder: Path, env: Mapping[str, str], clients: Mapping[str, AirflowClient]
) -> Iterator[Production]:
    """Run Dagster over the DAGs of this module.

    Args:
        folder: A scratch folder.
        env: The addresses and accounts of the Airflows.
        clients: Reach the Airflows.
    """
    dagster = DagsterProduction(folder, env)
    replace_dags(dagster.project, "warehouse", [STREAMED, RELAYED], {})
    replace_dags(dagster.project, "metrics", [RELAYED], _FOLLOWING)
    with ExitStack() as stack:
        stack.callback(dagster.close)
        dagster.start()
        event_log: dg.DagsterInstance = stack.enter_context(dagster.open_instance())
        yield Production(dagster, clients, {}, event_log, lake=folder)


@contextmanager
def streaming(
    client: AirflowClient, interval_s: float, gate: threading.Lock | None = None
) -> Iterator[list[str]]:
    """Trigger `streamed` again and again. The run ids appear in the list.

    Args:
        gate: While another thread holds it, nothing is triggered. What was missed follows at once.
    """
    gate = gate or threading.Lock()
    run_ids, is_over, began = [trigger(client, STREAMED)], threading.Event(), time.monotonic()

    def stream() -> None:
        while not is_over.wait(began + interval_s * len(run_ids) - time.monotonic()):
            with gate:
                run_ids.append(trigger(client, STREAMED))

    thread = threading.Thread(target=stream)
    thread.start()
    try:
        yield run_ids
    finally:
        is_over.set()
        thread.join()
