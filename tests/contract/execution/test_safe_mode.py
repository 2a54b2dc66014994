"""Where nothing may be triggered: FEDERATION_TRIGGERS, and branch deployments."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest

from federation_defs.naming import build_run_id
from tests.contract.conftest import Airflow
from tests.contract.execution.executing import DagsterJob, ExecutedRun, materialize
from tests.contract.execution.partitioned import declare, of_range
from tests.contract.observation.daemon import Daemon

DAG = "customer_metrics"
SWITCH, BRANCH = "FEDERATION_TRIGGERS", "DAGSTER_CLOUD_IS_BRANCH_DEPLOYMENT"


@pytest.fixture(autouse=True)
def forget_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (SWITCH, BRANCH):
        monkeypatch.delenv(name, raising=False)


def run_dag(airflow: Airflow, instance: dg.DagsterInstance, **declared: Any) -> ExecutedRun:
    airflow.database.add_dag(DAG, polls=0)
    return materialize(airflow.client, {DAG: {"trigger": declared}}, instance)


def assert_untouched(airflow: Airflow) -> None:
    assert airflow.database.runs == []
    for method in ("POST", "PATCH", "DELETE", "PUT"):
        assert airflow.server.count(method, "/dags.*") == 0


@pytest.mark.parametrize("said", ["off"])
def test_nothing_is_triggered_while_triggers_are_off(
    airflow_v2: Airflow,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
) -> None:
    monkeypatch.setenv(SWITCH, said)
    executed = run_dag(airflow_v2, instance)
    assert (executed.success, executed.materialized) == (True, [])
    assert_untouched(airflow_v2)


def test_what_would_have_been_triggered_is_logged_without_secrets(
    airflow: Airflow, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "off")
    conf = {"source": "federation", "api_password": "open-sesame-7"}
    executed = run_dag(airflow, instance, conf=conf)
    (warning,) = [line for line in executed.log if line.startswith("Nothing is triggered")]
    assert warning.startswith(
        f"Nothing is triggered, because FEDERATION_TRIGGERS is 'off'. DAG {DAG} of Airflow "
        f"'metrics' would have been triggered as run {build_run_id(executed.run_id)} with conf "
    )
    assert "federation" in warning
    assert "open-sesame-7" not in warning
    assert_untouched(airflow)


def test_all_partitions_are_logged(
    airflow_v2: Airflow, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "off")
    airflow_v2.database.add_dag(DAG)
    tags = of_range("2025-02-03", "2025-02-05")
    executed = materialize(airflow_v2.client, {DAG: declare()}, instance, tags=tags)
    assert len([line for line in executed.log if line.startswith("Nothing is triggered")]) == 3
    assert_untouched(airflow_v2)


@pytest.mark.parametrize("value", ["1"])
def test_nothing_is_triggered_from_a_branch_deployment(
    airflow_v2: Airflow,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    value: str,
) -> None:
    monkeypatch.setenv(BRANCH, value)
    executed = run_dag(airflow_v2, instance)
    assert (executed.success, executed.materialized) == (True, [])
    assert any("this is a branch deployment" in line for line in executed.log)
    assert_untouched(airflow_v2)


def test_a_branch_deployment_triggers_if_triggers_are_on(
    airflow_v2: Airflow, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BRANCH, "1")
    monkeypatch.setenv(SWITCH, "on")
    assert run_dag(airflow_v2, instance).materialized == [DAG]


def test_what_is_no_branch_deployment_triggers(
    airflow_v2: Airflow, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BRANCH, "0")
    assert run_dag(airflow_v2, instance).materialized == [DAG]


def test_a_value_that_is_neither_on_nor_off_is_an_error(
    airflow_v2: Airflow, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "maybe")
    executed = run_dag(airflow_v2, instance)
    assert "FEDERATION_TRIGGERS is 'maybe': write on or off." in (executed.failure or "")
    assert not any("retry" in line for line in executed.log)
    assert_untouched(airflow_v2)


def test_nothing_is_cleared_by_a_re_execution(
    airflow_v2: Airflow, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0, outcome="failed")
    job = DagsterJob(airflow_v2.client, [DAG], instance)
    first = job.execute()
    monkeypatch.setenv(SWITCH, "off")
    requests = airflow_v2.server.count("POST", ".*")
    job.execute(first)
    (run,) = airflow_v2.database.runs
    assert (run.state, run.tasks[-1].try_number) == ("failed", 1)
    assert airflow_v2.server.count("POST", "/dags/.*") == 1 <= requests


def test_runs_that_others_started_are_observed_nevertheless(
    airflow_v2: Airflow, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BRANCH, "1")
    airflow_v2.database.add_dag(DAG, polls=0)
    run = airflow_v2.database.start_run(DAG)
    assert Daemon(airflow_v2.client, [DAG], instance).tick() == [run.run_id]
