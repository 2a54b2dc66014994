"""Dependencies of DAGs in one Airflow on DAGs in another.

The demo has five of them. Their tests happen at the same time: a fixture triggers all the upstream
DAGs, and each test waits for what follows in its own dependency.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import duckdb
import pytest

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun
from tests.live.dagster_api import Materialization
from tests.live.federation import (
    Dependency,
    Federation,
    set_duration,
    set_variable,
    trigger,
    utc_now,
    wait_for_state,
)
from tests.waiting import wait_for

PLAIN = Dependency("load_customers", "customer_metrics")
FAILING = Dependency("load_orders", "order_metrics")
SLOW = Dependency("load_payments", "payment_metrics")
PAUSED = Dependency("load_products", "product_metrics")
UPDATED = (PLAIN, FAILING, SLOW)
SLOW_S = 240  # at most


@dataclass(frozen=True)
class Updates:
    """Updates of all upstream DAGs, and what came of them.

    Attributes:
        since: From just before the first update.
        upstream: The first upstream run of each dependency.
        paused_run: The Dagster run of the paused downstream DAG.
    """

    federation: Federation
    since: datetime
    upstream: dict[Dependency, DagRun]
    paused_run: str

    def wait_for_downstream(self, dependency: Dependency, state: str, count: int = 1) -> DagRun:
        return self.federation.wait_for_downstream(dependency, self.since, state, count)

    def wait_for_downstream_report(self, dependency: Dependency, run: DagRun) -> Materialization:
        return self.federation.wait_for_materialization(
            "metrics", dependency.downstream, run, self.since
        )

    def list_downstream_runs(self, dependency: Dependency) -> list[str]:
        runs = self.federation.fetch_downstream_runs(dependency, self.since)
        return [run.run_id for run in runs]

    def list_reports(self, name: str, dag_id: str) -> list[str]:
        """Return the run ids of the materializations, the oldest first."""
        events = self.federation.fetch_materializations(name, dag_id, self.since)
        return [event.run_id for event in events][::-1]


@pytest.fixture(scope="module")
def updates(request: pytest.FixtureRequest, federation: Federation) -> Iterator[Updates]:
    metrics = federation.clients["metrics"]
    with ExitStack() as stack:

        def set_until_the_end(key: str, value: str) -> None:
            stack.callback(set_variable, metrics, key, None)
            set_variable(metrics, key, value)

        set_until_the_end(f"{FAILING.downstream}__fail", "true")
        set_until_the_end(f"{SLOW.downstream}__seconds", str(SLOW_S))
        stack.callback(change, metrics, PAUSED.downstream, {"is_paused": False})
        change(metrics, PAUSED.downstream, {"is_paused": True})

        since = utc_now()
        paused_run = federation.dagster.materialize("metrics", PAUSED.downstream)
        with duckdb.connect(str(federation.lake)):  # keeps the DAGs out
            run_ids = [trigger(federation.clients["warehouse"], each.upstream) for each in UPDATED]
            for each, run_id in zip(UPDATED, run_ids, strict=True):
                wait_for_state(federation.clients["warehouse"], each.upstream, run_id, "running")
        upstream = [
            wait_for_state(
                federation.clients["warehouse"], each.upstream, run_id, "success", "failed"
            )
            for each, run_id in zip(UPDATED, run_ids, strict=True)
        ]
        # Not earlier, since these update the upstream of the paused DAG too.
        request.getfixturevalue("actions")
        yield Updates(federation, since, dict(zip(UPDATED, upstream, strict=True)), paused_run)


def change(client: AirflowClient, path: str, values: Mapping[str, Any]) -> None:
    response = client.session.request("PATCH", f"/api/v2/dags/{path}", json=values)
    assert response.ok, response.text


def test_a_success_during_a_long_downstream_run_leads_to_one_more_run(
    updates: Updates,
) -> None:
    """Metrics is also unreachable for a while during that run, which a person ends."""
    federation, first = updates.federation, updates.wait_for_downstream(SLOW, "running")
    warehouse, metrics = federation.clients["warehouse"], federation.clients["metrics"]
    run_id = trigger(warehouse, SLOW.upstream)
    make_unreachable_for_a_tick(federation)
    second_upstream = wait_for_state(warehouse, SLOW.upstream, run_id, "success")
    update = federation.wait_for_materialization(
        "warehouse", SLOW.upstream, second_upstream, updates.since
    )
    set_duration(metrics, 0, SLOW.downstream)  # of the run that follows
    change(metrics, f"{SLOW.downstream}/dagRuns/{first.run_id}", {"state": "success"})
    second = updates.wait_for_downstream(SLOW, "success", count=2)
    updates.wait_for_downstream_report(SLOW, second)

    assert updates.list_downstream_runs(SLOW) == [first.run_id, second.run_id]
    first_report = updates.wait_for_downstream_report(SLOW, first)
    assert update.timestamp < first_report.metadata["End"], "the second update came too late"


def make_unreachable_for_a_tick(federation: Federation) -> None:
    federation.proxies["metrics"].refuse()
    try:
        federation.wait_for_ticks(count=1)
    finally:
        federation.proxies["metrics"].listen()


def test_dags_that_need_the_lake_at_the_same_time_wait_for_each_other(updates: Updates) -> None:
    """DuckDB admits one process at a time."""
    states = {dependency.upstream: run.state for dependency, run in updates.upstream.items()}
    assert states == {dependency.upstream: "success" for dependency in UPDATED}


def test_a_success_in_one_airflow_starts_one_run_in_the_other(updates: Updates) -> None:
    downstream = updates.wait_for_downstream(PLAIN, "success")
    report = updates.wait_for_downstream_report(PLAIN, downstream)
    address = updates.federation.proxies["metrics"].url
    page = f"{address}/dags/{PLAIN.downstream}/runs/{downstream.run_id}"
    assert report.metadata["Link to run"] == page
    assert report.metadata["Duration (s)"] > 0
    assert_metrics_are_right(updates.federation)


def assert_metrics_are_right(federation: Federation) -> None:
    """Check what the DAGs wrote against a count by hand: 1244 rows in the CSV, 44 of them dirty."""

    def read_lake() -> tuple[dict[str, float], ...] | None:
        try:
            lake = duckdb.connect(str(federation.lake), read_only=True)
        except duckdb.IOException:  # a DAG of another test writes
            return None

        def select(sql: str) -> dict[str, float]:
            return {str(key): value for key, value in lake.sql(sql).fetchall()}

        metrics = "SELECT dimension, value FROM customer_metrics WHERE metric"
        with lake:
            return (
                select(f"{metrics} = 'customers'"),
                select(f"{metrics} = 'customers_by_country'"),
                select(f"{metrics} = 'new_customers'"),
                select("SELECT reason, count(*) FROM customers_rejected GROUP BY ALL"),
            )

    customers, by_country, by_day, rejected = wait_for(read_lake, "the lake is free")
    assert customers == {"all": 1200}
    assert by_country == {
        "DE": 378, "FR": 241, "NL": 173, "GB": 147, "US": 107, "ES": 70, "IT": 56, "PL": 28,
    }  # fmt: skip
    assert len(by_day) == 90
    assert by_day["2026-01-01"] == 3
    assert by_day["2026-03-31"] == 23
    assert sum(by_day.values()) == 1200
    assert sum(rejected.values()) == 44


def test_a_failed_downstream_dag_fails_the_run_and_names_the_task_and_its_log(
    updates: Updates,
) -> None:
    updates.wait_for_downstream(FAILING, "failed")
    dagster = updates.federation.dagster
    (run,) = dagster.fetch_runs(FAILING.downstream)[:1]
    assert dagster.wait_for_run(run.run_id) == "FAILURE"
    message, metadata = dagster.fetch_failure(run.run_id)
    assert "DAG 'order_metrics' failed in Airflow 'metrics'. Failed tasks: compute." in message
    assert "because the Variable order_metrics__fail is 'true'" in metadata["Log of compute"]


def test_a_paused_downstream_dag_fails_the_run_at_once_without_a_trigger(updates: Updates) -> None:
    dagster = updates.federation.dagster
    assert dagster.wait_for_run(updates.paused_run) == "FAILURE"
    message, _ = dagster.fetch_failure(updates.paused_run)
    assert "has DAG 'product_metrics' paused" in message
    address = updates.federation.proxies["metrics"].url
    assert f"Unpause it at {address}/dags/product_metrics" in message
    assert updates.list_downstream_runs(PAUSED) == []


def test_each_asset_shows_its_dag_and_links_to_its_page(federation: Federation) -> None:
    assets = federation.dagster.fetch_assets()
    pages: dict[str, tuple[str, str]] = {
        "warehouse/dag/load_customers": ("warehouse-team", "/dags/load_customers/grid"),
        "metrics/dag/customer_metrics": ("analytics", "/dags/customer_metrics"),
    }
    for key, (team, path) in pages.items():
        instance = key.split("/")[0]
        asset: dict[str, Any] = assets[key]
        entries = {entry["label"]: entry for entry in asset["metadataEntries"]}
        assert entries["Link to DAG"]["url"] == federation.proxies[instance].url + path
        assert entries["Schedule"]["text"] == "none"
        assert asset["owners"] == [{"team": team}]
        assert asset["groupName"] == instance
        assert set(asset["kinds"]) == {"airflow", "dag"}
        for tag in ("customers", "federated"):
            assert {"key": tag, "value": ""} in asset["tags"]
    upstream, downstream = (assets[key] for key in pages)
    assert (upstream["isExecutable"], downstream["isExecutable"]) == (False, True)
    assert downstream["dependencyKeys"] == [{"path": ["warehouse", "dag", "load_customers"]}]


def test_each_update_leads_to_one_run_and_one_materialization_and_to_nothing_later(
    updates: Updates,
) -> None:
    runs = {
        PLAIN: [updates.wait_for_downstream(PLAIN, "success")],
        FAILING: [updates.wait_for_downstream(FAILING, "failed")],
    }
    updates.federation.settle(
        "metrics", *(each.downstream for each in (PLAIN, FAILING, SLOW, PAUSED))
    )

    for dependency, expected in runs.items():
        assert updates.list_downstream_runs(dependency) == [run.run_id for run in expected]
        succeeded = [run.run_id for run in expected if run.is_success]
        assert updates.list_reports("metrics", dependency.downstream) == succeeded
        upstream = updates.upstream[dependency].run_id
        assert updates.list_reports("warehouse", dependency.upstream) == [upstream]
    assert updates.list_downstream_runs(PAUSED) == []
    slow_runs = updates.list_downstream_runs(SLOW)
    assert slow_runs
    assert updates.list_reports("metrics", SLOW.downstream) == slow_runs
    assert len(updates.list_reports("warehouse", SLOW.upstream)) == len(slow_runs)
