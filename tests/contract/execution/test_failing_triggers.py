"""Triggers that fail in an Airflow that answers all other requests."""

from __future__ import annotations

from dataclasses import replace

import dagster as dg
import pytest

from federation_defs.naming import build_run_id
from federation_defs.timing import RetryPolicy
from tests.contract.conftest import Airflow
from tests.contract.execution.executing import FAST, DagsterJob, fail_after, materialize
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.faults import LOGIN_PAGE, Fault, answer, hang_up

DAG = "customer_metrics"
TRIGGER = f"/dags/{DAG}/dagRuns"
BROKEN = answer(500, {"detail": "no space left on device"})


@pytest.mark.parametrize(
    ("fault", "said"),
    [(BROKEN, "500: no space left on device"), (answer(502), "502"), (hang_up, "")],
    ids=["500", "502", "no answer"],
)
def test_a_trigger_that_keeps_failing_is_given_up_in_airflows_words_and_can_be_repeated_later(
    airflow: Airflow,
    instance: dg.DagsterInstance,
    fault: Fault,
    said: str,
) -> None:
    four_tries = RetryPolicy(first_s=0.1, max_s=0.1, give_up_after_s=0.3)
    airflow.database.add_dag(DAG, polls=0)
    airflow.database.add_dag("other", polls=0)
    airflow.server.fail_next(asks("POST", TRIGGER), fault, times=99)
    timing = replace(FAST, unexpected_answer=four_tries)
    executed = materialize(airflow.client, [DAG, "other"], instance, timing=timing)
    run_id = build_run_id(executed.run_id)
    assert f"did not start run '{run_id}' of DAG '{DAG}' (" in (executed.failure or "")
    assert f"{said}), and shows no run of that id. Read the log" in (executed.failure or "")
    assert executed.materialized == ["other"]
    assert 2 <= airflow.server.count("POST", TRIGGER) <= 5
    waiting = [line for line in executed.log if line.endswith("Dagster keeps waiting.")]
    assert len(waiting) == 1
    assert "did not start run" in waiting[0]
    airflow.server.forget_faults()
    assert materialize(airflow.client, [DAG], instance).materialized == [DAG]
    assert len(airflow.database.runs) == 2


def test_a_trigger_that_fails_for_a_while_starts_one_run(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG, polls=0)
    airflow.server.fail_next(asks("POST", TRIGGER), BROKEN, times=2)
    assert materialize(airflow.client, [DAG], instance).materialized == [DAG]
    assert airflow.server.count("POST", TRIGGER) == 3
    assert len(airflow.database.runs) == 1


def test_a_trigger_that_started_its_run_in_spite_of_a_5xx_is_adopted(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG, polls=0)
    failed = answer(500, {"detail": "database is locked"}, acts=True)
    airflow.server.fail_next(asks("POST", TRIGGER), failed)
    assert materialize(airflow.client, [DAG], instance).materialized == [DAG]
    assert airflow.server.count("POST", TRIGGER) == 1
    assert len(airflow.database.runs) == 1


@pytest.mark.parametrize("acts", [True, False], ids=["done", "not done"])
def test_a_trigger_whose_run_could_not_be_read_at_once_is_read_again(
    airflow_v2: Airflow, instance: dg.DagsterInstance, acts: bool
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    airflow_v2.server.fail_next(asks("POST", TRIGGER), answer(504, acts=acts))
    forbidden = answer(403, {"detail": "Forbidden"})
    airflow_v2.server.fail_next(asks("GET", f"{TRIGGER}/.+"), forbidden)
    executed = materialize(airflow_v2.client, [DAG], instance)
    assert executed.materialized == [DAG]
    assert any("504; asked for the run, Airflow forbids GET" in line for line in executed.log)
    assert len(airflow_v2.database.runs) == 1


def test_no_secret_of_the_conf_is_in_airflows_words(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG)
    conf = {"token": "s3cret-word", "tokens": 5}
    words = f"database is locked [parameters: {conf}]"
    said = answer(500, {"detail": f"{words:.<294}s3cret-word"})  # longer than what is quoted
    airflow_v2.server.fail_next(asks("POST", TRIGGER), said, times=99)
    dags = {DAG: {"trigger": {"conf": conf}}}
    executed = materialize(airflow_v2.client, dags, instance, timing=fail_after(0.1))
    assert f"POST /api/v2{TRIGGER}: 500: " in (executed.failure or "")
    assert "is locked [parameters: {'token': '***', 'tokens': 5}]" in (executed.failure or "")
    assert "s3c" not in "".join([*executed.log, executed.failure or ""])


def test_a_trigger_that_something_else_answers_is_reported_as_not_started(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG)
    airflow_v2.server.fail_next(asks("POST", TRIGGER), answer(200, LOGIN_PAGE), times=99)
    executed = materialize(airflow_v2.client, [DAG], instance, timing=fail_after(0.1))
    assert "200: no DAG run in the answer), and shows no run of that id" in (executed.failure or "")


def test_a_re_execution_adopts_a_run_that_appeared_late(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    airflow_v2.server.fail_next(asks("POST", TRIGGER), answer(504), times=99)
    job = DagsterJob(airflow_v2.client, [DAG], instance, give_up_after_s=0.1)
    first = job.execute()
    assert "re-execute it" in (first.failure or "")
    airflow_v2.server.forget_faults()
    late = airflow_v2.database.start_run(DAG, build_run_id(first.run_id))
    airflow_v2.database.finish_run(late)
    assert job.execute(first).materialized == [DAG]
    assert len(airflow_v2.database.runs) == 1


def test_a_problem_that_lasts_is_logged_again(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    for number in range(4):  # each in other words
        failed = answer(500, {"detail": f"error {number}"})
        airflow_v2.server.fail_next(asks("POST", TRIGGER), failed)
    timing = replace(FAST, log_again_s=0.0)
    executed = materialize(airflow_v2.client, [DAG], instance, timing=timing)
    assert executed.materialized == [DAG]
    assert len([line for line in executed.log if line.endswith("Dagster keeps waiting.")]) == 4
