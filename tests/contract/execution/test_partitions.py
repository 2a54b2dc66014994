"""A partition as a DAG run: by its dates, or by its key."""

from __future__ import annotations

import re
from typing import Any

import dagster as dg
import pytest

from federation_defs.naming import build_run_id
from tests.contract.conftest import Airflow
from tests.contract.execution.executing import DagsterJob, materialize
from tests.contract.execution.partitioned import (
    BERLIN,
    DAG,
    DAILY,
    HOURLY,
    KEY,
    at,
    build_daemon,
    declare,
    of,
    read_partitions,
)
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.faults import hang_up_after_acting

TRIGGER = f"/dags/{DAG}/dagRuns"
DAY = ("2025-02-03", "2025-02-04")
# Spring forward: a day of 23 hours, from 23:00 UTC of the day before.
SHORT_DAY = ("2025-03-29T23:00", "2025-03-30T22:00")


@pytest.mark.parametrize(
    ("partitions", "partition", "logical_date", "interval"),
    [
        ({"date": "data_interval_start"}, "2025-02-03", DAY[0], DAY),
        ({"date": "data_interval_end"}, "2025-02-03", DAY[1], DAY),
        ({"date": "logical_date"}, "2025-02-03", DAY[0], None),
        (BERLIN, "2025-03-30", SHORT_DAY[0], SHORT_DAY),
        ({**BERLIN, "date": "data_interval_end"}, "2025-03-30", SHORT_DAY[1], SHORT_DAY),
        (HOURLY, "2025-02-03-13:00", "2025-02-03T13:00", ("2025-02-03T13:00", "2025-02-03T14:00")),
    ],
)
def test_a_partition_reaches_airflow_as_its_dates(
    airflow: Airflow,
    instance: dg.DagsterInstance,
    partitions: dict[str, str],
    partition: str,
    logical_date: str,
    interval: tuple[str, str] | None,
) -> None:
    airflow.database.add_dag(DAG, polls=0)
    declared = declare({**DAILY, **partitions})
    executed = materialize(airflow.client, {DAG: declared}, instance, tags=of(partition))
    assert executed.materialized == [DAG]
    (run,) = airflow.database.runs
    assert run.logical_date == at(logical_date)
    assert run.data_interval == (interval and (at(interval[0]), at(interval[1])))
    assert run.partition_key is None
    assert run.run_id == build_run_id(executed.run_id, partition)
    assert read_partitions(instance) == [(partition, run.run_id)]
    assert instance.get_materialized_partitions(KEY) == {partition}
    daemon = build_daemon(airflow, instance, **{DAG: {**DAILY, **partitions}})
    assert daemon.tick() == []


@pytest.mark.parametrize("key_format", ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])
def test_a_partition_reaches_a_partitioned_dag_as_its_key(
    airflow_v2: Airflow, instance: dg.DagsterInstance, key_format: str
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0, key_format=key_format)
    partition = at("2025-02-03").strftime(key_format)
    partitions = {**DAILY, "key_format": key_format}
    executed = materialize(
        airflow_v2.client, {DAG: declare(partitions)}, instance, tags=of(partition)
    )
    assert executed.materialized == [DAG]
    (run,) = airflow_v2.database.runs
    assert (run.partition_key, run.logical_date, run.data_interval) == (partition, None, None)
    assert read_partitions(instance) == [(partition, run.run_id)]
    assert build_daemon(airflow_v2, instance, **{DAG: partitions}).tick() == []


