"""Triggers that Airflow refuses: each fails once, with what a person has to do."""

from __future__ import annotations

import dagster as dg
import pytest

from tests.contract.conftest import Airflow
from tests.contract.execution.executing import DagsterJob, materialize
from tests.contract.fakes.airflow import PASSWORD, VIEWER, asks
from tests.contract.fakes.faults import answer
from tests.contract.worlds import SIGN_INS, connect

DAG = "customer_metrics"
TRIGGER = f"/dags/{DAG}/dagRuns"


def test_a_conf_that_the_params_do_not_allow_fails_with_airflows_words_and_is_sent_once(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    day = {"value": "2026-01-01", "description": None, "schema": {"type": "string"}}
    airflow.database.add_dag(DAG, polls=0, params={"day": day})
    airflow.database.add_dag("other", polls=1)
    dags = {DAG: {"trigger": {"conf": {"day": 5}}}, "other": {}}
    executed = materialize(airflow.client, dags, instance)
    assert "400: Invalid input for param day: 5 is not of type 'string'" in (executed.failure or "")
    assert "the same request would be rejected again" in (executed.failure or "")
    assert airflow.server.count("POST", TRIGGER) == 1
    assert executed.materialized == ["other"]


def test_a_missing_permission_to_trigger_is_named(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG, polls=0)
    client = connect(airflow.server.url, SIGN_INS[airflow.server.api], PASSWORD, username=VIEWER)
    executed = materialize(client, [DAG], instance)
    assert f"forbids POST /api/{airflow.server.api}/dags/{DAG}/dagRuns (403" in (
        executed.failure or ""
    )
    assert "lacks the permission to trigger DAG runs (DAG Runs.can_create" in (
        executed.failure or ""
    )
    assert airflow.server.count("POST", TRIGGER) == 1
    assert airflow.database.runs == []


def test_a_missing_permission_to_clear_is_named(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0, outcome="failed")
    job = DagsterJob(airflow_v2.client, [DAG], instance)
    first = job.execute()
    forbidden = answer(403, {"detail": "Forbidden"})
    airflow_v2.server.fail_next(asks("POST", ".*/clearTaskInstances"), forbidden)
    second = job.execute(first)
    assert "lacks the permission to clear tasks" in (second.failure or "")
    assert airflow_v2.server.count("POST", ".*/clearTaskInstances") == 1


def test_an_import_error_fails_with_its_last_line_and_triggers_nothing(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG, has_import_errors=True)
    airflow.database.add_import_error("others.py", "Traceback:\nKeyError: not ours\n")
    trace = (
        f"Traceback (most recent call last):\n  File {DAG}\nNameError: name 'x' is not defined\n"
    )
    airflow.database.add_import_error(f"{DAG}.py", trace)
    executed = materialize(airflow.client, [DAG], instance)
    assert executed.failure == (
        f"Airflow 'metrics' can't import the file of DAG '{DAG}' (NameError: name 'x' is not "
        f"defined). Fix it until {airflow.client.build_dag_url(DAG)} shows no error, and "
        "materialize the asset again."
    )
    assert airflow.server.count("POST", TRIGGER) == 0


@pytest.mark.parametrize(
    "fault",
    [answer(403, {"detail": "Forbidden"}), answer(200, {"import_errors": [], "total_entries": 0})],
    ids=["may not be read", "not listed"],
)
def test_an_import_error_fails_without_its_text_where_that_can_not_be_read(
    airflow_v2: Airflow, instance: dg.DagsterInstance, fault: object
) -> None:
    airflow_v2.database.add_dag(DAG, has_import_errors=True)
    airflow_v2.server.fail_next(asks("GET", "/importErrors"), fault)  # type: ignore[arg-type]
    executed = materialize(airflow_v2.client, [DAG], instance)
    assert f"can't import the file of DAG '{DAG}'. Fix it" in (executed.failure or "")
    assert airflow_v2.database.runs == []


def test_a_failed_run_is_not_cleared_while_its_file_does_not_parse(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    dag = airflow_v2.database.add_dag(DAG, polls=0, outcome="failed")
    job = DagsterJob(airflow_v2.client, [DAG], instance)
    first = job.execute()
    dag.has_import_errors = True
    second = job.execute(first)
    assert "can't import the file" in (second.failure or "")
    assert airflow_v2.database.runs[0].state == "failed"


def test_a_missing_dag_fails_with_the_nearest_name(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    for dag_id in ("customers_metrics", "load_orders"):
        airflow.database.add_dag(dag_id)
    executed = materialize(airflow.client, [DAG], instance)
    assert f"has no DAG '{DAG}' (404); did you mean 'customers_metrics'?" in (
        executed.failure or ""
    )
    assert airflow.server.count("POST", TRIGGER) == 0


def test_a_missing_dag_without_a_near_name_fails_without_a_suggestion(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag("load_orders")
    executed = materialize(airflow_v2.client, [DAG], instance)
    assert f"has no DAG '{DAG}' (404). Restore its file" in (executed.failure or "")


def test_a_dag_that_is_deleted_just_before_the_trigger_is_reported_as_missing(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG)
    gone = answer(404, {"detail": f"DAG with dag_id: '{DAG}' not found"})
    airflow_v2.server.fail_next(asks("POST", TRIGGER), gone)
    executed = materialize(airflow_v2.client, [DAG], instance)
    assert f"has no DAG '{DAG}' (404 to the trigger)" in (executed.failure or "")


def test_a_taken_logical_date_without_partitions_is_an_error(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG)
    taken = answer(409, {"detail": {"reason": "Unique constraint violation"}})
    airflow_v2.server.fail_next(asks("POST", TRIGGER), taken, times=99)
    executed = materialize(airflow_v2.client, [DAG], instance)
    assert "another run has its logical date (409: Unique constraint violation). " in (
        executed.failure or ""
    )
    assert airflow_v2.database.runs == []


def test_a_key_that_the_dag_does_not_take_fails_with_airflows_words(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """It was declared without the `key_format` of the DAG."""
    airflow_v2.database.add_dag(DAG, key_format="%d.%m.%Y")
    partitions = {"partitions": {"cron": "0 0 * * *", "start": "2025-01-01"}}
    tags = {"dagster/partition": "2025-02-03"}
    executed = materialize(airflow_v2.client, {DAG: partitions}, instance, tags=tags)
    assert "Partition key '2025-02-03' does not match the key_format" in (executed.failure or "")
    assert airflow_v2.server.count("POST", TRIGGER) == 1
