"""The job that refreshes states, on the code server's side and in its run workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import format_exception
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.definitions_load_context import (
    DefinitionsLoadContext,
    DefinitionsLoadType,
)
from dagster._core.errors import DagsterUserCodeLoadError
from dagster._core.execution.api import execute_run
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from werkzeug import Request, Response

from federation_defs import FederatedAirflow
from federation_defs.naming import (
    REFRESH_JOB_NAME,
    STATE_CHECK_NAME,
    build_asset_key,
    build_check_key,
    build_state_asset_key,
)
from federation_defs.refresh import build_refresh
from federation_defs.timing import Timing
from tests.contract.clients import SIGN_INS
from tests.contract.fakes.airflow import FakeAirflow, asks
from tests.contract.fakes.faults import answer
from tests.contract.fakes.proxies import serve
from tests.contract.test_run_worker import ASSET_JOB, CodeServer
from tests.unit.project import Project

# Dagster 1.13 itself uses deprecated functions of pydantic.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

REPOSITORY = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("core"), "__repository__")
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
        keys = {build_check_key(build_state_asset_key(name), STATE_CHECK_NAME) for name in names}
        if names:
            job = job.get_subset(asset_selection=frozenset(), asset_check_selection=keys)
        run = self.instance.create_run_for_job(
            job_def=job.get_definition(),
            remote_job_origin=RemoteJobOrigin(REPOSITORY, job.job_name),
            repository_load_data=repository.repository_load_data,
        )
        return execute_run(job, run, self.instance)

    def check(self, name: str) -> tuple[bool, str]:
        """Refresh all, and return whether the check of an instance passed, and what it says."""
        return find_evaluation(self.refresh(), name)

    def check_fails(self, name: str) -> str:
        """Refresh all, and return what the failed check of an instance says."""
        return find_failure(self.refresh(), name)

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


def find_failure(result: dg.JobExecutionResult, name: str) -> str:
    passed, description = find_evaluation(result, name)
    assert not passed
    return description


def find_dags(repository: dg.RepositoryDefinition, name: str) -> set[str]:
    keys = repository.asset_graph.get_all_asset_keys()
    return {key.path[2] for key in keys if key.path[:2] == [name, "dag"]}


def find_state_folder(deployment: Deployment, name: str) -> Path:
    """Find where Dagster keeps the versions of an instance's state."""
    storage: Any = deployment.instance.defs_state_storage
    return Path(str(storage.base_path), f"FederatedAirflow__{name}__")


@pytest.fixture
def deployment(project: Project, instance: dg.DagsterInstance) -> Deployment:
    return Deployment(project, instance)


@contextmanager
def declare_airflow(deployment: Deployment, name: str, api: str) -> Iterator[FakeAirflow]:
    """Start an Airflow, and declare it as an instance that was never reached."""
    with FakeAirflow(api) as server:
        deployment.project.declare(name, server.url, SIGN_INS[api], VERSIONED)
        yield server


@pytest.fixture
def sales(deployment: Deployment) -> Iterator[FakeAirflow]:
    """An Airflow with a DAG."""
    with declare_airflow(deployment, "sales", "v2") as server:
        server.database.add_dag("load")
        yield server


@pytest.fixture
def other(deployment: Deployment) -> Iterator[FakeAirflow]:
    """An Airflow without a DAG."""
    with declare_airflow(deployment, "other", "v1") as server:
        yield server


@pytest.mark.usefixtures("sales")
def test_a_load_after_a_refresh_has_the_dags_of_the_airflow(deployment: Deployment) -> None:
    assert find_dags(deployment.load(), "sales") == set()
    assert deployment.check_fails("sales").startswith("New: load. Reload the code location")
    assert find_dags(deployment.load(), "sales") == {"load"}
    assert deployment.check("sales") == (True, "The code location has all 1 DAGs.")


def test_the_check_names_dags_that_are_new_or_gone_until_a_load_knows_them(
    deployment: Deployment, sales: FakeAirflow
) -> None:
    deployment.load()
    deployment.refresh()
    deployment.load()
    sales.database.add_dag("publish")
    sales.database.dags.pop("load")
    for _ in range(2):
        assert deployment.check_fails("sales").startswith(
            "New: publish. Gone: load. Reload the code location; until then it"
        )
    assert find_dags(deployment.load(), "sales") == {"publish"}
    assert deployment.check("sales")[0]


def test_the_check_says_where_a_dag_that_is_gone_is_named(
    deployment: Deployment, sales: FakeAirflow
) -> None:
    deployment.project.declare("metrics", report=["sales/load"])
    deployment.load()
    deployment.refresh()
    sales.database.add_dag("publish")
    sales.database.dags.pop("load")
    description = deployment.check_fails("sales")
    assert (
        "metrics/defs.yaml: dags.report.depends_on: Airflow 'sales' has no DAG 'load'"
        in description
    )


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


