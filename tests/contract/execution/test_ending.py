"""The time-out of a wait, `trigger.timeout`, and what it does to the DAG run."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import dagster as dg
import pytest
from werkzeug import Response

from federation_defs.naming import build_asset_key
from federation_defs.timing import RetryPolicy
from tests.contract.conftest import Airflow
from tests.contract.execution.executing import FAST, TIMEOUT, materialize, meanwhile, wait_for_log
from tests.contract.execution.interrupting import before_acting
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.database import RunRow
from tests.contract.fakes.faults import Act, answer
from tests.contract.observation.daemon import Daemon
from tests.waiting import wait_for

DAG = "customer_metrics"
KEY = build_asset_key("metrics", DAG)
RUN = f"/dags/{DAG}/dagRuns/[^/]+"
CANCEL: dict[str, Any] = {"trigger": {"timeout": "1s", "on_timeout": "cancel"}}


def test_a_run_past_its_timeout_is_stopped_with_on_timeout_cancel(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG, polls=math.inf)
    executed = materialize(airflow.client, {DAG: CANCEL}, instance)
    (run,) = airflow.database.runs
    assert (run.state, run.tasks[0].state) == ("failed", "failed")
    failure = executed.failure or ""
    assert failure.startswith(f"Airflow 'metrics' still has run '{run.run_id}' of DAG '{DAG}' ")
    url = airflow.client.build_run_url(DAG, run.run_id)
    assert "which is its `trigger.timeout`: raise that if it needs longer" in failure
    assert failure.endswith(f"It was stopped: {url}")


def test_a_stop_that_the_scheduler_overwrites_is_repeated(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=math.inf)

    def overwrite(act: Act) -> Response:
        response = act()
        airflow_v2.database.set_state(airflow_v2.database.runs[0], "success")
        return response

    airflow_v2.server.fail_next(asks("PATCH", RUN), overwrite)
    executed = materialize(airflow_v2.client, {DAG: CANCEL}, instance)
    assert airflow_v2.database.runs[0].state == "failed"
    assert executed.materialized == []
    assert "It was stopped" in (executed.failure or "")


def test_a_run_that_succeeds_just_before_it_is_stopped_is_a_success(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=math.inf)

    def succeed() -> None:
        airflow_v2.database.finish_run(airflow_v2.database.runs[0])

    # The one poll, at the time-out, and the stop's own query.
    for fault in before_acting(lambda: None), before_acting(succeed):
        airflow_v2.server.fail_next(asks("GET", RUN), fault)
    timing = replace(FAST, poll_run=RetryPolicy(first_s=60, max_s=60))
    executed = materialize(airflow_v2.client, {DAG: CANCEL}, instance, timing=timing)
    assert executed.materialized == [DAG]
    assert airflow_v2.server.count("GET", RUN) == 2
    assert airflow_v2.server.count("PATCH", ".*") == 0


def test_a_run_that_can_not_be_stopped_is_not_reported_as_stopped(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=math.inf)
    forbidden = answer(403, {"detail": "Forbidden"})
    airflow_v2.server.fail_next(asks("PATCH", RUN), forbidden)
    executed = materialize(airflow_v2.client, {DAG: CANCEL}, instance)
    assert airflow_v2.database.runs[0].state == "running"
    assert "It was stopped" not in (executed.failure or "")
    assert any("lacks the permission to stop DAG runs" in line for line in executed.log)


@pytest.mark.parametrize(
    ("declared", "logged"),
    [(TIMEOUT, "still has run"), ({"trigger": {"wait": False}}, "is not waited for")],
    ids=["given up", "never waited for"],
)
def test_a_run_that_is_not_waited_for_is_reported_when_it_ends_though_others_are(
    airflow_v2: Airflow, instance: dg.DagsterInstance, declared: dict[str, Any], logged: str
) -> None:
    for dag_id in (DAG, "other"):
        airflow_v2.database.add_dag(dag_id, polls=math.inf)
    daemon = Daemon(airflow_v2.client, [DAG, "other"], instance)
    reported: list[list[str]] = []

    def end_both() -> None:
        wait_for_log(instance, logged)
        runs = wait_for(find_both, "both are launched", interval_s=0.02)
        airflow_v2.database.finish_run(runs[DAG])
        reported.append(daemon.tick())
        airflow_v2.database.finish_run(runs["other"])

    def find_both() -> dict[str, RunRow] | None:
        runs = {run.dag_id: run for run in list(airflow_v2.database.runs)}
        return runs if len(runs) == 2 else None

    with meanwhile(end_both):
        executed = materialize(airflow_v2.client, {DAG: declared, "other": {}}, instance)
    assert executed.materialized == ["other"]
    (own,) = [run.run_id for run in airflow_v2.database.runs if run.dag_id == DAG]
    assert reported == [[own]]
    assert daemon.tick() == []


def report_durations(instance: dg.DagsterInstance, *seconds: float) -> None:
    for duration in seconds:
        event = dg.AssetMaterialization(KEY, metadata={"Duration (s)": duration})
        instance.report_runless_asset_event(event)


def find_warnings(log: list[str]) -> list[str]:
    return [line for line in log if "may exceed its `trigger.timeout`" in line]


def test_a_timeout_shorter_than_all_earlier_runs_is_warned_of(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    report_durations(instance, 300.0, 90.0, 100.0)
    executed = materialize(airflow_v2.client, {DAG: TIMEOUT}, instance)
    assert find_warnings(executed.log) == [
        f"{DAG} may exceed its `trigger.timeout` of 1 s: its last runs usually took 100 s, and the "
        "shortest took 90 s."
    ]


@pytest.mark.parametrize("durations", [(), (0.5, 100.0)], ids=["unknown", "once kept"])
def test_a_timeout_that_an_earlier_run_kept_is_not_warned_of(
    airflow_v2: Airflow, instance: dg.DagsterInstance, durations: tuple[float, ...]
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    report_durations(instance, *durations)
    executed = materialize(airflow_v2.client, {DAG: TIMEOUT}, instance)
    assert find_warnings(executed.log) == []
