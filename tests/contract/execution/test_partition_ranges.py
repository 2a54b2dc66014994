"""Several partitions in one Dagster run, as a backfill's: a DAG run each."""

from __future__ import annotations

import dagster as dg
from werkzeug import Response

from federation_defs.naming import build_asset_key, build_run_id
from tests.contract.conftest import Airflow
from tests.contract.execution.executing import DagsterJob, materialize, meanwhile
from tests.contract.execution.interrupting import before_answering, interrupt
from tests.contract.execution.partitioned import (
    DAG,
    DAILY,
    KEY,
    at,
    build_daemon,
    declare,
    of_range,
    read_partitions,
)
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.database import Database
from tests.contract.fakes.faults import Act, Fault
from tests.contract.observation.daemon import (
    fetch_evaluations,
    fetch_reported_observations,
    fetch_reported_run_ids,
)
from tests.waiting import wait_for

POST = asks("POST", "/dags/[^/]+/dagRuns")
DAYS = [f"2025-02-{day:02}" for day in range(3, 8)]
RANGE = of_range(DAYS[0], DAYS[-1])


def have_failed(database: Database, day: str) -> Fault:
    """Has the run of this day fail as soon as it is there."""

    def fail(act: Act) -> Response:
        with database.lock:  # so that no poll ends it as a success
            response = act()
            for run in database.runs:
                if run.logical_date == at(day) and not run.is_finished:
                    database.finish_run(run, "failed")
        return response

    return fail


def test_each_partition_of_a_range_is_a_run_of_its_own_and_reported_once(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG, polls=1)
    executed = materialize(airflow.client, {DAG: declare()}, instance, tags=RANGE)
    assert executed.success
    expected = [(day, build_run_id(executed.run_id, day)) for day in DAYS]
    runs = [(run.logical_date, run.run_id) for run in airflow.database.runs]
    assert sorted(runs) == [(at(day), run_id) for day, run_id in expected]
    assert sorted(read_partitions(instance)) == expected
    assert instance.get_materialized_partitions(KEY) == set(DAYS)
    daemon = build_daemon(airflow, instance, **{DAG: DAILY})
    assert daemon.tick() == []
    assert sorted(read_partitions(instance)) == expected


def test_each_key_of_a_range_is_a_run_of_its_own(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0, key_format="%Y-%m-%d")
    executed = materialize(airflow_v2.client, {DAG: declare()}, instance, tags=RANGE)
    assert executed.success
    assert sorted(run.partition_key or "" for run in airflow_v2.database.runs) == DAYS
    assert sorted(partition or "" for partition, _ in read_partitions(instance)) == DAYS


def test_the_runs_of_a_range_are_asked_for_together(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=2)
    assert materialize(airflow_v2.client, {DAG: declare()}, instance, tags=RANGE).success
    # Each run is fetched by itself once it has ended, and one that was launched first before.
    assert airflow_v2.server.count("GET", "/dags/~/dagRuns") >= 1
    assert airflow_v2.server.count("GET", f"/dags/{DAG}/dagRuns/[^/]+") <= 7


def test_a_partition_that_fails_does_not_stop_the_others_and_is_all_that_is_run_again(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=1)
    airflow_v2.server.fail_next(POST, have_failed(airflow_v2.database, DAYS[2]), times=5)
    job = DagsterJob(airflow_v2.client, [DAG], instance, declare())
    first = job.execute(tags=RANGE)
    assert not first.success
    assert f"{build_run_id(first.run_id, DAYS[2])}" in (first.failure or "")
    assert instance.get_materialized_partitions(KEY) == {*DAYS} - {DAYS[2]}
    second = job.execute(first, RANGE)
    assert second.success
    partitions = [partition for partition, _ in read_partitions(instance)]
    assert sorted(partition or "" for partition in partitions) == DAYS
    tries = {run.logical_date: run.tasks[-1].try_number for run in airflow_v2.database.runs}
    assert tries == {at(day): 2 if day == DAYS[2] else 1 for day in DAYS}


