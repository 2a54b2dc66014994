"""The asset check `dag_run`, when a person executes it: Airflow is asked for the last run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone

import dagster as dg
import pytest

from federation_defs.airflow.client import AirflowClient
from federation_defs.checks import build_check_specs, build_checks
from federation_defs.dagster_io.event_log import fetch_last_evaluations
from federation_defs.declaration import (
    DagDeclaration,
    DeadlineDeclaration,
    SuccessDeclaration,
)
from federation_defs.events import build_deadline_check
from federation_defs.naming import build_asset_key, build_check_key
from tests.contract.conftest import Airflow
from tests.contract.execution.executing import build_assets
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.database import Database
from tests.contract.fakes.faults import answer
from tests.contract.observation.daemon import (
    DAG,
    KEY,
    Daemon,
    fetch_evaluations,
    fetch_reported_run_ids,
)

LOAD = SuccessDeclaration(tasks=["load"])


def execute(
    client: AirflowClient,
    definitions: Sequence[dg.AssetSpec | dg.AssetsDefinition],
    checks: Sequence[dg.AssetChecksDefinition],
    dag_ids: Sequence[str],
    instance: dg.DagsterInstance,
) -> dg.ExecuteInProcessResult:
    """The checks of some DAGs, executed alone."""
    keys = [build_check_key(build_asset_key(client.instance, dag_id)) for dag_id in dag_ids]
    selection = dg.AssetSelection.checks(*keys)
    job = dg.define_asset_job("checks", selection, executor_def=dg.in_process_executor)
    defs = dg.Definitions(assets=definitions, asset_checks=checks, jobs=[job])
    resolved = defs.resolve_job_def("checks")
    return resolved.execute_in_process(instance=instance, raise_on_error=False)


def check(
    client: AirflowClient,
    dags: Sequence[str] | Mapping[str, SuccessDeclaration | None],
    instance: dg.DagsterInstance,
    selected: Sequence[str] | None = None,
) -> dg.ExecuteInProcessResult:
    """The checks of DAGs that Dagster does not run itself: those selected, or all."""
    rules = dags if isinstance(dags, Mapping) else dict.fromkeys(dags)
    specs = [dg.AssetSpec(build_asset_key(client.instance, dag_id)) for dag_id in rules]
    declared = {dag_id: DagDeclaration(success_when=rule) for dag_id, rule in rules.items()}
    checks = [build_checks(client, declared)]
    return execute(client, specs, checks, selected or list(rules), instance)


def read_outcomes(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    """By DAG id."""
    found = result.get_asset_check_evaluations()
    return {one.asset_key.path[-1]: one.passed for one in found}


def read_failure(result: dg.ExecuteInProcessResult) -> str:
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data is not None
    return failure.user_failure_data.description or ""


def add_run(database: Database, dag_id: str, run_id: str, state: str = "success") -> None:
    if dag_id not in database.dags:
        database.add_dag(dag_id)
    database.finish_run(database.start_run(dag_id, run_id), state)


@pytest.mark.parametrize(("state", "passed"), [("success", True), ("failed", False)])
def test_the_check_evaluates_the_run_that_ended_last(
    airflow: Airflow, instance: dg.DagsterInstance, state: str, *, passed: bool
) -> None:
    database = airflow.database
    add_run(database, DAG, "last", state)
    before = database.start_run(DAG, "made later, ended earlier")
    ended = database.now() - timedelta(minutes=5)
    database.finish_run(before, "success" if state == "failed" else "failed", end_date=ended)
    database.start_run(DAG, "goes on")
    result = check(airflow.client, [DAG], instance)
    assert (result.success, read_outcomes(result)) == (True, {DAG: passed})
    (evaluation,) = fetch_evaluations(instance, KEY)
    assert evaluation.metadata["Run ID"].value == "last"
    assert evaluation.metadata["Link to run"].value == airflow.client.build_run_url(DAG, "last")
    if not passed:
        assert evaluation.description == "Run last failed. Failed tasks: load."
        log = str(evaluation.metadata["Log of load"].value)
        assert "ValueError: load could not read its table" in log


def test_the_check_goes_by_success_when(airflow_v2: Airflow, instance: dg.DagsterInstance) -> None:
    add_run(airflow_v2.database, DAG, "mine")
    airflow_v2.database.runs[0].tasks[-1].state = "failed"
    result = check(airflow_v2.client, {DAG: LOAD}, instance)
    assert read_outcomes(result) == {DAG: False}
    (evaluation,) = fetch_evaluations(instance, KEY)
    assert "By its `success_when` it is not a success: load is failed." in (
        evaluation.description or ""
    )
    assert "Log of load" in evaluation.metadata


def test_a_dag_of_which_no_run_ended_has_no_evaluation(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG)
    airflow.database.start_run(DAG, "goes on")
    result = check(airflow.client, [DAG], instance)
    assert (result.success, read_outcomes(result)) == (True, {})
    assert fetch_evaluations(instance, KEY) == []


def test_the_check_of_a_missing_dag_fails_and_no_other(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    for dag_id in ("a", "its_file_has_gone", "z"):
        add_run(airflow.database, dag_id, "mine")
    airflow.database.dags["its_file_has_gone"].is_present = False
    result = check(airflow.client, ["a", "its_file_has_gone", "never_was", "z"], instance)
    assert result.success
    outcomes = {"a": True, "its_file_has_gone": False, "never_was": False, "z": True}
    assert read_outcomes(result) == outcomes
    (evaluation,) = fetch_evaluations(instance, build_asset_key("metrics", "never_was"))
    assert "Airflow 'metrics' has no DAG 'never_was' (404)" in (evaluation.description or "")


def test_a_dag_that_may_not_be_read_fails_the_run_and_no_other_check(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    for dag_id in ("a", "z"):
        add_run(airflow_v2.database, dag_id, "mine")
    forbidden = answer(403, {"detail": "Forbidden"})
    airflow_v2.server.fail_next(asks("GET", "/dags/a/dagRuns"), forbidden)
    result = check(airflow_v2.client, ["a", "z"], instance)
    assert (result.success, read_outcomes(result)) == (False, {"z": True})
    assert "Airflow 'metrics' forbids GET /api/v2/dags/a/dagRuns" in read_failure(result)


def test_an_unreachable_instance_fails_the_run_with_our_error(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    add_run(airflow_v2.database, DAG, "mine")
    airflow_v2.server.stop()
    result = check(airflow_v2.client, [DAG], instance)
    assert (result.success, read_outcomes(result)) == (False, {})
    url = airflow_v2.client.url
    assert read_failure(result).startswith(f"Airflow 'metrics' gave no usable answer at {url} (")


def test_only_the_selected_checks_are_executed(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    for dag_id in ("a", "b", "c"):
        add_run(airflow_v2.database, dag_id, "mine")
    result = check(airflow_v2.client, ["a", "b", "c"], instance, ["b"])
    assert read_outcomes(result) == {"b": True}
    assert airflow_v2.server.count("GET", "/dags/[ac]/.*") == 0


def test_dags_whose_ids_differ_only_in_a_sign_have_a_check_each(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    ids = {"über.a-b": "success", "über.a.b": "failed", "über_a_b": "success", "数.a": "failed"}
    for dag_id, state in ids.items():
        add_run(airflow.database, dag_id, "mine", state)
    result = check(airflow.client, list(ids), instance)
    assert result.success
    assert read_outcomes(result) == {dag_id: state == "success" for dag_id, state in ids.items()}
    alone = check(airflow.client, list(ids), instance, ["über.a.b"])
    assert read_outcomes(alone) == {"über.a.b": False}


@pytest.mark.parametrize("dag_id", [DAG, "über.a-b"])
def test_the_check_of_a_dag_with_dependencies_is_executed_without_triggering_it(
    airflow: Airflow, instance: dg.DagsterInstance, dag_id: str
) -> None:
    add_run(airflow.database, dag_id, "mine", "failed")
    airflow.database.add_dag("other")
    assets = [build_assets(airflow.client, {dag_id: {}, "other": {}})]
    result = execute(airflow.client, assets, [], [dag_id], instance)
    assert (result.success, read_outcomes(result)) == (True, {dag_id: False})
    assert airflow.server.count("POST", "/dags/.*") == 0
    assert len(airflow.database.runs) == 1
    assert fetch_reported_run_ids(instance, build_asset_key("metrics", dag_id)) == []


def test_a_check_that_can_not_be_evaluated_keeps_no_dag_from_running(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    airflow_v2.database.add_dag("secret")
    airflow_v2.server.fail_next(asks("GET", "/dags/secret"), answer(403, {"detail": "Forbidden"}))
    assets = build_assets(airflow_v2.client, {DAG: {}, "secret": {}})
    secret = build_check_key(build_asset_key("metrics", "secret"))
    selection = dg.AssetSelection.assets(KEY) | dg.AssetSelection.checks(secret)
    job = dg.define_asset_job("both", selection, executor_def=dg.in_process_executor)
    resolved = dg.Definitions(assets=[assets], jobs=[job]).resolve_job_def("both")
    result = resolved.execute_in_process(instance=instance, raise_on_error=False)
    assert "Airflow 'metrics' forbids GET /api/v2/dags/secret" in read_failure(result)
    assert len(fetch_reported_run_ids(instance, KEY)) == len(airflow_v2.database.runs) == 1


def test_the_check_of_a_dag_with_dependencies_goes_by_its_rule(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, tasks=("load", "clean_up"))
    add_run(airflow_v2.database, DAG, "mine", "failed")
    dags = {DAG: {"success_when": {"tasks": ["load"]}}}
    assets = [build_assets(airflow_v2.client, dags)]
    result = execute(airflow_v2.client, assets, [], [DAG], instance)
    assert read_outcomes(result) == {DAG: True}


@pytest.mark.parametrize("state", ["success", "failed"])
def test_executing_a_check_does_not_count_as_a_report_of_the_run(
    airflow: Airflow, instance: dg.DagsterInstance, state: str
) -> None:
    add_run(airflow.database, DAG, "mine", state)
    check(airflow.client, [DAG], instance)
    daemon = Daemon(airflow.client, [DAG], instance)
    assert daemon.tick() == (["mine"] if state == "success" else [])
    evaluations = fetch_evaluations(instance, KEY)
    assert [evaluation.passed for evaluation in evaluations] == [state == "success"] * 2
    assert daemon.tick() == []
    assert len(fetch_evaluations(instance, KEY)) == 2


def execute_all(
    client: AirflowClient, dag: DagDeclaration, instance: dg.DagsterInstance
) -> dict[str, bool]:
    """Execute all checks of a DAG that Dagster does not run itself. By name."""
    spec = dg.AssetSpec(KEY)
    job = dg.define_asset_job(
        "checks", dg.AssetSelection.checks_for_assets(KEY), executor_def=dg.in_process_executor
    )
    defs = dg.Definitions(
        assets=[spec], asset_checks=[build_checks(client, {DAG: dag})], jobs=[job]
    )
    result = defs.resolve_job_def("checks").execute_in_process(instance=instance)
    return {one.check_name: one.passed for one in result.get_asset_check_evaluations()}


def test_max_duration_is_evaluated_for_a_run_that_goes_on_or_else_the_last_one(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    declared = DagDeclaration(max_duration=3600)
    add_run(airflow.database, DAG, "quick")
    assert execute_all(airflow.client, declared, instance) == {
        "dag_run": True,
        "max_duration": True,
    }
    running = airflow.database.start_run(DAG, "goes on")
    running.start_date = airflow.database.now() - timedelta(hours=2)
    assert execute_all(airflow.client, declared, instance)["max_duration"] is False


def test_deadline_is_evaluated_by_what_was_reported(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    deadline = DeadlineDeclaration(cron="* * * * *", within=60)
    add_run(airflow_v2.database, DAG, "mine")
    declared = DagDeclaration(deadline=deadline)
    assert execute_all(airflow_v2.client, declared, instance) == {"dag_run": True}
    now = datetime.now(timezone.utc)
    missed = build_deadline_check("metrics", DAG, now, deadline.window, ())
    instance.report_runless_asset_event(missed)
    assert execute_all(airflow_v2.client, declared, instance)["deadline"] is False
    Daemon(airflow_v2.client, [DAG], instance).tick()
    assert execute_all(airflow_v2.client, declared, instance)["deadline"] is True


def test_what_sensors_have_evaluated_is_shown_again_when_dagster_runs_the_dag(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """Dagster plans all checks of an asset that it runs, and shows no earlier evaluation then."""
    airflow_v2.database.add_dag(DAG, polls=0)
    declared = {
        "depends_on": ["sales/x"],
        "trigger": {"only_if": "rules:decide"},
        "deadline": {"cron": "0 6 * * *", "within": "1h"},
        "max_duration": "1h",
    }
    names = ["deadline", "max_duration", "only_if", "ready"]
    for name in names:
        instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=KEY, check_name=name, passed=False, description=f"Of {name}."
            )
        )
    assets = build_assets(airflow_v2.client, {DAG: declared})
    assert dg.materialize([assets], instance=instance).success
    keys = [dg.AssetCheckKey(KEY, name) for name in names]
    shown = fetch_last_evaluations(instance, keys)
    assert {key.name: shown[key].description for key in shown} == {
        name: f"Of {name}." for name in names
    }


def test_only_sensors_evaluate_ready_and_only_if(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    add_run(airflow_v2.database, DAG, "mine")
    values = {"depends_on": ["sales/x"], "trigger": {"only_if": "rules:decide"}}
    declared = DagDeclaration.model_validate(values)
    specs = build_check_specs("metrics", DAG, declared)
    assert [spec.name for spec in specs] == ["dag_run", "only_if", "ready"]
    assert execute_all(airflow_v2.client, declared, instance) == {"dag_run": True}
