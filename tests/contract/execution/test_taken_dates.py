"""A partition whose logical date has run already, by a schedule or by hand."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import dagster as dg
import pytest

from tests.contract.conftest import Airflow
from tests.contract.execution.executing import DagsterJob, ExecutedRun, materialize
from tests.contract.execution.interrupting import (
    after_acting,
    before_acting,
    cancel,
    instead_of_acting,
    interrupt,
)
from tests.contract.execution.partitioned import (
    DAG,
    DAILY,
    at,
    build_daemon,
    declare,
    of,
    of_range,
    read_partitions,
)
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.database import RunRow
from tests.contract.fakes.faults import Fault, answer, hang_up, hang_up_after_acting

DAY, RUN_ID = "2025-02-03", "scheduled__2025-02-03T00:00:00+00:00"
RUN = f"/dags/{DAG}/dagRuns/[^/]+"
CLEAR = f"{RUN}/clear"
PERSON = of(DAY)
RETRY = {"dagster/retry_number": "1"}


def add_run(airflow: Airflow, state: str = "success", polls: float | None = 0) -> RunRow:
    """The schedule's own run of that day; `polls` is of runs that begin from now on."""
    dag = airflow.database.add_dag(DAG)
    interval = (at(DAY), at("2025-02-04"))
    columns: dict[str, Any] = {"run_type": "scheduled", "data_interval": interval}
    run = airflow.database.start_run(DAG, RUN_ID, logical_date=at(DAY), **columns)
    dag.polls = polls
    return run if state == "running" else airflow.database.finish_run(run, state)


def read_tries(run: RunRow) -> list[int]:
    return [task.try_number for task in run.tasks]


def run_day(airflow: Airflow, instance: dg.DagsterInstance, tags: dict[str, str]) -> ExecutedRun:
    return materialize(airflow.client, {DAG: declare()}, instance, tags=tags)


@pytest.mark.parametrize("tags", [PERSON, {**PERSON, "dagster/backfill": "abc"}])
@pytest.mark.parametrize("state", ["success", "failed"])
def test_a_taken_date_is_run_again_for_a_person_or_a_backfill(
    airflow: Airflow, instance: dg.DagsterInstance, state: str, tags: dict[str, str]
) -> None:
    run = add_run(airflow, state)
    executed = run_day(airflow, instance, tags)
    assert executed.materialized == [DAG]
    assert airflow.database.runs == [run]
    assert read_tries(run) == [2, 2]
    assert read_partitions(instance) == [(DAY, RUN_ID)]


