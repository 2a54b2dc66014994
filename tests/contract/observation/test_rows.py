"""Rows that can't be taken in. Each is reported as that, and none keeps another from its report."""

# No `from __future__ import annotations` here: Dagster refuses a context annotated with text.

import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from typing import Any

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation_defs.airflow.client import AirflowClient
from federation_defs.dagster_io.heartbeat import HeartbeatMonitor
from federation_defs.declaration import PartitionsDeclaration, SuccessDeclaration
from federation_defs.naming import build_run_id
from federation_defs.observation.reporter import Reporter
from federation_defs.observation.tick import Tick
from federation_defs.outcome import Outcome
from federation_defs.partitions import Partitioning
from federation_defs.timing import Timing
from tests.contract.conftest import Airflow
from tests.contract.fakes.airflow import FakeAirflow, asks
from tests.contract.fakes.faults import Stall, answer, edit
from tests.contract.observation.daemon import (
    DAG,
    KEY,
    Daemon,
    FakeClock,
    Observed,
    fetch_evaluations,
    fetch_reported_observations,
    fetch_reported_runs,
)
from tests.contract.observation.test_ownership import run_owner
from tests.contract.worlds import connect_to
from tests.unit.build import build_run
from tests.waiting import wait_for

LOG = logging.getLogger(__name__)
DATES = (
    "logical_date",
    "data_interval_start",
    "data_interval_end",
    "queued_at",
    "start_date",
    "end_date",
)
OTHER_RUN = build_run(DAG, "other", end_date=datetime(2026, 1, 1, tzinfo=timezone.utc))
ANY_TEXT = st.text(st.characters(codec=None), max_size=20)
DAGSTERS_KEYS = st.sampled_from(["__class__", "__enum__", "__set__", "__mapping_items__"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT | DAGSTERS_KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)
ANY_DATE = st.datetimes(timezones=st.just(timezone.utc)) | st.none()


@pytest.mark.parametrize("key", ["__class__", "__enum__", "__set__", "__mapping_items__"])
@pytest.mark.parametrize("state", ["success", "failed"])
def test_a_conf_with_a_key_of_dagsters_own_is_reported(
    observed: Observed, key: str, state: str
) -> None:
    observed.add_run("odd", state).conf = {"deep": [{key: "DagsterRun"}]}
    observed.add_run("other", ended_s_ago=0.5)
    assert observed.daemon.tick() == (["odd"] if state == "success" else []) + ["other"]
    assert observed.daemon.tick() == []
    evaluations = fetch_evaluations(observed.daemon.instance, KEY)
    assert [evaluation.metadata["Run ID"].value for evaluation in evaluations] == ["odd", "other"]


@pytest.fixture(scope="module")
def client() -> Iterator[AirflowClient]:
    with FakeAirflow("v2") as server:
        yield connect_to(server)


@settings(max_examples=int(os.environ.get("HISTORIES", "20")))
@given(
    conf=st.dictionaries(ANY_TEXT | DAGSTERS_KEYS, JSON, max_size=4),
    text=ANY_TEXT,
    dates=st.lists(ANY_DATE, min_size=len(DATES), max_size=len(DATES)),
    state=st.sampled_from(["success", "failed"]),
    cron=st.sampled_from([None, "0 0 * * *", "0 * * * *"]),
)
def test_any_run_is_reported_once(
    client: AirflowClient,
    conf: Mapping[str, Any],
    text: str,
    dates: list[datetime | None],
    state: str,
    cron: str | None,
) -> None:
    texts = {"note": text, "run_type": text, "partition_key": text or None}
    values = {**texts, **dict(zip(DATES, dates, strict=True))}
    run = build_run(DAG, f"run {text}", state, conf=conf, **values)
    declared = cron and PartitionsDeclaration(cron=cron, start=date(2024, 1, 1))
    partitionings = {DAG: Partitioning(declared)} if declared else {}
    reporter = Reporter(client, partitionings, HeartbeatMonitor("metrics", Timing(), 5), Timing())
    outcomes = [Outcome(run, run.is_success, details=text), Outcome(OTHER_RUN, is_success=True)]
    with dg.DagsterInstance.ephemeral() as instance:
        tick = Tick(instance, "metrics", Timing(), lambda: LOG)
        for news in ([run, OTHER_RUN], []):
            assert reporter.report(tick, outcomes, math.inf) == ([run, OTHER_RUN], news)
        reports = [*fetch_reported_runs(instance, KEY), *fetch_reported_observations(instance, KEY)]
    results = sorted([outcome.result for outcome in outcomes])
    assert sorted(str(report["Outcome"].value) for report in reports) == results


@pytest.mark.parametrize("date_name", ["logical_date", "data_interval_end"])
def test_a_run_in_the_year_9999_of_a_partitioned_dag_delays_no_other(
    observed: Observed, date_name: str
) -> None:
    declared = {"cron": "0 0 * * *", "start": "2024-01-01", "date": date_name}
    partitioning = Partitioning(PartitionsDeclaration.model_validate(declared))
    observed.daemon.partitionings = {DAG: partitioning}
    observed.daemon.restart()
    last = datetime(9999, 12, 31, tzinfo=timezone.utc)
    run = observed.add_run("far")
    run.logical_date, run.data_interval = last, (last, last)
    observed.add_run("near", ended_s_ago=0.5)
    assert observed.daemon.tick() == ["far", "near"]
    assert observed.daemon.tick() == []


@pytest.mark.parametrize("status", [400, 403, 404, 409, 500])
def test_a_deferred_run_that_can_not_be_read_delays_no_other(
    airflow_v2: Airflow, instance: dg.DagsterInstance, status: int
) -> None:
    clock = FakeClock()
    airflow_v2.database.add_dag(DAG)
    daemon = Daemon(airflow_v2.client, [DAG], instance, timing=clock.timing)

    def die(context: dg.OpExecutionContext) -> None:
        for name in ("bad", "good"):
            run = airflow_v2.database.start_run(DAG, f"{build_run_id(context.run_id)}__{name}")
            airflow_v2.database.finish_run(run)
        assert daemon.tick() == []
        leave_the_overlap(airflow_v2)
        assert daemon.tick() == []
        raise RuntimeError("killed before it could report")

    run_id = build_run_id(run_owner(instance, die).run_id)
    refusal = answer(status, {"detail": "no"})
    airflow_v2.server.fail_next(asks("GET", ".*__bad"), refusal, times=99)
    airflow_v2.database.finish_run(airflow_v2.database.start_run(DAG, "news"))
    assert sorted(daemon.tick()) == [f"{run_id}__good", "news"]
    clock.advance(3600)
    assert daemon.tick() == []
    problems = fetch_problems(instance)
    assert [run for run, _ in problems] == ([] if status == 404 else [f"{run_id}__bad"])
    requests = airflow_v2.server.count("GET", ".*__bad")
    assert daemon.tick() == []
    assert airflow_v2.server.count("GET", ".*__bad") == requests


def leave_the_overlap(airflow: Airflow) -> None:
    for run in airflow.database.runs:
        run.updated_at -= timedelta(minutes=10)


@pytest.mark.parametrize("state", [None, 5, ["success"]])
def test_a_run_that_has_no_state_is_reported_as_unreadable_once(
    observed: Observed, state: object
) -> None:
    observed.add_run("odd")
    observed.add_run("other", ended_s_ago=0.5)

    def spoil(content: dict[str, Any]) -> None:
        for run in content["dag_runs"]:
            run["state"] = state if run["dag_run_id"] == "odd" else run["state"]

    observed.server.fail_next(asks("GET", "/dags/~/dagRuns"), edit(spoil), times=9)
    assert [observed.daemon.tick() for _ in range(3)] == [["other"], [], []]
    ((run_id, reason),) = fetch_problems(observed.daemon.instance)
    assert run_id == "odd"
    assert "state" in reason or "another kind" in reason
    observed.server.forget_faults()
    assert observed.daemon.tick() == ["odd"]


@pytest.mark.parametrize("run_id", [None, 5, ""])
def test_a_run_that_has_no_id_is_reported_as_unreadable_once(
    observed: Observed, run_id: object
) -> None:
    observed.add_run("odd")
    observed.add_run("other", ended_s_ago=0.5)

    def spoil(content: dict[str, Any]) -> None:
        for run in content["dag_runs"]:
            run["dag_run_id"] = run_id if run["dag_run_id"] == "odd" else run["dag_run_id"]

    observed.server.fail_next(asks("GET", "/dags/~/dagRuns"), edit(spoil), times=9)
    assert [observed.daemon.tick() for _ in range(3)] == [["other"], [], []]
    observed.daemon.cursor = None
    assert observed.daemon.tick() == []
    ((name, reason),) = fetch_problems(observed.daemon.instance)
    assert name == "(a run without an id)"
    assert "dag_run_id" in reason


def fetch_problems(instance: dg.DagsterInstance) -> list[tuple[str, str]]:
    """Return run id and reason of the runs that can't be reported."""
    records = instance.fetch_observations(KEY, limit=100).records
    events = [record.asset_observation for record in records if record.asset_observation]
    found = [event.metadata for event in events if "Problem" in event.metadata]
    return [(str(each["Run ID"].value), str(each["Problem"].value)) for each in found]


def test_hundreds_of_deferred_runs_take_a_bounded_number_of_requests_per_tick(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG)
    daemon = Daemon(airflow_v2.client, [DAG], instance, timing=FakeClock().timing)

    def die(context: dg.OpExecutionContext) -> None:
        for number in range(120):
            run_id = f"{build_run_id(context.run_id)}__{number}"
            airflow_v2.database.finish_run(airflow_v2.database.start_run(DAG, run_id))
        daemon.tick()
        leave_the_overlap(airflow_v2)
        before = airflow_v2.server.count("GET", ".*/dagRuns/.*")
        assert daemon.tick() == []
        assert airflow_v2.server.count("GET", ".*/dagRuns/.*") == before  # its owner lives
        raise RuntimeError("killed before it could report")

    run_owner(instance, die)
    assert [len(daemon.tick()) for _ in range(4)] == [50, 50, 20, 0]


AWAY = answer(503, {"detail": "starting"})


@pytest.mark.parametrize("path", [".*__held", ".*/taskInstances"])
def test_an_outage_between_two_errors_about_a_run_is_no_reason_to_give_it_up(
    airflow_v2: Airflow, instance: dg.DagsterInstance, path: str
) -> None:
    clock = FakeClock()
    airflow_v2.database.add_dag(DAG, tasks=("load",))
    daemon = Daemon(airflow_v2.client, [DAG], instance, timing=clock.timing)
    daemon.rules[DAG] = SuccessDeclaration(tasks=["load"])
    daemon.restart()

    def die(context: dg.OpExecutionContext) -> None:
        run_id = f"{build_run_id(context.run_id)}__held"
        airflow_v2.database.finish_run(airflow_v2.database.start_run(DAG, run_id))
        daemon.tick()
        leave_the_overlap(airflow_v2)
        daemon.tick()
        raise RuntimeError("killed before it could report")

    def fail_for(path: str, minutes: int) -> None:
        airflow_v2.server.fail_next(asks("GET", path), AWAY, times=9999)
        for _ in range(minutes):
            clock.advance(60)
            daemon.tick()
        airflow_v2.server.forget_faults()

    run_id = build_run_id(run_owner(instance, die).run_id)
    fail_for(path, 1)
    fail_for(".*", 20)
    fail_for(path, 1)
    clock.advance(60)
    daemon.tick()
    reports = fetch_reported_runs(instance, KEY)
    assert [report["Run ID"].value for report in reports] == [f"{run_id}__held"]
    assert fetch_problems(instance) == []


def test_a_deferred_run_whose_answer_does_not_come_delays_no_failed_run(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG)
    daemon = Daemon(airflow_v2.client, [DAG], instance, timing=Timing(tick_s=3))

    def die(context: dg.OpExecutionContext) -> None:
        run_id = f"{build_run_id(context.run_id)}__held"
        airflow_v2.database.finish_run(airflow_v2.database.start_run(DAG, run_id))
        daemon.tick()
        leave_the_overlap(airflow_v2)
        raise RuntimeError("killed before it could report")

    run_owner(instance, die)
    with Stall() as stall:
        airflow_v2.server.fail_next(asks("GET", ".*__held"), stall, times=99)
        airflow_v2.database.finish_run(airflow_v2.database.start_run(DAG, "failed"), "failed")

        def tick() -> bool:
            daemon.tick()
            return bool(fetch_reported_observations(instance, KEY))

        wait_for(tick, "the failed run is reported")


def test_slow_queries_of_the_event_log_do_not_stop_observation(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """50 DAGs end at midnight, and two queries of each take longer than `owner_check_s`."""
    dag_ids = [f"dag_{number}" for number in range(50)]
    for dag_id in dag_ids:
        airflow_v2.database.add_dag(dag_id)
    clock = FakeClock()
    timing = replace(clock.timing, owner_check_s=0.2, report_s=60)
    daemon = Daemon(airflow_v2.client, dag_ids, instance, timing=timing)
    daemon.tick()
    fetch = instance.fetch_materializations

    def fetch_slowly(*args: Any, **kwargs: Any) -> Any:
        clock.advance(0.02)
        return fetch(*args, **kwargs)

    vars(instance)["fetch_materializations"] = fetch_slowly
    for dag_id in dag_ids:
        airflow_v2.database.finish_run(airflow_v2.database.start_run(dag_id, "midnight"))
    assert len(daemon.tick()) == 50


def test_a_row_that_can_not_be_read_is_reported_once_though_the_cursor_is_lost(
    observed: Observed,
) -> None:
    observed.add_run("odd")

    def spoil(content: dict[str, Any]) -> None:
        for run in content["dag_runs"]:
            run["state"] = None

    observed.server.fail_next(asks("GET", "/dags/~/dagRuns"), edit(spoil), times=9)
    for _ in range(3):
        observed.daemon.tick(crashes=True)
        observed.daemon.cursor = None
    assert len(fetch_problems(observed.daemon.instance)) == 1
