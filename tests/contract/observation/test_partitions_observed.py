"""The partitions of runs that observation reports."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import dagster as dg
import pytest

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

START, END, LOGICAL = (
    {"date": name} for name in ("data_interval_start", "data_interval_end", "logical_date")
)


def add_run(airflow: Airflow, **columns: Any) -> str:
    """Add a finished run and return its id."""
    airflow.database.add_dag(DAG)
    run = airflow.database.start_run(DAG, run_type="scheduled", **columns)
    return airflow.database.finish_run(run).run_id


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
        # By hand, at any time of the day.
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
