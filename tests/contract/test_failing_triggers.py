"""Triggers that fail in Airflow itself, though it answers whatever else it is asked."""

from __future__ import annotations

import dagster as dg
import pytest

from federation_defs.execution import patience, telling
from federation_defs.naming import build_run_id
from tests.contract.conftest import Airflow
from tests.contract.executing import materialize
from tests.contract.fake_airflow import asks
from tests.contract.faults import Fault, answer, hang_up

DAG = "customer_metrics"
TRIGGER = f"/dags/{DAG}/dagRuns"
BROKEN = answer(500, {"detail": "no space left on device"})


@pytest.mark.parametrize(
    ("fault", "said"),
    [(BROKEN, "500: no space left on device"), (answer(502), "502"), (hang_up, "")],
    ids=["500", "502", "no answer"],
)
def test_one_that_keeps_failing_is_given_up_in_airflows_words_and_can_be_made_later(
    airflow: Airflow,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    said: str,
) -> None:
    monkeypatch.setattr(patience, "TROUBLE_S", 2.5)
    airflow.database.add_dag(DAG, polls=0)
    airflow.database.add_dag("other", polls=0)
    airflow.server.fail_next(asks("POST", TRIGGER), fault, times=99)
    outcome = materialize(airflow.client, [DAG, "other"], instance)
    run_id = build_run_id(outcome.run_id)
    assert f"did not start run '{run_id}' of DAG '{DAG}' (" in (outcome.failure or "")
    assert f"{said}), and has none of that id. Look into the log" in (outcome.failure or "")
    assert outcome.materialized == ["other"]
    assert 3 <= airflow.server.count("POST", TRIGGER) <= 5
    waiting = [line for line in outcome.log if line.endswith("Waiting on.")]
    assert len(waiting) == 1
    assert "did not start run" in waiting[0]
    airflow.server.forget_faults()
    assert materialize(airflow.client, [DAG], instance).materialized == [DAG]
    assert len(airflow.database.runs) == 2


def test_one_that_fails_for_a_while_starts_one_run(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG, polls=0)
    airflow.server.fail_next(asks("POST", TRIGGER), BROKEN, times=2)
    assert materialize(airflow.client, [DAG], instance).materialized == [DAG]
    assert airflow.server.count("POST", TRIGGER) == 3
    assert len(airflow.database.runs) == 1


def test_one_that_is_done_after_all_is_adopted(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG, polls=0)
    failed = answer(500, {"detail": "database is locked"}, acts=True)
    airflow.server.fail_next(asks("POST", TRIGGER), failed)
    assert materialize(airflow.client, [DAG], instance).materialized == [DAG]
    assert airflow.server.count("POST", TRIGGER) == 1
    assert len(airflow.database.runs) == 1


def test_no_secret_of_the_conf_is_in_airflows_words(
    airflow_v2: Airflow, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "TROUBLE_S", 0.5)
    airflow_v2.database.add_dag(DAG)
    said = answer(500, {"detail": "database is locked [parameters: {'token': 's3cret-word'}]"})
    airflow_v2.server.fail_next(asks("POST", TRIGGER), said, times=99)
    dags = {DAG: {"trigger": {"conf": {"token": "s3cret-word"}}}}
    outcome = materialize(airflow_v2.client, dags, instance)
    assert "database is locked [parameters: {'token': '***'}]" in (outcome.failure or "")
    assert "s3cret-word" not in "".join([*outcome.log, outcome.failure or ""])


def test_a_trouble_that_lasts_is_told_again_and_again(
    airflow_v2: Airflow, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "TROUBLE_TOLD_S", 1.5)
    airflow_v2.database.add_dag(DAG, polls=0)
    airflow_v2.server.fail_next(asks("POST", TRIGGER), BROKEN, times=4)
    outcome = materialize(airflow_v2.client, [DAG], instance)
    assert outcome.materialized == [DAG]
    waiting = [line for line in outcome.log if line.endswith("Waiting on.")]
    assert len(waiting) == 2
