"""Runs with odd data: each is reported as well as possible, and delays no other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any
from urllib.parse import unquote

import dagster as dg
import pytest

from federation_defs.errors import AirflowError
from tests.contract.conftest import Airflow
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.faults import edit
from tests.contract.observation.daemon import (
    DAG,
    KEY,
    Daemon,
    Observed,
    fetch_evaluations,
    fetch_reported_runs,
)

LOOK = asks("GET", "/dags/~/dagRuns")
DATES = ["logical_date", "data_interval_start", "data_interval_end", "queued_at", "start_date"]
LEGAL = "AZaz09_.~:+-"  # each kind of letter that 3.x takes in a run id
ODD = ["two words", "a/b", "größe 数 🦆", "50%25", "a?b=c&d#e", "../..", "'; --", "<b>&amp;", "."]


@pytest.fixture
def daemon(airflow: Airflow, instance: dg.DagsterInstance) -> Daemon:
    """The daemon of one selected DAG, for each API version."""
    airflow.database.add_dag(DAG)
    return Daemon(airflow.client, [DAG], instance)


def add_run(airflow: Airflow, run_id: str, state: str = "success", **columns: Any) -> None:
    run = airflow.database.start_run(DAG, run_id, **columns)
    ended = airflow.database.now() - timedelta(seconds=1)
    airflow.database.finish_run(run, state, end_date=ended)


def spoil(airflow: Airflow, run_id: str, fields: Mapping[str, Any], times: int = 1) -> None:
    """Change fields of a run in the next lists of runs."""

    def change(content: dict[str, Any]) -> None:
        for run in content["dag_runs"]:
            if run["dag_run_id"] == run_id:
                run.update(fields)

    airflow.server.fail_next(LOOK, edit(change), times)


def read(metadata: Mapping[str, dg.MetadataValue]) -> dict[str, Any]:
    return {name: value.value for name, value in metadata.items()}


def test_a_run_without_dates_is_reported_once_and_last(
    airflow: Airflow, daemon: Daemon, instance: dg.DagsterInstance
) -> None:
    add_run(airflow, "dateless")
    add_run(airflow, "other")
    spoil(airflow, "dateless", dict.fromkeys([*DATES, "end_date"]), times=9)
    assert daemon.tick() == ["other", "dateless"]
    daemon.cursor = None
    assert daemon.tick() == []
    seen = read(fetch_reported_runs(instance, KEY)[1])
    assert seen.keys() == {"Run ID", "Link to run", "State", "Outcome", "Run type", "Tries"}


def test_a_run_in_an_unknown_state_is_not_reported_yet(
    airflow: Airflow, daemon: Daemon, instance: dg.DagsterInstance
) -> None:
    add_run(airflow, "mine")
    add_run(airflow, "other")
    spoil(airflow, "mine", {"state": "succeeding"})
    assert daemon.tick() == ["other"]
    assert len(fetch_evaluations(instance, KEY)) == 1
    assert daemon.tick() == ["mine"]


@pytest.mark.parametrize("state", ["success", "failed"])
def test_a_run_id_may_hold_every_character_that_airflow_3_accepts(
    airflow: Airflow, daemon: Daemon, instance: dg.DagsterInstance, state: str
) -> None:
    add_run(airflow, LEGAL, state)
    assert daemon.tick() == ([LEGAL] if state == "success" else [])
    assert daemon.tick() == []
    (evaluation,) = fetch_evaluations(instance, KEY)
    seen = read(evaluation.metadata)
    assert seen["Run ID"] == LEGAL
    assert unquote(seen["Link to run"]).endswith(LEGAL)
    assert "+" not in seen["Link to run"]  # which would be a space
    assert ("Log of load" in seen) == (state == "failed")
    assert "could not read" in seen.get("Log of load", "it could not read")


@pytest.mark.parametrize("run_id", ODD)
@pytest.mark.parametrize("state", ["success", "failed"])
def test_a_run_id_of_airflow_2_may_hold_any_character(
    start_airflow: Any, instance: dg.DagsterInstance, run_id: str, state: str
) -> None:
    airflow: Airflow = start_airflow("v1")
    airflow.database.add_dag(DAG)
    daemon = Daemon(airflow.client, [DAG], instance)
    add_run(airflow, run_id, state)
    add_run(airflow, "other")
    reported = {run_id, "other"} if state == "success" else {"other"}
    assert set(daemon.tick()) == reported
    assert daemon.tick() == []
    evaluations = {
        evaluation.metadata["Run ID"].value: evaluation
        for evaluation in fetch_evaluations(instance, KEY)
    }
    assert evaluations.keys() == {run_id, "other"}
    assert evaluations[run_id].passed == (state == "success")
    link = str(evaluations[run_id].metadata["Link to run"].value)
    assert link == airflow.client.build_run_url(DAG, run_id)
    _, _, given = link.partition("?dag_run_id=")
    assert unquote(given) == run_id
    assert not set(given) & set("&#?+ /")


def test_a_conf_of_a_megabyte_is_cut_off_and_delays_nothing(
    airflow: Airflow, daemon: Daemon, instance: dg.DagsterInstance
) -> None:
    conf = {"rows": ["0123456789"] * 80_000}
    add_run(airflow, "large", conf=conf)
    add_run(airflow, "other", conf={"k": 1})
    assert daemon.tick() == ["large", "other"]
    large, other = (read(metadata) for metadata in fetch_reported_runs(instance, KEY))
    length = len(json.dumps(conf))
    assert length > 1_000_000
    assert large["Conf"].startswith('{"rows": ["0123456789", ')
    assert large["Conf"].endswith(f"… ({length} characters; see the run)")
    assert len(large["Conf"]) < 11_000
    assert other["Conf"] == {"k": 1}


@pytest.mark.parametrize("rows", [1, 5000], ids=["short", "long"])
def test_secrets_in_a_conf_are_redacted(
    airflow: Airflow, daemon: Daemon, instance: dg.DagsterInstance, rows: int
) -> None:
    login = {"user": "me", "password": "s3cret", "pins": [{"token": 4711}]}
    conf = {"db": login, "rows": ["0123456789"] * rows}
    add_run(airflow, "good", conf=conf)
    add_run(airflow, "bad", "failed", conf=conf)
    daemon.tick()
    reported = [read(metadata) for metadata in fetch_reported_runs(instance, KEY)]
    reported += [read(evaluation.metadata) for evaluation in fetch_evaluations(instance, KEY)]
    reported = [seen for seen in reported if "Conf" in seen]
    assert [seen["Run ID"] for seen in reported] == ["good", "bad"]
    for seen in reported:
        text = str(seen["Conf"])
        assert "***" in text
        assert "me" in text
        assert not [secret for secret in ("s3cret", "4711") if secret in str(seen)]


@pytest.mark.parametrize("conf", [["a", "list"], "a text", 5, None, True], ids=repr)
def test_a_conf_that_is_no_mapping_is_left_out(
    airflow: Airflow, daemon: Daemon, instance: dg.DagsterInstance, conf: Any
) -> None:
    add_run(airflow, "mine")
    spoil(airflow, "mine", {"conf": conf}, times=9)
    assert daemon.tick() == ["mine"]
    assert daemon.tick() == []
    (metadata,) = fetch_reported_runs(instance, KEY)
    assert "Conf" not in metadata


@pytest.mark.parametrize("state", ["success", "failed"])
def test_a_run_of_a_dag_that_was_deleted_and_created_again_is_a_new_run(
    airflow: Airflow, daemon: Daemon, instance: dg.DagsterInstance, state: str
) -> None:
    add_run(airflow, "first", state)
    daemon.tick()
    database = airflow.database
    database.delete_run(database.runs[0])
    del database.dags[DAG]
    assert daemon.tick() == []
    database.add_dag(DAG)
    add_run(airflow, "first")
    assert daemon.tick() == ["first"]
    assert daemon.tick() == []
    executed = [evaluation.passed for evaluation in fetch_evaluations(instance, KEY)]
    assert executed == [state == "success", True]


WRONG_TYPES = {
    "run_type": [5, ["manual"], {"a": "b"}],
    "note": [5, ["a", "b"]],
    "partition_key": [7, ["k"], {"a": "b"}],
    "conf": ["text"],
    "logical_date": [5, "soon", []],
    "start_date": ["9999-12-31T23:59:59-05:00", {}],
    "end_date": [17, "yesterday", []],
}
ODD_FIELDS = [
    pytest.param({name: value}, id=f"{name}={value}")
    for name, values in WRONG_TYPES.items()
    for value in values
]


@pytest.mark.parametrize("fields", ODD_FIELDS)
def test_a_run_with_a_field_of_a_wrong_type_is_reported_once_and_so_are_the_others(
    observed: Observed, airflow_v2: Airflow, fields: dict[str, Any]
) -> None:
    for run_id in ("mine", "other"):
        observed.add_run(run_id)
    spoil(airflow_v2, "mine", fields, times=9)
    assert set(observed.daemon.tick()) == {"mine", "other"}
    assert observed.daemon.tick() == []


@pytest.mark.parametrize("field", ["dag_id", "dag_run_id"])
@pytest.mark.parametrize("value", [5, ["a"], {"a": "b"}], ids=repr)
def test_a_run_without_a_valid_id_is_left_out_or_an_error_of_ours(
    observed: Observed, airflow_v2: Airflow, field: str, value: Any
) -> None:
    """No Airflow sends such a run, but a proxy may."""
    observed.add_run("mine")
    observed.add_run("other")
    spoil(airflow_v2, "mine", {field: value})
    with suppress(AirflowError):
        assert observed.daemon.tick() == ["other"]
    observed.daemon.tick()
    assert set(observed.reported) == {"mine", "other"}


@pytest.mark.parametrize(
    "fields",
    [{"try_number": "two"}, {"try_number": [1]}, {"state": ["success"]}, {"map_index": "all"}],
    ids=str,
)
@pytest.mark.parametrize("state", ["success", "failed"])
def test_a_run_whose_tasks_have_fields_of_a_wrong_type_is_reported(
    observed: Observed, fields: dict[str, Any], state: str
) -> None:
    observed.add_run("mine", state)
    observed.add_run("other")
    fault = edit(lambda content: content["task_instances"][-1].update(fields))
    observed.server.fail_next(asks("GET", ".*/mine/taskInstances"), fault, times=9)
    assert set(observed.daemon.tick()) == ({"mine", "other"} if state == "success" else {"other"})
    assert len(fetch_evaluations(observed.daemon.instance, KEY)) == 2
