"""The job that refreshes states, on the code server's side and in its run workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.definitions_load_context import (
    DefinitionsLoadContext,
    DefinitionsLoadType,
)

from federation_defs.naming import (
    REFRESH_JOB_NAME,
    STATE_CHECK_NAME,
    build_asset_key,
    build_check_key,
    build_state_asset_key,
)
from tests.contract.clients import SIGN_INS
from tests.contract.fakes.airflow import FakeAirflow, asks
from tests.contract.fakes.faults import answer
from tests.contract.test_run_worker import ASSET_JOB, CodeServer
from tests.unit.project import Project

# Dagster 1.13 itself uses deprecated functions of pydantic.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

VERSIONED = {"defs_state": {"management_type": "VERSIONED_STATE_STORAGE"}}


class Deployment:
    """A code location whose instances have versioned states."""

    def __init__(self, project: Project, instance: dg.DagsterInstance) -> None:
        self.project = project
        self.instance = instance
        self.code_server: CodeServer

    def load(self) -> dg.RepositoryDefinition:
        """Start the code server, or reload it."""
        DefinitionsLoadContext.set(DefinitionsLoadContext(DefinitionsLoadType.INITIALIZATION))
        self.code_server = CodeServer(self.project)
        return self.code_server.repository

    def refresh(self, *names: str) -> dg.JobExecutionResult:
        """Run the job in a worker, for all instances, or execute the checks of some."""
        repository = self.code_server.start_worker()
        job = repository.get_reconstructable_job(ASSET_JOB if names else REFRESH_JOB_NAME)
        if names:
            keys = {
                build_check_key(build_state_asset_key(name), STATE_CHECK_NAME) for name in names
            }
            job = job.get_subset(asset_selection=frozenset(), asset_check_selection=keys)
        return dg.execute_job(job, self.instance, raise_on_error=False)

    def check(self, name: str) -> tuple[bool, str]:
        """Refresh all, and return what the check of an instance says."""
        return find_evaluation(self.refresh(), name)

    def find_versions(self) -> dict[str, str]:
        storage: Any = self.instance.defs_state_storage
        info = storage.get_latest_defs_state_info()
        return {key: each.version for key, each in info.info_mapping.items()} if info else {}


def find_evaluation(result: dg.JobExecutionResult, name: str) -> tuple[bool, str]:
    (evaluation,) = (
        evaluation
        for evaluation in result.get_asset_check_evaluations()
        if evaluation.asset_key == build_state_asset_key(name)
    )
    assert evaluation.check_name == STATE_CHECK_NAME
    return evaluation.passed, evaluation.description or ""


def find_dags(repository: dg.RepositoryDefinition, name: str) -> set[str]:
    keys = repository.asset_graph.get_all_asset_keys()
    return {key.path[2] for key in keys if key.path[:2] == [name, "dag"]}


def find_failures(result: dg.JobExecutionResult) -> Sequence[str]:
    return [
        event.step_failure_data.error.to_string()
        for event in result.all_events
        if event.is_step_failure and event.step_failure_data.error
    ]


@pytest.fixture
def deployment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance
) -> Deployment:
    monkeypatch.syspath_prepend(tmp_path)
    return Deployment(Project(tmp_path, f"project_of_{tmp_path.name}"), instance)


@pytest.fixture
def sales(deployment: Deployment) -> Iterator[FakeAirflow]:
    """An Airflow with a DAG, which is declared and was never reached."""
    with FakeAirflow("v2") as server:
        server.database.add_dag("load")
        deployment.project.declare("sales", server.url, SIGN_INS["v2"], VERSIONED)
        yield server


@pytest.mark.usefixtures("sales")
def test_a_load_after_a_refresh_has_the_dags_of_the_airflow(deployment: Deployment) -> None:
    assert find_dags(deployment.load(), "sales") == set()
    passed, said = deployment.check("sales")
    assert not passed
    assert said.startswith("New: load. Reload the code location")
    assert find_dags(deployment.load(), "sales") == {"load"}
    assert deployment.check("sales") == (True, "The code location knows all 1 DAGs.")


def test_the_check_names_dags_that_are_new_or_gone_until_a_load_knows_them(
    deployment: Deployment, sales: FakeAirflow
) -> None:
    deployment.load()
    deployment.refresh()
    deployment.load()
    sales.database.add_dag("publish")
    sales.database.dags.pop("load")
    for _ in range(2):
        passed, said = deployment.check("sales")
        assert not passed
        assert said.startswith("New: publish. Gone: load. Reload the code location; until then it")
    assert find_dags(deployment.load(), "sales") == {"publish"}
    assert deployment.check("sales")[0]


def test_where_a_dag_that_has_gone_is_named_is_said(
    deployment: Deployment, sales: FakeAirflow
) -> None:
    deployment.project.declare("metrics", report=["sales/load"])
    deployment.load()
    deployment.refresh()
    sales.database.add_dag("publish")
    sales.database.dags.pop("load")
    _, said = deployment.check("sales")
    assert "metrics/defs.yaml: dags.report.depends_on: Airflow 'sales' has no DAG 'load'" in said


def test_a_state_is_stored_only_if_it_has_changed(
    deployment: Deployment, sales: FakeAirflow
) -> None:
    deployment.load()
    deployment.refresh()
    first = deployment.find_versions()
    deployment.refresh()
    assert deployment.find_versions() == first
    sales.database.dags["load"].is_paused = True
    deployment.load()
    assert deployment.check("sales")[0]  # the DAGs are the same
    assert deployment.find_versions() != first


def test_an_airflow_that_is_down_keeps_its_state_and_no_other_from_being_refreshed(
    deployment: Deployment, sales: FakeAirflow
) -> None:
    with FakeAirflow("v1") as server:
        server.database.add_dag("load_orders")
        deployment.project.declare("down", server.url, SIGN_INS["v1"], VERSIONED)
        deployment.load()
        deployment.refresh()
    repository = deployment.load()
    assert find_dags(repository, "down") == {"load_orders"}
    before = deployment.find_versions()
    sales.database.add_dag("publish")
    result = deployment.refresh()
    assert not result.success
    (failure,) = find_failures(result)
    assert f"Airflow 'down' did not answer at {server.url}" in failure
    assert "Its state stays as it is." in failure
    assert "New: publish." in find_evaluation(result, "sales")[1]
    changed = {key for key, version in deployment.find_versions().items() if version != before[key]}
    assert changed == {"FederatedAirflow[sales]"}
    assert find_dags(deployment.load(), "down") == {"load_orders"}


@pytest.mark.usefixtures("sales")
def test_executing_one_check_refreshes_one_instance(deployment: Deployment) -> None:
    with FakeAirflow("v1") as other:
        deployment.project.declare("other", other.url, SIGN_INS["v1"], VERSIONED)
        deployment.load()
        asked = other.count("GET", "/dags")
        assert deployment.refresh("sales").success
        assert other.count("GET", "/dags") == asked
    assert list(deployment.find_versions()) == ["FederatedAirflow[sales]"]


@pytest.mark.usefixtures("sales")
def test_a_state_that_can_not_be_read_is_replaced(deployment: Deployment, tmp_path: Path) -> None:
    deployment.load()
    deployment.refresh()
    first = deployment.find_versions()
    (stored,) = tmp_path.rglob(first["FederatedAirflow[sales]"])
    stored.write_text("{")
    deployment.refresh()
    assert deployment.find_versions() != first


@pytest.mark.usefixtures("sales")
def test_a_version_that_was_lost_is_no_state_and_the_job_replaces_it(
    deployment: Deployment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deployment.load()
    deployment.refresh()
    first = deployment.find_versions()
    (stored,) = tmp_path.rglob(first["FederatedAirflow[sales]"])
    stored.unlink()
    assert find_dags(deployment.load(), "sales") == set()
    assert "The state of Airflow 'sales' can't be read or written: No state found" in caplog.text
    assert "Using the declared DAGs." in caplog.text
    passed, said = deployment.check("sales")
    assert not passed
    assert said.startswith("New: load.")
    assert deployment.find_versions() != first
    assert find_dags(deployment.load(), "sales") == {"load"}


@pytest.mark.usefixtures("sales")
def test_a_lost_version_is_an_error_where_warnings_are(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.load()
    deployment.refresh()
    (stored,) = tmp_path.rglob(deployment.find_versions()["FederatedAirflow[sales]"])
    stored.unlink()
    monkeypatch.setenv("FEDERATION_STRICT", "true")
    with pytest.raises(Exception, match="sales") as caught:
        deployment.load()
    assert "No state found" in str(caught.value.__cause__)


def test_an_instance_without_versioned_state_has_no_job(deployment: Deployment) -> None:
    deployment.project.declare("sales")
    repository = deployment.load()
    assert REFRESH_JOB_NAME not in repository.job_names
    assert not repository.has_schedule_def(f"{REFRESH_JOB_NAME}_schedule")
    assert build_state_asset_key("sales") not in repository.asset_graph.get_all_asset_keys()


@pytest.mark.usefixtures("sales")
def test_the_job_is_on_a_schedule(deployment: Deployment) -> None:
    schedule = deployment.load().get_schedule_def(f"{REFRESH_JOB_NAME}_schedule")
    assert schedule.cron_schedule == "17 * * * *"
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING


def test_what_the_account_may_not_see_is_told_and_loses_no_dag(
    deployment: Deployment, sales: FakeAirflow
) -> None:
    deployment.load()
    deployment.refresh()
    before = deployment.find_versions()
    sales.fail_next(asks("GET", "/dags"), answer(403))
    result = deployment.refresh()
    assert "Airflow 'sales' forbids GET /api/v2/dags" in "".join(find_failures(result))
    assert deployment.find_versions() == before
    repository = deployment.load()
    assert build_asset_key("sales", "load") in repository.asset_graph.get_all_asset_keys()
