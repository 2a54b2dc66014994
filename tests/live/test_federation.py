"""The main job over two real Airflows and a real `dagster dev`: a DAG ends in one, another follows
in the other, once, whatever is slow, fails or is killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from uuid import uuid4

import duckdb
import pytest

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun
from tests.conftest import Airflows
from tests.live.dagster_dev import DagsterDev, Materialization
from tests.waiting import wait_for

UPSTREAM = ("warehouse", "load_customers")
DOWNSTREAM = ("metrics", "customer_metrics")


@dataclass
class Federation:
    """Both Airflows and Dagster, and the moment the test began."""

    airflows: Airflows
    dagster: DagsterDev
    since: datetime

    @property
    def metrics(self) -> AirflowClient:
        return self.airflows.metrics

    def load_customers(self) -> DagRun:
        """The finished run of the upstream DAG, triggered as any client of warehouse would."""
        warehouse, run_id = self.airflows.warehouse, f"test__{uuid4()}"
        warehouse.trigger_run("load_customers", run_id)

        def find_end() -> DagRun | None:
            run = warehouse.fetch_run("load_customers", run_id)
            return run if run is not None and run.is_finished else None

        run = wait_for(find_end, "load_customers is over")
        assert run.is_success
        return run

    def fetch_downstream_runs(self) -> list[DagRun]:
        """Every run of customer_metrics that changed since the test began, the oldest first."""
        runs = self.metrics.fetch_changed_runs(self.since).runs
        return [run for run in runs if run.dag_id == "customer_metrics"]

    def wait_for_downstream(self, state: str, count: int = 1, timeout_s: float = 60) -> DagRun:
        """The last of as many runs of customer_metrics, when it is in this state."""

        def find() -> DagRun | None:
            runs = self.fetch_downstream_runs()
            return runs[-1] if len(runs) >= count and runs[-1].state == state else None

        return wait_for(find, f"run {count} of customer_metrics is {state}", timeout_s)

    def fetch_new(self, dag: tuple[str, str]) -> list[Materialization]:
        """The materializations since the test began, the newest first."""
        found = self.dagster.fetch_materializations(*dag)
        return [event for event in found if event.timestamp >= self.since.timestamp()]

    def wait_for_report(self, dag: tuple[str, str], run: DagRun, timeout_s: float = 30) -> None:
        wait_for(
            lambda: run.run_id in [event.run_id for event in self.fetch_new(dag)],
            f"{run.run_id} is reported",
            timeout_s,
        )

    @contextmanager
    def variable(self, key: str, value: str) -> Iterator[None]:
        """An Airflow Variable of metrics, set for a while."""
        session = self.metrics.session
        created = session.request("POST", "/api/v2/variables", json={"key": key, "value": value})
        assert created.status_code == 201, created.text
        try:
            yield
        finally:
            session.request("DELETE", f"/api/v2/variables/{key}")


@pytest.fixture(scope="module")
def dagster(airflows: Airflows, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterDev]:
    dagster = DagsterDev(tmp_path_factory.mktemp("dagster-dev"), airflows.env)
    dagster.start()
    # What ran within the last hour is reported first, and may start what follows.
    dagster.settle(*DOWNSTREAM)
    try:
        yield dagster
    finally:
        dagster.stop()


@pytest.fixture
def federation(airflows: Airflows, dagster: DagsterDev) -> Federation:
    return Federation(airflows, dagster, since=datetime.now(timezone.utc))


def test_each_asset_shows_its_dag_and_links_to_its_page(federation: Federation) -> None:
    assets = federation.dagster.fetch_assets()
    pages = {
        "warehouse/dag/load_customers": (
            "warehouse-team",
            f"{federation.airflows.warehouse.url}/dags/load_customers/grid",
        ),
        "metrics/dag/customer_metrics": (
            "analytics",
            f"{federation.metrics.url}/dags/customer_metrics",
        ),
    }
    for key, (team, page) in pages.items():
        asset = assets[key]
        entries = {entry["label"]: entry for entry in asset["metadataEntries"]}
        assert entries["Link to DAG"]["url"] == page
        assert entries["Schedule"]["text"] == "none"
        assert asset["owners"] == [{"team": team}]
        assert asset["groupName"] == key.split("/")[0]
        assert {"key": "customers", "value": ""} in asset["tags"]


def test_a_success_in_one_airflow_starts_one_run_in_the_other(federation: Federation) -> None:
    upstream = federation.load_customers()
    downstream = federation.wait_for_downstream("success")
    federation.wait_for_report(DOWNSTREAM, downstream)
    federation.dagster.settle(*DOWNSTREAM)

    assert len(federation.fetch_downstream_runs()) == 1
    (loaded,) = federation.fetch_new(UPSTREAM)
    assert loaded.run_id == upstream.run_id
    (computed,) = federation.fetch_new(DOWNSTREAM)
    assert computed.run_id == downstream.run_id
    assert computed.metadata["Link to run"] == (
        f"{federation.metrics.url}/dags/customer_metrics/runs/{downstream.run_id}"
    )
    assert computed.metadata["Duration (s)"] > 0
    assert_metrics_are_right(federation)


def assert_metrics_are_right(federation: Federation) -> None:
    """What the DAGs wrote, against what a count of the CSV by hand gave: 1244 rows, 44 of them
    dirty."""
    with duckdb.connect(str(federation.airflows.lake), read_only=True) as lake:

        def select(sql: str) -> dict[str, float]:
            return {str(key): value for key, value in lake.sql(sql).fetchall()}

        metrics = "SELECT dimension, value FROM customer_metrics WHERE metric"
        assert select(f"{metrics} = 'customers'") == {"all": 1200}
        by_country = select(f"{metrics} = 'customers_by_country'")
        by_day = select(f"{metrics} = 'new_customers'")
        rejected = select("SELECT reason, count(*) FROM customers_rejected GROUP BY ALL")
    assert by_country == {
        "DE": 378, "FR": 241, "NL": 173, "GB": 147, "US": 107, "ES": 70, "IT": 56, "PL": 28,
    }  # fmt: skip
    assert len(by_day) == 90
    assert by_day["2026-01-01"] == 3
    assert by_day["2026-03-31"] == 23
    assert sum(by_day.values()) == 1200
    assert sum(rejected.values()) == 44


def test_a_second_success_while_the_downstream_runs_leads_to_exactly_one_more_run(
    federation: Federation,
) -> None:
    with federation.variable("customer_metrics__seconds", "25"):
        federation.load_customers()
        first = federation.wait_for_downstream("running")
        federation.load_customers()
        federation.wait_for_downstream("running", count=2, timeout_s=90)
    last = federation.wait_for_downstream("success", count=2, timeout_s=90)
    federation.wait_for_report(DOWNSTREAM, last)
    federation.dagster.settle(*DOWNSTREAM)

    runs = federation.fetch_downstream_runs()
    assert [run.run_id for run in runs] == [first.run_id, last.run_id]
    reported = [event.run_id for event in federation.fetch_new(DOWNSTREAM)]
    assert reported == [last.run_id, first.run_id]
    assert len(federation.fetch_new(UPSTREAM)) == 2


def test_a_downstream_dag_of_a_minute_runs_into_no_time_out(federation: Federation) -> None:
    with federation.variable("customer_metrics__seconds", "60"):
        federation.load_customers()
        downstream = federation.wait_for_downstream("success", timeout_s=120)
    federation.wait_for_report(DOWNSTREAM, downstream)

    (run,) = federation.dagster.fetch_runs("customer_metrics")[:1]
    assert federation.dagster.wait_for_run(run.run_id) == "SUCCESS"
    (computed,) = federation.fetch_new(DOWNSTREAM)
    assert computed.metadata["Duration (s)"] >= 60
    assert len(federation.fetch_downstream_runs()) == 1


def test_a_failing_downstream_dag_fails_the_run_with_the_tasks_name_and_log(
    federation: Federation,
) -> None:
    with federation.variable("customer_metrics__fail", "true"):
        federation.load_customers()
        federation.wait_for_downstream("failed")
        (run,) = federation.dagster.fetch_runs("customer_metrics")[:1]
        assert federation.dagster.wait_for_run(run.run_id) == "FAILURE"
    federation.dagster.settle(*DOWNSTREAM)

    assert federation.fetch_new(DOWNSTREAM) == []
    assert len(federation.fetch_downstream_runs()) == 1
    message, metadata = federation.dagster.fetch_failure(run.run_id)
    assert "DAG 'customer_metrics' failed in Airflow 'metrics'. Failed tasks: compute." in message
    assert "because the Variable customer_metrics__fail is 'true'" in metadata["Log of compute"]


def test_a_paused_downstream_dag_is_said_at_once_and_not_waited_for(
    federation: Federation,
) -> None:
    session = federation.metrics.session
    path = "/api/v2/dags/customer_metrics"
    session.request("PATCH", path, json={"is_paused": True})
    try:
        run_id = federation.dagster.materialize(*DOWNSTREAM)
        assert federation.dagster.wait_for_run(run_id, timeout_s=40) == "FAILURE"
    finally:
        session.request("PATCH", path, json={"is_paused": False})

    message, _ = federation.dagster.fetch_failure(run_id)
    assert "has DAG 'customer_metrics' paused" in message
    assert f"Unpause it at {federation.metrics.url}/dags/customer_metrics" in message
    assert federation.fetch_downstream_runs() == []


@pytest.mark.parametrize("killed_while", ["customer_metrics runs", "it waits to be triggered"])
def test_killing_all_of_dagster_leaves_nothing_in_progress_and_loses_no_trigger(
    federation: Federation, killed_while: str
) -> None:
    dagster = federation.dagster
    with federation.variable("customer_metrics__seconds", "20"):
        federation.load_customers()
        if killed_while == "customer_metrics runs":
            federation.wait_for_downstream("running")
        else:
            wait_for(
                lambda: dagster.is_in_progress(*DOWNSTREAM), "a run is requested", interval_s=0.1
            )
        dagster.kill()
    dagster.start()
    interrupted = federation.wait_for_downstream("success", timeout_s=300)
    federation.wait_for_report(DOWNSTREAM, interrupted, timeout_s=240)
    wait_for(
        lambda: not dagster.is_in_progress(*DOWNSTREAM), "nothing is in progress", timeout_s=240
    )

    federation.load_customers()
    following = federation.wait_for_downstream("success", count=2)
    federation.wait_for_report(DOWNSTREAM, following)
    dagster.settle(*DOWNSTREAM)
    runs = [run.run_id for run in federation.fetch_downstream_runs()]
    assert runs == [interrupted.run_id, following.run_id]
    assert [event.run_id for event in federation.fetch_new(DOWNSTREAM)] == runs[::-1]
    assert len(federation.fetch_new(UPSTREAM)) == 2