def test_a_taken_date_is_run_again_though_observation_has_reported_it(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    run = add_run(airflow_v2)
    daemon = build_daemon(airflow_v2, instance, **{DAG: DAILY})
    assert daemon.tick() == [RUN_ID]
    run_day(airflow_v2, instance, PERSON)
    assert read_tries(run) == [2, 2]
    assert daemon.tick() == []
    assert read_partitions(instance) == [(DAY, RUN_ID), (DAY, RUN_ID)]


def test_an_active_run_is_adopted_for_a_person(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    run = add_run(airflow_v2, "running")
    airflow_v2.database.finish_after(run, polls=1)
    executed = run_day(airflow_v2, instance, PERSON)
    assert executed.materialized == [DAG]
    assert read_tries(run) == [1, 1]
    assert read_partitions(instance) == [(DAY, RUN_ID)]


def test_an_adopted_run_is_not_stopped_with_the_dagster_run(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """It is somebody else's."""
    run = add_run(airflow_v2, "running")
    canceled = before_acting(partial(cancel, instance))
    airflow_v2.server.fail_next(asks("GET", RUN), canceled)
    executed = run_day(airflow_v2, instance, PERSON)
    assert executed.status is dg.DagsterRunStatus.CANCELED
    assert run.state == "running"
    assert airflow_v2.server.count("PATCH", ".*") == 0


def test_an_adopted_run_is_not_stopped_at_the_time_out(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    run = add_run(airflow_v2, "running")
    dags = {DAG: declare(timeout="1s", on_timeout="cancel")}
    executed = materialize(airflow_v2.client, dags, instance, tags=PERSON)
    assert "The run stays active" in (executed.failure or "")
    assert run.state == "running"


def test_a_cleared_run_is_stopped_with_the_dagster_run(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """It had been over: what goes on is of our making."""
    run = add_run(airflow_v2, polls=math.inf)
    query = asks("GET", RUN)
    airflow_v2.server.fail_next(query, before_acting(lambda: None), times=2)  # ours? and cleared?
    airflow_v2.server.fail_next(query, before_acting(partial(cancel, instance)))
    executed = run_day(airflow_v2, instance, PERSON)
    assert executed.status is dg.DagsterRunStatus.CANCELED
    assert run.state == "failed"


def test_a_cleared_run_is_stopped_though_the_answer_is_lost(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    run = add_run(airflow_v2, polls=math.inf)
    canceled = after_acting(partial(cancel, instance))
    airflow_v2.server.fail_next(asks("POST", CLEAR), canceled)
    executed = run_day(airflow_v2, instance, PERSON)
    assert executed.status is dg.DagsterRunStatus.CANCELED
    assert run.state == "failed"


@pytest.mark.parametrize("fault", [hang_up, hang_up_after_acting], ids=["not done", "done"])
@pytest.mark.parametrize("polls", [0, 1], ids=["over by then", "going on"])
def test_a_taken_date_is_cleared_once_though_the_answer_is_lost(
    airflow: Airflow, instance: dg.DagsterInstance, fault: Fault, polls: int
) -> None:
    run = add_run(airflow, polls=polls)
    airflow.server.fail_next(asks("POST", CLEAR), fault)
    executed = run_day(airflow, instance, PERSON)
    assert executed.materialized == [DAG]
    assert read_tries(run) == [2, 2]


@pytest.mark.parametrize("more", [RETRY, {}], ids=["by dagster", "by a person"])
@pytest.mark.parametrize("acts", [True, False], ids=["done", "not done"])
def test_a_taken_date_is_cleared_once_though_the_worker_dies_and_the_run_is_re_executed(
    airflow_v2: Airflow, instance: dg.DagsterInstance, acts: bool, more: dict[str, str]
) -> None:
    run = add_run(airflow_v2, polls=0)

    def die() -> None:
        if acts:
            airflow_v2.database.finish_run(run)  # it is over by the next attempt
        interrupt()

    fault = after_acting(die) if acts else instead_of_acting(die)
    airflow_v2.server.fail_next(asks("POST", CLEAR), fault)
    job = DagsterJob(airflow_v2.client, [DAG], instance, declare())
    first = job.execute(tags=PERSON)
    assert not first.success
    assert read_tries(run) == ([2, 2] if acts else [1, 1])
    second = job.execute(first, {**PERSON, **more})
    assert second.materialized == [DAG]
    assert read_tries(run) == [2, 2]
    assert read_partitions(instance) == [(DAY, RUN_ID)]


def test_a_cleared_run_that_fails_again_is_cleared_again_only_by_a_person(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    run = add_run(airflow_v2, polls=0)
    dag = airflow_v2.database.dags[DAG]
    dag.outcome = "failed"
    job = DagsterJob(airflow_v2.client, [DAG], instance, declare())
    first = job.execute(tags=PERSON)
    assert (first.success, read_tries(run)) == (False, [2, 2])
    second = job.execute(first, {**PERSON, **RETRY})
    assert (second.success, read_tries(run)) == (False, [2, 2])
    dag.outcome = "success"
    third = job.execute(second, PERSON)
    assert third.materialized == [DAG]
    assert read_tries(run) == [2, 3]  # what had failed


def test_only_the_taken_partition_of_a_range_is_run_again(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    run = add_run(airflow_v2, polls=0)
    tags = of_range("2025-02-02", "2025-02-04")
    executed = materialize(airflow_v2.client, {DAG: declare()}, instance, tags=tags)
    assert executed.success
    assert read_tries(run) == [2, 2]
    dates = {run.logical_date for run in airflow_v2.database.runs}
    assert dates == {at("2025-02-02"), at("2025-02-03"), at("2025-02-04")}
    assert (DAY, RUN_ID) in read_partitions(instance)


def test_a_taken_date_whose_run_can_not_be_found_is_an_error(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """It was deleted since, or this account may not read it."""
    airflow_v2.database.add_dag(DAG)
    taken = answer(409, {"detail": {"reason": "Unique constraint violation"}})
    airflow_v2.server.fail_next(asks("POST", f"/dags/{DAG}/dagRuns"), taken)
    executed = run_day(airflow_v2, instance, PERSON)
    assert "another run has its logical date (409: Unique constraint violation)" in (
        executed.failure or ""
    )
    assert airflow_v2.server.count("POST", f"/dags/{DAG}/dagRuns") == 1


@pytest.mark.parametrize(
    ("date", "interval", "seen"),
    [
        # Its schedule's date is the start of an interval, and the declared one is the end.
        ("data_interval_end", ("2025-02-04", "2025-02-05"), "partition 2025-02-04"),
        # A person started it: its interval is the one before.
        ("data_interval_start", ("2025-02-02", "2025-02-03"), "partition 2025-02-02"),
        ("data_interval_start", ("2024-02-02", "2024-02-03"), "none of its partitions"),
    ],
)
def test_a_taken_date_whose_run_is_of_another_partition_is_an_error_and_is_not_run_again(
    airflow: Airflow,
    instance: dg.DagsterInstance,
    date: str,
    interval: tuple[str, str],
    seen: str,
) -> None:
    airflow.database.add_dag(DAG, polls=0)
    first, last = map(at, interval)
    taken = at("2025-02-04") if date == "data_interval_end" else at(DAY)
    run = airflow.database.start_run(
        DAG, RUN_ID, logical_date=taken, run_type="scheduled", data_interval=(first, last)
    )
    airflow.database.finish_run(run)
    dags = {DAG: declare({**DAILY, "date": date})}
    executed = materialize(airflow.client, dags, instance, tags=PERSON)
    assert f"run '{RUN_ID}' has its logical date, and belongs to {seen}" in (executed.failure or "")
    assert read_tries(run) == [1, 1]
    assert airflow.database.runs == [run]
    assert read_partitions(instance) == []
