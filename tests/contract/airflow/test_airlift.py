"""dagster-airlift's public functions over our instance, on real Airflows of both versions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import dagster as dg
import pytest
from dagster_airlift.core import (
    AirflowInstance,
    build_defs_from_airflow_instance,
    load_airflow_dag_asset_specs,
)
from dagster_airlift.core.runtime_representations import TaskInstance

from federation_defs import DeclarationError, build_airflow_instance
from federation_defs.airlift import ClientInstance
from federation_defs.errors import (
    AirflowError,
    PermissionMissingError,
    SignInRefusedError,
    TriggersOffError,
    UnexpectedAnswerError,
)
from tests.contract.clients import call_within
from tests.contract.conftest import Airflow
from tests.contract.fakes.airflow import PASSWORD, USERNAME, asks
from tests.contract.fakes.faults import Fault, answer
from tests.contract.worlds import RealWorld, find_finished_run, pausing, run_dag


@pytest.fixture
def airlift(real_world: RealWorld) -> ClientInstance:
    return ClientInstance(real_world.client)


def tick(
    sensor: dg.SensorDefinition, defs: dg.Definitions, instance: dg.DagsterInstance
) -> list[tuple[dg.AssetKey, str]]:
    """Key and Airflow run id of what one evaluation of airlift's sensor reports."""
    context = dg.build_sensor_context(
        instance=instance, repository_def=defs.get_repository_def(), cursor=None
    )
    result = sensor(context)
    assert isinstance(result, dg.SensorResult)
    events = result.asset_events
    return [
        (event.asset_key, str(event.metadata["Airflow Run ID"].value))
        for event in events
        if isinstance(event, dg.AssetMaterialization)
    ]


def test_specs_are_loaded_with_the_source_of_the_dags(
    airlift: ClientInstance, real_world: RealWorld
) -> None:
    specs = load_airflow_dag_asset_specs(airlift, source_code_retrieval_enabled=True)
    by_key = {spec.key: spec for spec in specs}
    assert len(by_key) == len(real_world.client.fetch_dags())
    spec = by_key[dg.AssetKey([airlift.name, "dag", real_world.dag_id])]
    assert f"def {real_world.dag_id}" in str(spec.metadata["Source Code"])


def test_whole_definitions_are_built_and_their_sensor_reports_a_run(
    airlift: ClientInstance, real_world: RealWorld, instance: dg.DagsterInstance
) -> None:
    defs = build_defs_from_airflow_instance(
        airflow_instance=airlift, dag_selector_fn=lambda dag: dag.dag_id == real_world.dag_id
    )
    run = run_dag(real_world)
    (sensor,) = list(defs.sensors or ())
    assert isinstance(sensor, dg.SensorDefinition)
    reported = tick(sensor, defs, instance)
    assert (dg.AssetKey([airlift.name, "dag", real_world.dag_id]), run.run_id) in reported


def test_a_run_is_triggered_waited_for_and_deleted(
    airlift: ClientInstance, real_world: RealWorld
) -> None:
    run_id = airlift.trigger_dag(real_world.dag_id)
    airlift.wait_for_run_completion(real_world.dag_id, run_id, timeout=240)
    assert airlift.get_run_state(real_world.dag_id, run_id) == "success"
    run = airlift.get_dag_run(real_world.dag_id, run_id)
    assert run.start_date <= run.end_date
    assert run.logical_date.tzinfo is not None
    assert run.url.startswith(real_world.client.url)
    airlift.delete_run(real_world.dag_id, run_id)
    assert real_world.client.fetch_run(real_world.dag_id, run_id) is None


def test_the_tasks_of_a_run_have_their_logs(airlift: ClientInstance, real_world: RealWorld) -> None:
    run = find_finished_run(real_world)
    infos = airlift.get_task_infos(dag_id=real_world.dag_id)
    task_ids = [info.task_id for info in infos]
    assert airlift.get_task_info(dag_id=real_world.dag_id, task_id=task_ids[0]) in infos
    tasks = airlift.get_task_instance_batch(real_world.dag_id, task_ids, run.run_id, ["success"])
    assert {task.task_id for task in tasks} == set(task_ids)
    (load,) = [task for task in tasks if task.task_id == "load"]
    assert airlift.get_task_instance(real_world.dag_id, load.task_id, run.run_id) == load
    hour = timedelta(hours=1)
    assert run.start_date is not None
    recent = airlift.get_task_instance_batch_time_range(
        [real_world.dag_id], ["success"], run.start_date - hour, run.start_date + hour
    )
    assert load in recent
    log = airlift.get_task_instance_logs(
        real_world.dag_id, load.task_id, run.run_id, load.try_number
    )
    assert load.task_id in log