def test_a_retry_adopts_all_partitions_of_a_range(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=1)
    job = DagsterJob(airflow_v2.client, [DAG], instance, declare())
    airflow_v2.server.fail_next(asks("GET", "/dags/~/dagRuns"), before_answering(interrupt))
    first = job.execute(tags=RANGE)
    assert not first.success
    second = job.execute(first, {**RANGE, "dagster/retry_number": "1"})
    assert second.success
    assert airflow_v2.server.count("POST", ".*") == 1 + 5  # and the sign-in
    assert instance.get_materialized_partitions(KEY) == set(DAYS)
    assert len(read_partitions(instance)) == 5


def test_each_partition_waits_for_its_own_upstream_only(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    dags = {DAG: declare(), "report": {**declare(), "depends_on": [f"metrics/{DAG}"]}}
    for dag_id in dags:
        airflow_v2.database.add_dag(dag_id, polls=0)
    airflow_v2.database.dags[DAG].polls = 1
    airflow_v2.server.fail_next(POST, have_failed(airflow_v2.database, DAYS[2]), times=5)
    executed = materialize(airflow_v2.client, dags, instance, tags=RANGE)
    assert not executed.success
    reported = read_partitions(instance, build_asset_key("metrics", "report"))
    assert sorted(partition or "" for partition, _ in reported) == sorted({*DAYS} - {DAYS[2]})
    skipped = f"report [{DAYS[2]}] is skipped: it needs a success of {DAG} [{DAYS[2]}]."
    assert skipped in executed.log
    for run in airflow_v2.database.runs:
        (upstream,) = [
            other
            for other in airflow_v2.database.runs
            if other.dag_id == DAG and other.logical_date == run.logical_date
        ]
        assert run.dag_id == DAG or (upstream.end_date or run.queued_at) <= run.queued_at


def test_a_dag_without_partitions_runs_once_after_all_of_its_upstreams(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    dags = {DAG: declare(), "report": {"depends_on": [f"metrics/{DAG}"]}}
    for dag_id in dags:
        airflow_v2.database.add_dag(dag_id, polls=0)
    executed = materialize(airflow_v2.client, dags, instance, tags=RANGE)
    assert executed.success
    assert [run.dag_id for run in airflow_v2.database.runs] == [DAG] * 5 + ["report"]


def test_a_range_keeps_to_the_limit(airflow_v2: Airflow, instance: dg.DagsterInstance) -> None:
    airflow_v2.database.add_dag(DAG, polls=None)
    most: list[int] = []

    def count(act: Act) -> Response:
        response = act()
        most.append(sum(not run.is_finished for run in airflow_v2.database.runs))
        return response

    def end_those_launched() -> None:
        runs = airflow_v2.database.runs
        for launched in (3, 5):
            wait_for(lambda: len(runs) >= launched, "launches", interval_s=0.05)  # noqa: B023
            for run in [run for run in runs if not run.is_finished]:
                airflow_v2.database.finish_run(run)

    airflow_v2.server.fail_next(POST, count, times=5)
    with meanwhile(end_those_launched):
        executed = materialize(
            airflow_v2.client, {DAG: declare()}, instance, tags=RANGE, max_active_runs=3
        )
    assert executed.success
    assert max(most) == 3


def test_the_end_of_each_partition_is_an_event_and_the_check_shows_the_failure(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """Dagster keeps one evaluation of a check per run and asset (1.13)."""
    airflow_v2.database.add_dag(DAG, polls=1)
    airflow_v2.server.fail_next(POST, have_failed(airflow_v2.database, DAYS[2]), times=5)
    executed = materialize(airflow_v2.client, {DAG: declare()}, instance, tags=RANGE)
    daemon = build_daemon(airflow_v2, instance, **{DAG: DAILY})
    assert (daemon.tick(), daemon.tick()) == ([], [])
    failed = build_run_id(executed.run_id, DAYS[2])
    (observed,) = fetch_reported_observations(instance, KEY)
    assert (observed["Run ID"].value, observed["Outcome"].value) == (failed, "failure")
    (evaluation,) = fetch_evaluations(instance, KEY)
    assert (evaluation.passed, evaluation.metadata["Run ID"].value) == (False, failed)
    assert len(fetch_reported_run_ids(instance, KEY)) == 4
