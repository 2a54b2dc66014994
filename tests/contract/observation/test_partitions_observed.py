"""The partitions of runs that observation reports."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import dagster as dg
import pytest

from federation_defs.declaration import DagDeclaration
from tests.contract.conftest import Airflow
from tests.contract.execution.partitioned import (
    BERLIN,
    DAG,
    DAILY,
    HOURLY,
    KEY,
    at,
    build_daemon,
    read_partitions,
)
from tests.contract.observation.daemon import (
    fetch_reported_observations,
    fetch_reported_runs,
    fetch_signals,
)

START, END, LOGICAL = (
    {"date": name} for name in ("data_interval_start", "data_interval_end", "logical_date")
)


def add_run(airflow: Airflow, state: str = "success", **columns: Any) -> str:
    """Add a finished run and return its id."""
    airflow.database.add_dag(DAG)
    run = airflow.database.start_run(DAG, **{"run_type": "scheduled", **columns})
    return airflow.database.finish_run(run, state).run_id


def as_airflow_2(start: str, end: str) -> dict[str, Any]:
    """Return the dates of a scheduled run, whose logical date is the start of its interval."""
    return {"logical_date": at(start), "data_interval": (at(start), at(end))}


def as_airflow_3(moment: str) -> dict[str, Any]:
    """Return the dates of a scheduled run, which are all the moment at which it is due."""
    return {"logical_date": at(moment), "data_interval": (at(moment), at(moment))}


TWO, THREE = as_airflow_2("2025-02-03", "2025-02-04"), as_airflow_3("2025-02-04")


@pytest.mark.parametrize(
    ("partitions", "columns", "partition"),
    [
        ({**DAILY, **START}, TWO, "2025-02-03"),
        ({**DAILY, **END}, TWO, "2025-02-03"),
        ({**DAILY, **LOGICAL}, TWO, "2025-02-03"),
        ({**DAILY, **START}, THREE, "2025-02-04"),
        ({**DAILY, **END}, THREE, "2025-02-03"),
        ({**DAILY, **LOGICAL}, THREE, "2025-02-04"),
        (HOURLY, as_airflow_2("2025-02-03T13:00", "2025-02-03T14:00"), "2025-02-03-13:00"),
        ({**HOURLY, **END}, as_airflow_3("2025-02-03T14:00"), "2025-02-03-13:00"),
        # By another schedule, at any time of the day.
        (DAILY, as_airflow_3("2025-02-03T13:37:01"), "2025-02-03"),
    ],
)
def test_a_runs_date_determines_its_partition(
    airflow: Airflow,
    instance: dg.DagsterInstance,
    partitions: dict[str, str],
    columns: dict[str, Any],
    partition: str,
) -> None:
    run_id = add_run(airflow, **columns)
    daemon = build_daemon(airflow, instance, **{DAG: partitions})
    assert (daemon.tick(), daemon.tick()) == ([run_id], [])
    assert read_partitions(instance) == [(partition, run_id)]
    assert instance.get_materialized_partitions(KEY) == {partition}


@pytest.mark.parametrize(
    ("start", "end", "partition"),
    [
        ("2025-02-02T23:00", "2025-02-03T23:00", "2025-02-03"),
        ("2025-03-29T23:00", "2025-03-30T22:00", "2025-03-30"),  # 23 hours
        ("2025-03-30T22:00", "2025-03-31T22:00", "2025-03-31"),
        ("2025-10-25T22:00", "2025-10-26T23:00", "2025-10-26"),  # 25 hours
        ("2025-10-26T23:00", "2025-10-27T23:00", "2025-10-27"),
    ],
)
@pytest.mark.parametrize("date", [START, END], ids=["start", "end"])
def test_a_daily_partition_is_a_day_of_its_time_zone(
    airflow_v2: Airflow,
    instance: dg.DagsterInstance,
    date: dict[str, str],
    start: str,
    end: str,
    partition: str,
) -> None:
    run_id = add_run(airflow_v2, **as_airflow_2(start, end))
    assert build_daemon(airflow_v2, instance, **{DAG: {**BERLIN, **date}}).tick() == [run_id]
    assert read_partitions(instance) == [(partition, run_id)]


def test_the_repeated_hour_is_two_partitions(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    hourly = {**HOURLY, "timezone": "Europe/Berlin"}
    moments = ["2025-10-26T00:00", "2025-10-26T01:00"]  # 02:00 in Berlin, and 02:00 once more
    run_ids = [add_run(airflow_v2, **as_airflow_3(moment)) for moment in moments]
    daemon = build_daemon(airflow_v2, instance, **{DAG: hourly})
    assert sorted(daemon.tick()) == sorted(run_ids)
    partitions = dict(read_partitions(instance))
    assert len(partitions) == 2
    assert None not in partitions


@pytest.mark.parametrize(
    ("key", "partition"),
    [("2025-02-03", "2025-02-03"), ("2025-2-3", None), ("customer-7", None), ("", None)],
)
def test_a_runs_partition_key_determines_its_partition_if_it_is_valid(
    airflow_v2: Airflow, instance: dg.DagsterInstance, key: str, partition: str | None
) -> None:
    run_id = add_run(airflow_v2, partition_key=key)
    assert build_daemon(airflow_v2, instance, **{DAG: DAILY}).tick() == [run_id]
    assert read_partitions(instance) == [(partition, run_id)]


@pytest.mark.parametrize("key", ["2024-12-31", "2025-02-05"], ids=["before the first", "no Monday"])
def test_a_well_formed_key_may_be_no_partition(
    airflow_v2: Airflow, instance: dg.DagsterInstance, key: str
) -> None:
    weekly = {"cron": "0 0 * * 1", "start": "2025-01-01"}
    run_id = add_run(airflow_v2, partition_key=key)
    assert build_daemon(airflow_v2, instance, **{DAG: weekly}).tick() == [run_id]
    assert read_partitions(instance) == [(None, run_id)]


@pytest.mark.parametrize(
    "columns",
    [{}, as_airflow_3("2024-12-31T23:59:59")],
    ids=["no date", "before the first partition"],
)
def test_a_run_of_no_partition_is_reported_without_one(
    airflow_v2: Airflow, instance: dg.DagsterInstance, columns: dict[str, Any]
) -> None:
    run_id = add_run(airflow_v2, **columns)
    assert build_daemon(airflow_v2, instance, **{DAG: DAILY}).tick() == [run_id]
    assert read_partitions(instance) == [(None, run_id)]


def test_the_report_of_a_run_of_no_partition_says_why(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    add_run(airflow_v2, **as_airflow_3("2024-12-31"))
    add_run(airflow_v2, "failed", **as_airflow_3("2024-12-30"))
    add_run(airflow_v2, "failed", **as_airflow_3("2025-02-03"))
    build_daemon(airflow_v2, instance, **{DAG: DAILY}).tick()
    declared = "`0 0 * * *` (UTC) from 2025-01-01 on, with keys as %Y-%m-%d, by data_interval_start"

    def explain(day: str) -> str:
        return f"Its data_interval_start is {day} 00:00:00+00:00. Declared partitions: {declared}."

    (report,) = fetch_reported_runs(instance, KEY)
    assert report["No partition"].value == explain("2024-12-31")
    failure, other = fetch_reported_observations(instance, KEY)
    assert failure["No partition"].value == explain("2024-12-30")
    assert "No partition" not in other
    observations = instance.fetch_observations(KEY, limit=9, ascending=True).records
    absence, *failures = observations
    assert [record.partition_key for record in failures] == [None, "2025-02-03"]
    assert absence.asset_observation
    assert f"belongs to no partition. {explain('2024-12-31')}" in str(
        absence.asset_observation.description
    )


def test_a_success_without_a_partition_is_reported_once_and_is_one_materialization(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    run_id = add_run(airflow_v2, run_type="manual", **as_airflow_3("2025-02-03T13:37:01"))
    for _ in range(2):  # once more after the cursor was lost
        build_daemon(airflow_v2, instance, **{DAG: DAILY}).tick()
    assert read_partitions(instance) == [(None, run_id)]
    (record,) = instance.fetch_observations(KEY, limit=9).records
    assert record.asset_observation
    assert "started by hand" in str(record.asset_observation.description)


@pytest.mark.parametrize(
    ("moment", "partition"),
    [("2025-02-03", "2025-02-03"), ("2024-12-31", None), ("2025-02-03T13:37:01", None)],
)
def test_a_slow_run_is_signaled_with_its_partition_or_why_it_has_none(
    airflow_v2: Airflow, instance: dg.DagsterInstance, moment: str, partition: str | None
) -> None:
    airflow_v2.database.add_dag(DAG)
    run = airflow_v2.database.start_run(DAG, **as_airflow_3(moment))
    run.start_date = airflow_v2.database.now() - timedelta(hours=2)
    daemon = build_daemon(airflow_v2, instance, **{DAG: DAILY})
    daemon.dags = {DAG: DagDeclaration(max_duration=60.0)}
    daemon.restart()
    daemon.tick()
    (record,) = instance.fetch_observations(KEY, limit=9).records
    assert record.partition_key == partition
    (signal,) = fetch_signals(instance, KEY)
    assert ("No partition" in signal) == (partition is None)


def test_a_run_that_was_reported_without_a_reason_is_not_reported_again(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """As by versions that gave none."""
    run_id = add_run(airflow_v2, **as_airflow_3("2024-12-31"))
    without = build_daemon(airflow_v2, instance, **{DAG: DAILY})
    without.partitionings = {}
    without.restart()
    assert without.tick() == [run_id]
    daemon = build_daemon(airflow_v2, instance, **{DAG: DAILY})
    assert daemon.tick() == []
    assert len(fetch_reported_runs(instance, KEY)) == 1
    assert fetch_reported_observations(instance, KEY) == []


@pytest.mark.parametrize(
    ("cron", "moment", "partition"),
    [
        ("0 0 * * *", "9999-12-30T23:59:59.999999", "9999-12-30"),
        ("0 0 * * *", "9999-12-31T00:00:00", None),
        ("0 0 * * 1", "9999-12-31T00:00:00", None),
        ("@hourly", "9999-12-31T23:59:59.999999", None),
        ("@monthly", "9999-12-01T00:00:00", None),
        ("0 0 * * *", "0001-01-01T00:00:00", None),
        ("@hourly", "1969-12-31T23:59:59.999999", None),
        ("0 0 * * *", "9000-02-03T23:59:59.999999", "9000-02-03"),
    ],
)
@pytest.mark.parametrize("state", ["success", "failed"])
def test_a_run_of_any_date_is_reported_and_breaks_nothing(
    airflow_v2: Airflow,
    instance: dg.DagsterInstance,
    cron: str,
    moment: str,
    partition: str | None,
    state: str,
) -> None:
    run_id = add_run(airflow_v2, state, **as_airflow_3(moment))
    today = add_run(airflow_v2, **as_airflow_3("2025-02-03"))
    partitions = {**DAILY, "cron": cron, "timezone": "UTC"}
    daemon = build_daemon(airflow_v2, instance, **{DAG: partitions})
    assert set(daemon.tick()) == {today, *([run_id] if state == "success" else [])}
    assert daemon.tick() == []
    fetch = instance.fetch_materializations if state == "success" else instance.fetch_observations
    seen = {record.partition_key for record in fetch(KEY, limit=9).records}
    assert partition in seen
    # As Dagster does to show the asset.
    materialized = instance.get_materialized_partitions(KEY)
    definition = daemon.partitionings[DAG].definition
    assert definition.filter_valid_partition_keys(materialized) <= materialized


def test_a_run_of_today_is_of_todays_unfinished_partition(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    now = airflow_v2.database.now()
    run_id = add_run(airflow_v2, logical_date=now)
    assert build_daemon(airflow_v2, instance, **{DAG: DAILY}).tick() == [run_id]
    assert read_partitions(instance) == [(f"{datetime.date(now)}", run_id)]


def test_a_partition_that_is_run_again_is_reported_again(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    run_id = add_run(airflow_v2, **TWO)
    daemon = build_daemon(airflow_v2, instance, **{DAG: DAILY})
    assert daemon.tick() == [run_id]
    (run,) = airflow_v2.database.runs
    airflow_v2.database.clear(run)
    airflow_v2.database.finish_run(run)
    assert daemon.tick() == [run_id]
    assert read_partitions(instance) == [("2025-02-03", run_id)] * 2


def test_the_dags_of_an_instance_each_have_their_own_partitions(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    daily = add_run(airflow_v2, **as_airflow_3("2025-02-03T13:00"))
    airflow_v2.database.add_dag("hourly")
    run = airflow_v2.database.start_run("hourly", **as_airflow_3("2025-02-03T13:00"))
    airflow_v2.database.finish_run(run)
    daemon = build_daemon(airflow_v2, instance, **{DAG: DAILY, "hourly": HOURLY})
    assert sorted(daemon.tick()) == sorted([daily, run.run_id])
    assert instance.get_materialized_partitions(KEY) == {"2025-02-03"}
    hourly = dg.AssetKey([*KEY.path[:-1], "hourly"])
    assert instance.get_materialized_partitions(hourly) == {"2025-02-03-13:00"}
