"""Finished runs as asset events: the real sensor, a fake Airflow and a fake daemon."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import dagster as dg

from federation_defs.naming import build_asset_key
from tests.contract.conftest import Airflow, StartAirflow
from tests.contract.observation.daemon import (
    DAG,
    KEY,
    Daemon,
    Observed,
    fetch_reported_run_ids,
    fetch_reported_runs,
)


def test_a_success_is_one_materialization_with_the_runs_metadata(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG)
    date = datetime(2026, 1, 2, tzinfo=timezone.utc)
    run = airflow.database.start_run(DAG, "mine", conf={"k": 1}, logical_date=date)
    end = run.queued_at + timedelta(seconds=2.5)
    airflow.database.finish_run(run, end_date=end)
    daemon = Daemon(airflow.client, [DAG], instance)
    assert daemon.tick() == ["mine"]
    assert daemon.tick() == []
    (metadata,) = fetch_reported_runs(instance, KEY)
    page = "grid?dag_run_id=mine" if airflow.server.api == "v1" else "runs/mine"
    seen = {name: value.value for name, value in metadata.items()}
    lag_s = seen.pop("Lag (s)")
    assert isinstance(lag_s, float)
    assert -3 < lag_s < 10  # it ends 2.5 s after it began just now
    if airflow.server.api == "v2":  # 2.x does not say when a run was queued
        assert seen.pop("Queued") == run.queued_at.timestamp()
        assert seen.pop("Queue time (s)") == 0
    assert seen == {
        "Run ID": "mine",
        "Link to run": f"{airflow.server.url}/dags/{DAG}/{page}",
        "State": "success",
        "Outcome": "success",
        "Logical date": date.timestamp(),
        "Data interval start": date.timestamp(),
        "Data interval end": date.timestamp(),
        "Start": run.queued_at.timestamp(),
        "End": end.timestamp(),
        "Duration (s)": 2.5,
        "Tries": 1,
        "Run type": "manual",
        "Conf": {"k": 1},
    }


def test_failed_and_unfinished_runs_are_no_materializations(observed: Observed) -> None:
    observed.add_run("failed", "failed")
    observed.database.start_run(DAG, "running")
    observed.database.start_run(DAG, "queued", state="queued")
    assert observed.daemon.tick() == []
    assert observed.reported == []


def test_a_running_run_is_reported_when_it_ends(observed: Observed) -> None:
    run = observed.database.start_run(DAG, "mine")
    assert observed.daemon.tick() == []
    observed.database.finish_run(run)
    assert observed.daemon.tick() == ["mine"]


def test_runs_are_reported_in_the_order_of_their_ends(observed: Observed) -> None:
    seconds_ago = [7, 3, 9, 1, 5, 8, 2, 6, 4]
    for number in seconds_ago:
        observed.add_run(f"ended {number} s ago", ended_s_ago=number)
    expected = [f"ended {number} s ago" for number in sorted(seconds_ago, reverse=True)]
    assert observed.daemon.tick() == expected


def test_more_runs_than_a_page_holds_are_each_reported_once(observed: Observed) -> None:
    run_ids = [f"run_{number:03}" for number in range(120)]
    for number, run_id in enumerate(run_ids):
        observed.add_run(run_id, ended_s_ago=200 - number)
    reported: list[str] = []
    while news := observed.daemon.tick():  # a busy machine may need more than one
        reported += news
    assert reported == run_ids


def test_a_poll_that_finds_only_reported_runs_is_one_request(observed: Observed) -> None:
    for number in range(50):
        observed.add_run(f"run {number}")
    observed.daemon.tick()
    before = len(observed.server.requests)
    observed.daemon.tick()
    assert len(observed.server.requests) == before + 1


def test_a_run_that_is_cleared_and_ends_again_is_a_second_event(observed: Observed) -> None:
    run = observed.add_run("mine")
    assert observed.daemon.tick() == ["mine"]
    observed.database.clear(run)
    assert observed.daemon.tick() == []
    observed.database.finish_run(run)
    assert observed.daemon.tick() == ["mine"]
    ends = [
        metadata["End"].value for metadata in fetch_reported_runs(observed.daemon.instance, KEY)
    ]
    assert len(set(ends)) == 2


def test_a_failed_run_that_is_set_to_success_by_hand_is_reported(observed: Observed) -> None:
    run = observed.add_run("mine", "failed")
    assert observed.daemon.tick() == []
    observed.database.set_state(run, "success")
    assert observed.daemon.tick() == ["mine"]


def test_a_success_that_is_set_to_failed_and_back_is_no_second_event(observed: Observed) -> None:
    run = observed.add_run("mine")
    assert observed.daemon.tick() == ["mine"]
    observed.database.set_state(run, "failed")
    assert observed.daemon.tick() == []
    observed.database.set_state(run, "success")
    assert observed.daemon.tick() == []


def test_a_run_that_never_started_is_reported_without_a_start(observed: Observed) -> None:
    run = observed.database.start_run(DAG, "by hand", state="queued")
    observed.database.set_state(run, "success")
    assert observed.daemon.tick() == ["by hand"]
    (metadata,) = fetch_reported_runs(observed.daemon.instance, KEY)
    assert not {"Start", "Duration (s)", "Logical date", "Conf"} & metadata.keys()


def test_a_run_of_a_dag_that_is_not_selected_is_not_reported(observed: Observed) -> None:
    observed.database.add_dag("other")
    other = observed.database.start_run("other", "not ours")
    observed.database.finish_run(other)
    observed.add_run("ours")
    assert observed.daemon.tick() == ["ours"]


def test_a_run_in_one_instance_never_materializes_anothers_dag_of_the_same_name(
    start_airflow: StartAirflow, instance: dg.DagsterInstance
) -> None:
    airflows = {"warehouse": start_airflow("v1", "warehouse"), "metrics": start_airflow("v2")}
    daemons = {}
    for name, airflow in airflows.items():
        airflow.database.add_dag(DAG)
        daemons[name] = Daemon(airflow.client, [DAG], instance)
    database = airflows["warehouse"].database
    database.finish_run(database.start_run(DAG, "of warehouse"))
    assert [daemons["metrics"].tick(), daemons["warehouse"].tick()] == [[], ["of warehouse"]]
    assert fetch_reported_runs(instance, KEY) == []
    assert fetch_reported_run_ids(instance, build_asset_key("warehouse", DAG)) == ["of warehouse"]


def test_the_same_run_id_in_two_dags_is_two_events(observed: Observed) -> None:
    observed.database.add_dag("load_orders")
    daemon = Daemon(observed.daemon.client, [DAG, "load_orders"], observed.daemon.instance)
    for dag_id in (DAG, "load_orders"):
        observed.database.finish_run(observed.database.start_run(dag_id, "dagster__same"))
    assert daemon.tick() == ["dagster__same"] * 2
    assert daemon.tick() == []