def test_a_paused_dag_is_unpaused(airlift: ClientInstance, real_world: RealWorld) -> None:
    with pausing(real_world):
        airlift.unpause_dag(real_world.dag_id)
        assert not real_world.client.fetch_dag(real_world.dag_id).is_paused


def test_the_session_sends_other_requests_too(airlift: ClientInstance) -> None:
    session = airlift.auth_backend.get_session()
    pools = session.get(f"{airlift.get_api_url()}/pools", params={"limit": 1}).json()["pools"]
    assert [pool["name"] for pool in pools] == ["default_pool"]


def test_runs_of_no_dag_are_none(airlift: ClientInstance) -> None:
    """To the API an empty list of DAGs means all of them."""
    assert airlift.get_dag_runs_batch([]) == ([], 0)


def test_the_credentials_go_to_no_other_host(airflow: Airflow) -> None:
    session = ClientInstance(airflow.client).auth_backend.get_session()
    with pytest.raises(ValueError, match="is not below"):
        session.get(f"{airflow.server.url}.example.com/api/v2/pools")


def test_an_argument_that_is_not_passed_on_is_an_error(airflow: Airflow) -> None:
    session = ClientInstance(airflow.client).auth_backend.get_session()
    url = f"{airflow.server.url}/api/{airflow.server.api}/pools"
    dropped: list[dict[str, Any]] = [
        {"data": "{}"},
        {"headers": {"X-Team": "sales"}},
        {"auth": ("me", "pw")},
    ]
    for more in dropped:
        with pytest.raises(TypeError, match="only params, json and an Accept header"):
            session.request("POST", url, **more)
    assert airflow.server.requests == []


def test_an_error_is_the_clients_own(airflow: Airflow) -> None:
    airflow.server.password = "another"
    airflow.server.change_secret()
    with pytest.raises(
        (SignInRefusedError, PermissionMissingError), match="Check METRICS_PASSWORD"
    ):
        load_airflow_dag_asset_specs(ClientInstance(airflow.client))


@pytest.mark.parametrize("status", [400, 403, 404, 405, 409, 418, 422, 429, 500, 503])
def test_an_error_hides_the_secrets_of_any_conf_that_was_sent(
    airflow: Airflow, status: int
) -> None:
    """Also if the request is not one of the client's own."""
    airflow.database.add_dag("a")
    airflow.client.fetch_dags()
    session = ClientInstance(airflow.client).auth_backend.get_session()
    url = f"{airflow.server.url}/api/{airflow.server.api}/dags/a/dagRuns"
    echo = {"detail": "refused {'password': 'hunter22', 'rows': 5}"}
    if airflow.server.api == "v1":
        echo |= {"title": "refused"}
    airflow.server.fail_next(asks("POST", ".*"), answer(status, echo))
    with pytest.raises(AirflowError) as error:
        session.post(url, json={"conf": {"db": {"password": "hunter22"}, "rows": 5}})
    assert "{'password': '***', 'rows': 5}" in str(error.value)


SAFE_MODES = {
    "FEDERATION_TRIGGERS": ("off", "FEDERATION_TRIGGERS is 'off'"),
    "DAGSTER_CLOUD_IS_BRANCH_DEPLOYMENT": ("1", "this is a branch deployment"),
}


