"""Where a DAG run came from: its note in Airflow, and its link in Dagster."""

from __future__ import annotations

import math

import dagster as dg
import pytest

from federation_defs.naming import build_asset_key, build_run_id
from tests.contract.conftest import Airflow, StartAirflow
from tests.contract.execution.executing import DagsterJob, ExecutedRun, materialize
from tests.contract.execution.interrupting import before_acting
from tests.contract.execution.partitioned import declare, of_range
from tests.contract.fakes.airflow import asks

DAG = "customer_metrics"
KEY = build_asset_key("metrics", DAG)
UPSTREAM = build_asset_key("warehouse", "load_customers")
TAG = f"federation/dag_run.metrics.{DAG}"


def read_note(airflow: Airflow) -> str:
    (note,) = {run.note for run in airflow.database.runs}
    assert note is not None
    return note


def run_with(
    airflow: Airflow, instance: dg.DagsterInstance, tags: dict[str, str] | None = None
) -> ExecutedRun:
    airflow.database.add_dag(DAG, polls=0)
    executed = materialize(airflow.client, [DAG], instance, tags=tags)
    assert executed.success
    return executed


def test_the_note_has_the_dagster_run_and_its_link(
    airflow: Airflow, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDERATION_DAGSTER_URL", "https://dagster.example.com/prod/")
    executed = run_with(airflow, instance)
    assert read_note(airflow) == (
        f"Triggered by Dagster run {executed.run_id}, which a person launched. "
        f"https://dagster.example.com/prod/runs/{executed.run_id}"
    )


def test_the_note_has_no_link_without_a_dagster_url(
    airflow_v2: Airflow, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDERATION_DAGSTER_URL", raising=False)
    executed = run_with(airflow_v2, instance)
    note = f"Triggered by Dagster run {executed.run_id}, which a person launched."
    assert read_note(airflow_v2) == note


@pytest.mark.parametrize(
    ("tags", "cause"),
    [
        ({"dagster/from_automation_condition": "true"}, "which automation requested"),
        ({"dagster/backfill": "abcdef"}, "of backfill abcdef"),
        ({"dagster/schedule_name": "nightly"}, "which schedule nightly requested"),
        ({"dagster/sensor_name": "arrivals"}, "which sensor arrivals requested"),
        ({"user": "ann@example.com"}, "which ann@example.com launched"),
    ],
)
def test_the_note_says_what_requested_the_run(
    airflow_v2: Airflow, instance: dg.DagsterInstance, tags: dict[str, str], cause: str
) -> None:
    executed = run_with(airflow_v2, instance, tags)
    assert read_note(airflow_v2).startswith(f"Triggered by Dagster run {executed.run_id}, {cause}.")


def test_the_note_has_the_upstream_run_that_it_follows(
    start_airflow: StartAirflow, instance: dg.DagsterInstance
) -> None:
    warehouse, metrics = start_airflow("v1", "warehouse"), start_airflow("v2", "metrics")
    warehouse.database.add_dag("load_customers", polls=0)
    dags = {"load_customers": {"depends_on": ["sources/customers"]}}
    upstream = materialize(warehouse.client, dags, instance)
    run_with(metrics, instance)
    run_id = build_run_id(upstream.run_id)
    url = warehouse.client.build_run_url("load_customers", run_id)
    last = read_note(metrics).splitlines()[-1]
    assert last == f"After warehouse/load_customers: run {run_id} {url}"


def test_a_note_is_no_longer_than_airflow_takes(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    upstreams = [f"warehouse/dag_{number:02}" for number in range(40)]
    for number in range(40):
        key = build_asset_key("warehouse", f"dag_{number:02}")
        event = dg.AssetMaterialization(key, metadata={"Run ID": f"manual__{number}" * 10})
        instance.report_runless_asset_event(event)
    airflow_v2.database.add_dag(DAG, polls=0)
    dags = {DAG: {"depends_on": upstreams}}
    assert materialize(airflow_v2.client, dags, instance).success
    note = read_note(airflow_v2)
    assert len(note) == 1000
    assert note.endswith("…")


def test_the_dagster_run_has_the_dag_run_as_its_tag(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    executed = run_with(airflow_v2, instance)
    run = instance.get_run_by_id(executed.run_id)
    assert run is not None
    assert run.tags[TAG] == build_run_id(executed.run_id)
    found = instance.get_runs(dg.RunsFilter(tags={TAG: build_run_id(executed.run_id)}))
    assert [one.run_id for one in found] == [executed.run_id]


def test_the_tag_of_a_range_has_one_run_and_how_many_more_there_are(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    tags = of_range("2025-02-03", "2025-02-05")
    executed = materialize(airflow_v2.client, {DAG: declare()}, instance, tags=tags)
    run = instance.get_run_by_id(executed.run_id)
    assert run is not None
    assert run.tags[TAG].startswith(f"{build_run_id(executed.run_id)}__2025-02-0")
    assert run.tags[TAG].endswith(" and 2 more")


def test_the_link_is_reported_before_the_dag_run_ends(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG, polls=math.inf)
    seen: list[dg.AssetObservation] = []

    def read_and_finish() -> None:
        records = instance.fetch_observations(KEY, limit=10).records
        seen.extend(record.asset_observation for record in records if record.asset_observation)
        airflow.database.finish_run(airflow.database.runs[0])

    poll = asks("GET", f"/dags/{DAG}/dagRuns/[^/]+")
    airflow.server.fail_next(poll, before_acting(read_and_finish))
    executed = materialize(airflow.client, [DAG], instance)
    assert executed.success
    (observation,) = seen
    run_id = build_run_id(executed.run_id)
    metadata = {name: value.value for name, value in observation.metadata.items()}
    assert metadata == {
        "Run ID": run_id,
        "Link to run": airflow.client.build_run_url(DAG, run_id),
        "State": "queued",
    }
    assert len(instance.fetch_observations(KEY, limit=10).records) == 1


def test_the_note_of_a_re_execution_is_the_first_attempts(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """It is the run's: what it was cleared for is in Dagster."""
    dag = airflow_v2.database.add_dag(DAG, polls=0, outcome="failed")
    job = DagsterJob(airflow_v2.client, [DAG], instance)
    first = job.execute()
    dag.outcome = "success"
    assert job.execute(first).success
    assert f"Dagster run {first.run_id}," in read_note(airflow_v2)
