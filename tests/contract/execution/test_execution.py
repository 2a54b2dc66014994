"""From an asset to a DAG run and back: Dagster runs the real multi_asset on a fake Airflow."""

from __future__ import annotations

import math
import re
import time
from dataclasses import replace

import dagster as dg
import pytest
from werkzeug import Response

from federation_defs.naming import build_asset_key, build_run_id
from federation_defs.timing import RetryPolicy
from tests.contract.conftest import Airflow
from tests.contract.execution.executing import FAST, TIMEOUT, materialize, meanwhile
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.faults import LOGIN_PAGE, Act, Fault, answer, hang_up
from tests.contract.observation.daemon import Daemon, fetch_reported_run_ids
from tests.waiting import wait_for

DAG = "customer_metrics"
TRIGGER = f"/dags/{DAG}/dagRuns"
RUN = f"/dags/{DAG}/dagRuns/[^/]+"


def test_a_success_is_materialized_with_its_run_id_link_and_dates(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG, polls=1)
    executed = materialize(airflow.client, [DAG], instance)
    assert (executed.success, executed.materialized) == (True, [DAG])
    (run,) = airflow.database.runs
    assert run.run_id == build_run_id(executed.run_id)
    assert run.start_date is not None
    assert run.end_date is not None
    metadata = {name: value.value for name, value in executed.metadata[DAG].items()}
    assert metadata["Run ID"] == run.run_id
    assert metadata["Link to run"] == airflow.client.build_run_url(DAG, run.run_id)
    assert (metadata["Start"], metadata["End"]) == (
        run.start_date.timestamp(),
        run.end_date.timestamp(),
    )
    assert metadata["Duration (s)"] == (run.end_date - run.start_date).total_seconds()


def test_a_failed_dag_fails_the_run_with_its_task_and_the_end_of_its_log(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG, polls=0, outcome="failed", tasks=("extract", "load"))
    executed = materialize(airflow.client, [DAG], instance)
    assert (executed.success, executed.materialized) == (False, [])
    (run,) = airflow.database.runs
    url = airflow.client.build_run_url(DAG, run.run_id)
    assert executed.failure == (
        f"DAG '{DAG}' failed in Airflow 'metrics'. Failed tasks: load. {url}"
    )
    log = executed.failure_metadata["Log of load"].value
    assert "ValueError: load could not read its table" in str(log)
    assert executed.failure_metadata["Link to run"].value == url


def test_a_failed_mapped_task_has_its_index_and_only_the_end_of_a_long_log(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0, outcome="failed", tasks=("load", "load"))

    def map_tasks(act: Act) -> Response:
        for index, task in enumerate(airflow_v2.database.runs[0].tasks):
            task.map_index = index
            task.log = [f"line {number}" for number in range(5000)]
        return act()

    airflow_v2.server.fail_next(asks("GET", f"{RUN}/taskInstances"), map_tasks)
    executed = materialize(airflow_v2.client, [DAG], instance)
    assert "Failed tasks: load[1]. " in (executed.failure or "")
    log = str(executed.failure_metadata["Log of load[1]"].value)
    assert "line 4999" in log
    assert "could not read" in log
    assert "line 4900" not in log


def test_a_failed_task_is_named_though_its_log_is_gone(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0, outcome="failed")
    gone = answer(404, {"detail": "TaskInstance not found"})
    airflow_v2.server.fail_next(asks("GET", ".*/logs/.*"), gone)
    executed = materialize(airflow_v2.client, [DAG], instance)
    assert "Failed tasks: load" in (executed.failure or "")


def test_a_paused_dag_fails_at_once_and_starts_nothing(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, is_paused=True)
    executed = materialize(airflow_v2.client, [DAG], instance)
    assert not executed.success
    assert executed.failure == (
        f"Airflow 'metrics' has DAG '{DAG}' paused: a run would stay queued. Unpause it at "
        f"{airflow_v2.client.build_dag_url(DAG)} and materialize the asset again."
    )
    assert airflow_v2.database.runs == []