@pytest.mark.parametrize("variable", SAFE_MODES)
def test_nothing_is_triggered_in_safe_mode(
    airflow: Airflow, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    airflow.database.add_dag("a")
    airlift = ClientInstance(airflow.client)
    value, reason = SAFE_MODES[variable]
    monkeypatch.setenv(variable, value)
    with pytest.raises(TriggersOffError, match=f"was not asked to run DAG 'a', because {reason}"):
        airlift.trigger_dag("a")
    assert airflow.server.count("POST", ".*dagRuns") == 0
    monkeypatch.setenv("FEDERATION_TRIGGERS", "on")
    assert airlift.trigger_dag("a") == airflow.database.runs[0].run_id


CHANGES: dict[str, Callable[[ClientInstance], Any]] = {
    "unpause": lambda airlift: airlift.unpause_dag("a"),
    "delete": lambda airlift: airlift.delete_run("a", "mine"),
    "post": lambda airlift: airlift.auth_backend.get_session().post(
        f"{airlift.get_api_url()}/dags/a/dagRuns", json={}
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_nothing_is_changed_in_safe_mode(
    airflow: Airflow, change: Callable[[ClientInstance], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    airflow.database.add_dag("a")
    airlift = ClientInstance(airflow.client)
    monkeypatch.setenv("FEDERATION_TRIGGERS", "off")
    with pytest.raises(TriggersOffError, match=r"was not asked to answer \w+ /api/v\d/dags"):
        change(airlift)
    assert {request.method for request in airflow.server.requests} <= {"GET"}


def list_tasks(airflow: Airflow, fault: Fault) -> list[TaskInstance]:
    run = airflow.database.start_run(airflow.database.add_dag("a").dag_id, "mine")
    airflow.database.finish_run(run)
    airflow.client.fetch_dags()
    airflow.server.fail_next(asks("POST", ".*/list"), fault, times=20)
    airlift = ClientInstance(airflow.client)
    return call_within(10, lambda: airlift.get_task_instance_batch("a", ["t"], "mine", ["success"]))


def test_tasks_are_listed_in_safe_mode(airflow: Airflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDERATION_TRIGGERS", "off")
    assert list_tasks(airflow, answer(200, {"task_instances": [], "total_entries": 1e300})) == []


def test_tasks_that_repeat_at_each_offset_are_an_error(airflow: Airflow) -> None:
    task = {"dag_id": "a", "dag_run_id": "mine", "task_id": "t", "state": "success"}
    repeated = answer(200, {"task_instances": [task], "total_entries": 10**18})
    with pytest.raises(UnexpectedAnswerError, match="the same `task_instances` at each offset"):
        list_tasks(airflow, repeated)


def test_the_source_of_a_file_that_is_gone_is_an_error_that_says_so(airflow: Airflow) -> None:
    with pytest.raises(AirflowError, match="has no DAG whose file has the token"):
        ClientInstance(airflow.client).get_dag_source_code("token-of-a-file-that-is-gone")


def test_an_instance_is_built_from_the_keys_of_a_defs_yaml(airflow: Airflow) -> None:
    airflow.database.add_dag("load_customers")
    kind = {"v1": "basic", "v2": "password"}[airflow.server.api]
    auth = {"type": kind, "username": USERNAME, "password": PASSWORD}
    airlift = build_airflow_instance(name="metrics", url=airflow.server.url, auth=auth)
    assert isinstance(airlift, AirflowInstance)
    assert [dag.dag_id for dag in airlift.list_dags()] == ["load_customers"]


def test_an_instance_that_is_declared_wrongly_names_the_key() -> None:
    with pytest.raises(DeclarationError, match="unknown key 'uri'; did you mean 'url'"):
        build_airflow_instance(name="metrics", uri="http://127.0.0.1:1", auth={"type": "none"})


def test_sources_are_prefetched_in_parallel(
    airflow: Airflow,
) -> None:
    for number in range(100):
        airflow.database.add_dag(f"dag_{number:03}", source=f"# {number}")
    airlift = ClientInstance(airflow.client)
    tokens = [dag.file_token for dag in airlift.list_dags()]
    assert airlift.get_dag_source_code(tokens[7]) == "# 7"
    assert airflow.server.count("GET", "/dagSources/.*") == 1  # who asks for one gets one
    sources = [airlift.get_dag_source_code(token) for token in tokens]
    assert sources == [f"# {number}" for number in range(100)]
    connections = {
        a.connection for a in airflow.server.requests if a.path.startswith("/dagSources")
    }
    assert len(connections) > 1