@pytest.mark.usefixtures("sales")
def test_a_version_that_another_process_has_undone_is_the_last_one_again(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.load()
    storage: Any = deployment.instance.defs_state_storage
    store, undone = storage.set_latest_version, list[str]()

    def be_undone(key: str, version: str) -> None:
        """Another process writes what it has read before."""
        store(key, version)
        if not undone:
            undone.append(key)
            store(key, None)

    monkeypatch.setattr(storage, "set_latest_version", be_undone)
    deployment.refresh()
    assert undone == list(deployment.find_versions()) == ["FederatedAirflow[sales]"]
    assert find_dags(deployment.load(), "sales") == {"load"}


def test_an_airflow_that_is_down_keeps_its_state_and_no_other_from_being_refreshed(
    deployment: Deployment, sales: FakeAirflow
) -> None:
    with declare_airflow(deployment, "down", "v1") as server:
        server.database.add_dag("load_orders")
        deployment.load()
        deployment.refresh()
    repository = deployment.load()
    assert find_dags(repository, "down") == {"load_orders"}
    before = deployment.find_versions()
    sales.database.add_dag("publish")
    result = deployment.refresh()
    assert result.success
    description = find_failure(result, "down")
    assert f"Airflow 'down' gave no usable answer at {server.url}" in description
    assert description.endswith("Its state stays as it is.")
    assert "New: publish." in find_evaluation(result, "sales")[1]
    changed = {key for key, version in deployment.find_versions().items() if version != before[key]}
    assert changed == {"FederatedAirflow[sales]"}
    assert find_dags(deployment.load(), "down") == {"load_orders"}


@pytest.mark.usefixtures("sales", "other")
def test_an_unexpected_error_stops_the_refresh_of_one_instance(deployment: Deployment) -> None:
    deployment.load()
    # Its state can't be stored.
    folder = find_state_folder(deployment, "other")
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.touch()
    result = deployment.refresh()
    assert result.success
    description = find_failure(result, "other")
    assert description.startswith("Airflow 'other' can't be refreshed: FileExistsError(")
    assert find_evaluation(result, "sales")[1].startswith("New: load.")
    assert list(deployment.find_versions()) == ["FederatedAirflow[sales]"]


@pytest.mark.usefixtures("sales")
def test_the_check_of_an_airflow_that_answers_too_late_says_so(deployment: Deployment) -> None:
    deployment.load()
    tree = dg.ComponentTree.for_project(deployment.project.path)
    tree.build_defs(tree.defs_module_path)
    components = tree.get_all_components(FederatedAirflow)
    defs = build_refresh(components, "0 * * * *", Timing(refresh_s=0.0))
    job = defs.resolve_job_def(REFRESH_JOB_NAME)
    (evaluation,) = job.execute_in_process(
        instance=deployment.instance
    ).get_asset_check_evaluations()
    assert not evaluation.passed
    assert "can't be refreshed: TimeoutError('not read in 0 s')." in (evaluation.description or "")
    assert deployment.find_versions() == {}


@pytest.mark.usefixtures("sales")
def test_executing_one_check_refreshes_one_instance(
    deployment: Deployment, other: FakeAirflow
) -> None:
    deployment.load()
    requests = other.count("GET", "/dags")
    assert deployment.refresh("sales").success
    assert other.count("GET", "/dags") == requests
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
    assert deployment.check_fails("sales").startswith("New: load.")
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
    with pytest.raises(DagsterUserCodeLoadError) as caught:
        deployment.load()
    assert "ValueError: No state found" in "".join(format_exception(caught.value))


def test_an_instance_without_versioned_state_has_no_job(deployment: Deployment) -> None:
    deployment.project.declare("sales")
    repository = deployment.load()
    assert REFRESH_JOB_NAME not in repository.job_names
    assert not repository.has_schedule_def(f"{REFRESH_JOB_NAME}_schedule")
    assert build_state_asset_key("sales") not in repository.asset_graph.get_all_asset_keys()


@pytest.mark.usefixtures("sales")
def test_the_job_is_on_a_schedule(deployment: Deployment) -> None:
    schedule = deployment.load().get_schedule_def(f"{REFRESH_JOB_NAME}_schedule")
    minute, *rest = str(schedule.cron_schedule).split()
    assert 0 <= int(minute) < 60
    assert rest == ["*"] * 4
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    again = deployment.load().get_schedule_def(schedule.name)
    assert again.cron_schedule == schedule.cron_schedule


def test_two_projects_refresh_at_different_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    found = set[str]()
    for name in ("headquarters", "plant"):
        project = Project(tmp_path / name, f"minute_of_{name}")
        monkeypatch.syspath_prepend(project.path)
        project.declare("sales", more=VERSIONED)
        schedule = (
            Deployment(project, instance).load().get_schedule_def(f"{REFRESH_JOB_NAME}_schedule")
        )
        found.add(str(schedule.cron_schedule))
    assert len(found) == 2


@pytest.mark.usefixtures("sales")
def test_the_project_may_have_an_asset_called_state(deployment: Deployment) -> None:
    own = "import dagster as dg\n\n\n@dg.asset(key=['sales', 'state'])\ndef own() -> None: ...\n"
    (deployment.project.defs / "own.py").write_text(own)
    keys = deployment.load().asset_graph.get_all_asset_keys()
    assert {dg.AssetKey(["sales", "state"]), build_state_asset_key("sales")} <= keys


def test_what_the_account_may_not_see_is_reported_and_loses_no_dag(
    deployment: Deployment, sales: FakeAirflow
) -> None:
    deployment.load()
    deployment.refresh()
    before = deployment.find_versions()
    sales.fail_next(asks("GET", "/dags"), answer(403))
    assert deployment.check_fails("sales").startswith("Airflow 'sales' forbids GET /api/v2/dags")
    assert deployment.find_versions() == before
    repository = deployment.load()
    assert build_asset_key("sales", "load") in repository.asset_graph.get_all_asset_keys()


@pytest.fixture
def reloads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A webserver that says that it has reloaded a code location, and does nothing."""
    requests: list[str] = []
    entry = {"name": "core", "locationOrLoadError": {"__typename": "RepositoryLocation"}}
    said = {"data": {"reloadRepositoryLocation": {"__typename": "WorkspaceLocationEntry", **entry}}}

    def reload(environ: dict[str, Any], start_response: Any) -> Any:
        variables = Request(environ).get_json()["variables"]
        requests.append(variables["repositoryLocationName"])
        return Response(json.dumps(said), content_type="application/json")(environ, start_response)

    with serve(reload) as url:
        monkeypatch.setenv("FEDERATION_RELOAD_URL", url)
        yield requests


def test_a_reload_without_effect_is_found_out_whatever_else_changes(
    deployment: Deployment, sales: FakeAirflow, reloads: list[str]
) -> None:
    deployment.load()
    assert deployment.check("sales") == (True, "New: load. The code location was reloaded.")
    sales.database.add_dag("publish")
    for _ in range(2):
        assert deployment.check_fails("sales").startswith(
            "New: load, publish. Reload the code location;"
        )
        dag = sales.database.dags["load"]
        dag.is_paused = not dag.is_paused
    assert reloads == ["core"] * 3
    deployment.load()
    assert deployment.check("sales")[0]


def test_the_effect_of_a_reload_is_reported_for_each_instance(
    deployment: Deployment, sales: FakeAirflow, other: FakeAirflow, reloads: list[str]
) -> None:
    deployment.load()
    deployment.refresh("sales")  # and is not reloaded
    other.database.add_dag("load_orders")
    result = deployment.refresh()
    assert find_evaluation(result, "sales")[1].startswith("New: load. Reload the code location;")
    reloaded = "New: load_orders. The code location was reloaded."
    assert find_evaluation(result, "other") == (True, reloaded)
    assert sales.database.dags
    assert reloads == ["core"] * 2


def test_what_the_check_does_not_show_is_stored_and_reloads_nothing(
    deployment: Deployment, sales: FakeAirflow, reloads: list[str]
) -> None:
    deployment.load()
    deployment.refresh()
    deployment.load()
    before = deployment.find_versions()
    sales.database.dags["load"].is_paused = True
    assert deployment.check("sales") == (True, "The code location has all 1 DAGs.")
    assert deployment.find_versions() != before
    assert reloads == ["core"]


@pytest.mark.usefixtures("sales")
@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://me:pa/ss@webserver:3000", "a user name or password in the address can't be sent"),
        ("http://webserver:pa55", "the address is not in the form http://webserver:3000"),
        ("http://[::1", "the address is not in the form http://webserver:3000"),
        ("webserver:3000", "the address is not in the form http://webserver:3000"),
        ("http://127.0.0.1:1", "Connection refused"),
    ],
)
def test_a_reload_that_fails_is_reported_without_the_address(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, url: str, why: str
) -> None:
    monkeypatch.setenv("FEDERATION_RELOAD_URL", url)
    deployment.load()
    result = deployment.refresh()
    assert result.success
    description = find_failure(result, "sales")
    assert description.startswith("New: load. Reload the code location;")
    assert "The code location 'core' was not reloaded: " in description
    assert why in description
    assert "pa55" not in description
    assert "pa/ss" not in description