def test_a_dag_that_has_gone_fails_and_the_others_go_on(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag("gone", is_present=False)
    airflow_v2.database.add_dag(DAG, polls=0)
    executed = materialize(airflow_v2.client, ["gone", DAG, "never_was"], instance)
    assert (executed.success, executed.materialized) == (False, [DAG])
    assert "has no DAG 'gone' (its file has gone, or no longer parses)" in (executed.failure or "")
    assert "has no DAG 'never_was' (404)" in (executed.failure or "")


def test_two_failed_dags_are_both_in_the_failure_with_their_logs(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    for dag_id in (DAG, "order_metrics"):
        airflow_v2.database.add_dag(dag_id, polls=0, outcome="failed")
    executed = materialize(airflow_v2.client, [DAG, "order_metrics"], instance)
    for dag_id in (DAG, "order_metrics"):
        assert f"DAG '{dag_id}' failed in Airflow 'metrics'. Failed tasks: load." in (
            executed.failure or ""
        )
        assert f"{dag_id}: Log of load" in executed.failure_metadata


def test_only_what_is_selected_is_run(airflow_v2: Airflow, instance: dg.DagsterInstance) -> None:
    for dag_id in (DAG, "order_metrics"):
        airflow_v2.database.add_dag(dag_id, polls=0)
    executed = materialize(airflow_v2.client, [DAG, "order_metrics"], instance, ["order_metrics"])
    assert executed.materialized == ["order_metrics"]
    assert [run.dag_id for run in airflow_v2.database.runs] == ["order_metrics"]


def test_a_dag_that_depends_on_another_of_the_step_starts_after_its_success(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    dags = {"a_report": {"depends_on": [f"metrics/{DAG}"]}, DAG: {}}
    airflow_v2.database.add_dag(DAG, polls=1)
    airflow_v2.database.add_dag("a_report", polls=0)
    executed = materialize(airflow_v2.client, dags, instance)
    assert executed.materialized == [DAG, "a_report"]
    first, second = airflow_v2.database.runs
    assert (first.dag_id, second.dag_id) == (DAG, "a_report")
    assert first.end_date is not None
    assert first.end_date <= second.queued_at


def test_what_depends_on_a_failed_dag_is_skipped_and_the_rest_is_run(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    dags = {
        DAG: {},
        "report": {"depends_on": [f"metrics/{DAG}"]},
        "report_mail": {"depends_on": ["metrics/report"]},
        "order_metrics": {},
    }
    for dag_id in dags:
        airflow_v2.database.add_dag(dag_id, polls=0)
    airflow_v2.database.dags[DAG].outcome = "failed"
    executed = materialize(airflow_v2.client, dags, instance)
    assert executed.materialized == ["order_metrics"]
    assert f"DAG '{DAG}' failed" in (executed.failure or "")
    assert {run.dag_id for run in airflow_v2.database.runs} == {DAG, "order_metrics"}


def test_dags_that_do_not_depend_on_each_other_run_side_by_side(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    dag_ids = [f"dag_{number}" for number in range(5)]
    for dag_id in dag_ids:
        airflow_v2.database.add_dag(dag_id, polls=math.inf)
    runs = airflow_v2.database.runs

    def end_all() -> None:
        wait_for(lambda: len(runs) == 5, "all are active", interval_s=0.02)
        for run in list(runs):
            airflow_v2.database.finish_run(run)

    with meanwhile(end_all):
        executed = materialize(airflow_v2.client, dag_ids, instance)
    assert sorted(executed.materialized) == dag_ids


def test_a_run_is_waited_for_while_the_instance_is_away(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=1)
    airflow_v2.server.fail_next(asks("GET", RUN), hang_up, times=4)  # a poll, tried four times
    executed = materialize(airflow_v2.client, [DAG], instance)
    assert (executed.success, executed.materialized) == (True, [DAG])
    assert airflow_v2.server.count("POST", TRIGGER) == 1


def test_a_run_is_waited_for_while_a_gateway_says_that_the_instance_is_away(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=1)
    airflow_v2.server.fail_next(asks("GET", RUN), answer(503, LOGIN_PAGE), times=4)
    executed = materialize(airflow_v2.client, [DAG], instance)
    assert (executed.success, executed.materialized) == (True, [DAG])


def test_a_run_past_its_timeout_is_given_up_and_goes_on(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG)
    executed = materialize(airflow_v2.client, {DAG: TIMEOUT}, instance)
    (run,) = airflow_v2.database.runs
    assert run.state == "queued"
    url = airflow_v2.client.build_run_url(DAG, run.run_id)
    assert re.fullmatch(
        f"Airflow 'metrics' still has run '{run.run_id}' of DAG '{DAG}' queued after [0-9]+ s, "
        "which is its `trigger.timeout`: raise that if it needs longer. The run stays active: "
        f"{re.escape(url)}",
        executed.failure or "",
    )


def test_a_run_that_ends_by_its_timeout_is_not_given_up(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """What ended in time counts, though nobody looked between the trigger and the time-out."""
    airflow_v2.database.add_dag(DAG)

    def end_at_once(act: Act) -> Response:
        response = act()
        airflow_v2.database.finish_run(airflow_v2.database.runs[0])
        return response

    airflow_v2.server.fail_next(asks("POST", TRIGGER), end_at_once)
    dags = {DAG: {"trigger": {"timeout": "3s"}}}
    timing = replace(FAST, poll_run=RetryPolicy(first_s=60, max_s=60))
    executed = materialize(airflow_v2.client, dags, instance, timing=timing)
    assert executed.materialized == [DAG]


def test_a_run_that_is_deleted_while_it_is_waited_for_is_reported_as_deleted(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG)

    def delete(act: Act) -> Response:
        airflow_v2.database.delete_run(airflow_v2.database.runs[0])
        return act()

    airflow_v2.server.fail_next(asks("GET", RUN), delete)
    executed = materialize(airflow_v2.client, [DAG], instance)
    assert f"of DAG '{DAG}': it was deleted meanwhile" in (executed.failure or "")
    assert airflow_v2.server.count("POST", TRIGGER) == 1


def test_a_run_is_reported_once_by_its_step_and_not_by_observation_too(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    executed = materialize(airflow_v2.client, [DAG], instance)
    assert Daemon(airflow_v2.client, [DAG], instance).tick() == []
    reported = fetch_reported_run_ids(instance, build_asset_key("metrics", DAG))
    assert reported == [build_run_id(executed.run_id)]


def test_a_lost_answer_to_the_trigger_starts_one_run(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=1)  # it is read at once, to see whether it is there
    airflow_v2.server.fail_next(asks("POST", TRIGGER), answer(503, acts=True))
    assert materialize(airflow_v2.client, [DAG], instance).materialized == [DAG]
    assert len(airflow_v2.database.runs) == 1


def test_dag_ids_may_have_letters_of_any_alphabet(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    dag_ids = ["a.b", "a-b", "größe"]
    for dag_id in dag_ids:
        airflow_v2.database.add_dag(dag_id, polls=0)
    executed = materialize(airflow_v2.client, dag_ids, instance)
    assert sorted(executed.materialized) == sorted(dag_ids)


def test_an_outage_at_the_trigger_is_waited_out_and_loses_no_update(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG, polls=1)
    airflow.client.fetch_version()
    airflow.server.fail_next(asks("GET", f"/dags/{DAG}"), answer(503, "down"), times=4)
    executed = materialize(airflow.client, [DAG], instance)
    assert executed.materialized == [DAG]
    assert len(airflow.database.runs) == 1


def test_a_trigger_that_stays_unreachable_fails_at_its_time_out(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG)
    airflow.client.fetch_version()
    airflow.server.fail_next(asks("GET", f"/dags/{DAG}"), answer(503, "down"), times=99)
    executed = materialize(airflow.client, {DAG: TIMEOUT}, instance)
    assert "answered with an error" in (executed.failure or "")
    assert airflow.database.runs == []


@pytest.mark.parametrize(
    "fault",
    [answer(404, "default backend - 404"), answer(200, "<html>maintenance")],
    ids=["404 of a gateway", "maintenance page"],
)
def test_one_unexpected_answer_does_not_end_the_wait(
    airflow: Airflow, instance: dg.DagsterInstance, fault: Fault
) -> None:
    airflow.database.add_dag(DAG, polls=2)
    airflow.server.fail_next(asks("GET", ".*/dagRuns/[^/]+"), fault)
    executed = materialize(airflow.client, [DAG], instance)
    assert executed.materialized == [DAG]


def test_a_waiting_dagster_run_writes_heartbeats(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    executed = materialize(airflow_v2.client, [DAG], instance)
    run = instance.get_run_by_id(executed.run_id)
    assert run is not None
    assert run.tags["federation/waits_for.metrics"] == "true"
    run_id, alive_at = run.tags["federation/alive_at.metrics"].split()
    assert run_id == run.run_id
    assert abs(float(alive_at) - time.time()) < 60