@pytest.mark.parametrize("tags", [{}, {"dagster/from_automation_condition": "true"}])
def test_a_key_that_ran_runs_again_whoever_asks_for_it(
    airflow_v2: Airflow, instance: dg.DagsterInstance, tags: dict[str, str]
) -> None:
    """Airflow takes a key more than once, so that no update that leads to it is passed over."""
    airflow_v2.database.add_dag(DAG, polls=0, key_format="%Y-%m-%d")
    by_itself = airflow_v2.database.start_run(DAG, "by itself", partition_key="2025-02-03")
    airflow_v2.database.finish_run(by_itself)
    dags = {DAG: declare()}
    for _ in range(2):
        executed = materialize(airflow_v2.client, dags, instance, tags=of("2025-02-03") | tags)
        assert executed.materialized == [DAG]
    run_ids = [run.run_id for run in airflow_v2.database.runs if run is not by_itself]
    assert len(set(run_ids)) == 2
    assert read_partitions(instance) == [("2025-02-03", run_id) for run_id in run_ids]


@pytest.mark.parametrize(
    "key_format", ["%d/%m/%Y", "%Y %m %d", "%Y年%m月%d日", "%d~%m~%Y", "%y%%%m%d"]
)
def test_a_key_of_odd_letters_makes_a_run_id_that_airflow_takes(
    airflow: Airflow, instance: dg.DagsterInstance, key_format: str
) -> None:
    airflow.database.add_dag(DAG, polls=0)
    partition = at("2025-02-03").strftime(key_format)
    declared = declare({**DAILY, "key_format": key_format})
    executed = materialize(airflow.client, {DAG: declared}, instance, tags=of(partition))
    assert executed.materialized == [DAG]
    (run,) = airflow.database.runs
    assert re.fullmatch(r"[A-Za-z0-9_.~:+-]+", run.run_id)
    assert read_partitions(instance) == [(partition, run.run_id)]


def test_dags_of_different_partitions_and_of_none_are_run_by_one_asset(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    dags: dict[str, Any] = {"daily": declare(), "hourly": declare(HOURLY)}
    dags["none"] = {"trigger": {"logical_date": "none"}}
    for dag_id in dags:
        airflow_v2.database.add_dag(dag_id, polls=0)
    for selection, tags in (
        (["daily", "none"], of("2025-02-03")),
        (["hourly"], of("2025-02-03-13:00")),
        (["none"], {}),
    ):
        executed = materialize(airflow_v2.client, dags, instance, selection, tags=tags)
        assert sorted(executed.materialized) == selection
    dates = {(run.dag_id, run.logical_date) for run in airflow_v2.database.runs}
    assert dates == {
        ("daily", at("2025-02-03")),
        ("hourly", at("2025-02-03T13:00")),
        ("none", None),
    }
    assert len(airflow_v2.database.runs) == 4


def test_a_re_execution_adopts_the_run_of_its_partition(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG)
    job = DagsterJob(airflow_v2.client, [DAG], instance, declare(timeout="1s"))
    first = job.execute(tags=of("2025-02-03"))
    assert "still has run" in (first.failure or "")
    (run,) = airflow_v2.database.runs
    airflow_v2.database.finish_after(run, polls=1)
    second = job.execute(first, of("2025-02-03"))
    assert second.materialized == [DAG]
    assert read_partitions(instance) == [("2025-02-03", run.run_id)]
    assert airflow_v2.server.count("POST", TRIGGER) == 1


def test_a_trigger_of_a_partition_whose_answer_is_lost_starts_one_run(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG, polls=1)
    airflow.server.fail_next(asks("POST", TRIGGER), hang_up_after_acting)
    executed = materialize(airflow.client, {DAG: declare()}, instance, tags=of("2025-02-03"))
    assert executed.materialized == [DAG]
    assert len(airflow.database.runs) == 1


def test_airflow_2_is_not_asked_for_partition_keys(
    start_airflow: Any, instance: dg.DagsterInstance
) -> None:
    """It has no partitioned DAGs: what is declared is a partition by its dates."""
    airflow = start_airflow("v1")
    airflow.database.add_dag(DAG, polls=0, key_format="%Y-%m-%d")
    executed = materialize(airflow.client, {DAG: declare()}, instance, tags=of("2025-02-03"))
    assert executed.materialized == [DAG]
