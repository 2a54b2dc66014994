"""What a run worker loads of a project that uses `load_federation`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.definitions_load_context import DefinitionsLoadContext
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.execution.api import create_execution_plan
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.test_utils import create_run_for_test
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._grpc.server import LoadedRepositories
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation_defs import FederatedAirflow, loading
from federation_defs.dagster_io.deployment import fetch_active_runs_in_worker
from federation_defs.declaration import PartitionsDeclaration
from federation_defs.naming import (
    CHECK_NAME,
    READY_CHECK_NAME,
    STATE_CHECK_NAME,
    build_asset_key,
    build_check_key,
    build_state_asset_key,
)
from federation_defs.schedules import AutoPartitions
from tests.contract.storages import OpenInstance
from tests.unit.project import Project, build_keys

# Dagster 1.13 itself uses deprecated functions of pydantic.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

LOADED = build_asset_key("metrics", "load")
OBSERVED = build_asset_key("metrics", "selected_by_a_glob")
CHECK_OF_OBSERVED = dg.AssetCheckKey(OBSERVED, CHECK_NAME)
ASSET_JOB = "__ASSET_JOB"
JOBS = """\
import dagster as dg

checks = dg.define_asset_job("all_checks", dg.AssetSelection.all_asset_checks())
"""
ASSETS = """\
import dagster as dg


@dg.asset(deps=[dg.AssetKey({key})])
def report() -> None: ...
"""
SENSOR = """\
import dagster as dg

key = dg.AssetKey({key})
own = dg.AutomationConditionSensorDefinition("own", target=dg.AssetSelection.assets(key))
"""
SCHEDULED_JOB = """\
import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    job = dg.define_asset_job("nightly", dg.AssetSelection.all_asset_checks())
    return dg.Definitions(schedules=[dg.ScheduleDefinition(job=job, cron_schedule="0 0 * * *")])
"""
SCHEDULES = """\
import dagster as dg

everything = dg.AssetSelection.all_asset_checks()
nightly = dg.ScheduleDefinition("nightly", cron_schedule="0 0 * * *", target=everything)
"""


@pytest.fixture
def project(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("FEDERATION_TRIGGERS", "off")
    project.declare("warehouse")
    project.declare("metrics", load=["warehouse/extract"])
    project.keep_state("metrics", "load", "selected_by_a_glob")
    project.keep_state("warehouse", "extract", "other")
    return project


@pytest.fixture
def instance(
    open_instance: OpenInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """The instance that a worker finds by DAGSTER_HOME."""
    home = tmp_path / "home"
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with open_instance(home), dg.DagsterInstance.get() as instance:  # most tables are there
        yield instance


class CodeServer:
    """A code server that has loaded a project, and the workers that it starts."""

    def __init__(self, project: Project, location: str | None = None) -> None:
        self._location = location
        self._module = f"{project.defs.parent.name}.definitions"
        self._path = str(project.path)
        self.repository = self.load()

    def load(self) -> dg.RepositoryDefinition:
        """Load as at its start."""
        target = LoadableTargetOrigin(
            module_name=self._module, working_directory=self._path, attribute="defs"
        )
        loaded = LoadedRepositories(
            target, None, ["dagster"], None, code_location_name=self._location
        )
        return loaded.definitions_by_name["__repository__"]

    def start_worker(self) -> ReconstructableRepository:
        loading._loaded.clear()  # noqa: SLF001 - as in a new process
        repository = ReconstructableRepository.for_module(self._module, "defs", self._path)
        return repository.with_repository_load_data(self.repository.repository_load_data)


def create_run(
    instance: dg.DagsterInstance,
    job: str = ASSET_JOB,
    assets: frozenset[dg.AssetKey] | None = None,
    checks: frozenset[dg.AssetCheckKey] | None = None,
    status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTING,
) -> None:
    create_run_for_test(
        instance, job, asset_selection=assets, asset_check_selection=checks, status=status
    )


@pytest.mark.parametrize("in_python", [False, True])
def test_it_builds_the_dags_that_dagster_runs_and_what_they_depend_on(
    project: Project, instance: dg.DagsterInstance, in_python: bool
) -> None:
    if in_python:
        project.move_to_python()
    server = CodeServer(project)
    create_run(instance, assets=frozenset({LOADED}))
    repository = server.start_worker().get_definition()
    keys = repository.assets_defs_by_key.keys()
    assert keys == build_keys("metrics/load", "warehouse/extract")
    names = {sensor.name for sensor in repository.sensor_defs}
    assert not any(name.startswith(("metrics", "warehouse")) for name in names)
    assert not repository.asset_checks_defs_by_key
    checks = {build_check_key(LOADED), build_check_key(LOADED, READY_CHECK_NAME)}
    assert repository.asset_graph.asset_check_keys == checks


def test_it_reads_the_project_once(project: Project, instance: dg.DagsterInstance) -> None:
    server = CodeServer(project)
    create_run(instance, assets=frozenset({LOADED}))
    worker = server.start_worker()
    first, second = worker.get_definition(), worker.get_definition()
    one, other = (repository.assets_defs_by_key[LOADED] for repository in (first, second))
    assert one is other


def test_it_needs_no_state(project: Project, instance: dg.DagsterInstance) -> None:
    server = CodeServer(project)
    create_run(instance, assets=frozenset({LOADED}))
    for path in project.defs.rglob("state"):
        path.unlink()
    repository = server.start_worker().get_definition()
    assert LOADED in repository.assets_defs_by_key


def test_it_reads_the_state_for_partitions_that_an_airflow_tells(
    project: Project, instance: dg.DagsterInstance
) -> None:
    shutil.rmtree(project.defs / "metrics")
    load = {"depends_on": ["warehouse/extract"], "partitions": "auto"}
    project.declare("metrics", more={"dags": {"load": load}})
    resolved = {"cron": "0 0 * * *", "start": "2026-02-28"}
    project.keep_state("metrics", "load", load=AutoPartitions({"cron": "auto"}, resolved))
    server = CodeServer(project)
    create_run(instance, assets=frozenset({LOADED}))
    definitions = [server.repository, server.start_worker().get_definition()]
    partitions = [each.asset_graph.get(LOADED).partitions_def for each in definitions]
    assert partitions == [PartitionsDeclaration.model_validate(resolved).build_definition()] * 2


def test_it_reads_no_state_of_an_instance_that_its_run_does_not_need(
    project: Project, instance: dg.DagsterInstance
) -> None:
    resolved = {"cron": "0 0 * * *", "start": "2026-02-28"}
    for name, own in (("sales", {"depends_on": ["warehouse/extract"]}), ("stock", {})):
        project.declare(name, more={"dags": {"load": {"partitions": "auto", **own}}})
        project.keep_state(name, "load", load=AutoPartitions({"cron": "auto"}, resolved))
    server = CodeServer(project)
    create_run(instance, assets=frozenset({build_asset_key("sales", "load")}))
    server.start_worker().get_definition()
    (loaded,) = loading._loaded.values()  # noqa: SLF001
    components = loaded.tree.get_all_components(FederatedAirflow)
    assert {each.member.name for each in components if each.snapshot} == {"sales"}


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
def test_a_run_of_a_check_of_another_dag_finds_it(
    project: Project, instance: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    """Also in the process of a step, whose run has started."""
    server = CodeServer(project)
    checks = frozenset({CHECK_OF_OBSERVED})
    create_run(instance, checks=checks, assets=frozenset(), status=status)
    job = server.start_worker().get_reconstructable_job(ASSET_JOB)
    subset = job.get_subset(asset_check_selection=checks, asset_selection=frozenset())
    assert subset.get_definition().graph.node_names() == ["metrics__checks"]


@pytest.mark.parametrize(
    ("code", "job"),
    [
        (JOBS, "all_checks"),
        (SCHEDULES, "__anonymous_asset_job_nightly"),
        (SCHEDULED_JOB, "nightly"),
    ],
)
def test_a_job_of_the_projects_own_finds_all_that_it_selects(
    project: Project, instance: dg.DagsterInstance, code: str, job: str
) -> None:
    (project.defs / "own.py").write_text(code)
    server = CodeServer(project)
    create_run(instance, job)
    steps = server.repository.get_job(job).graph.node_names()
    worker = server.start_worker().get_reconstructable_job(job)
    assert set(worker.get_definition().graph.node_names()) == set(steps) >= {"metrics__checks"}


def test_an_executor_that_is_built_anew_by_each_call_changes_nothing(
    project: Project, instance: dg.DagsterInstance
) -> None:
    definitions = project.defs.parent / "definitions.py"
    executor = 'dg.multiprocess_executor.configured({"max_concurrent": 2})'
    text = definitions.read_text().replace(".parent)", f".parent, {executor})")
    definitions.write_text(text)
    create_run(instance, assets=frozenset({LOADED}))
    server = CodeServer(project)
    assert OBSERVED in server.repository.assets_defs_by_key
    assert OBSERVED not in server.start_worker().get_definition().assets_defs_by_key
    assert len(loading._loaded) == 1  # noqa: SLF001 - not one per executor


@pytest.mark.parametrize("is_broken", [False, True])
def test_a_worker_whose_dagster_home_is_not_the_deployments_loads_everything(
    project: Project,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_broken: bool,
) -> None:
    server = CodeServer(project)
    create_run(instance, assets=frozenset({LOADED}))
    home = tmp_path / "other"
    home.mkdir()
    if is_broken:
        (home / "history").touch()  # a folder for SQLite
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    assert OBSERVED in server.start_worker().get_definition().assets_defs_by_key


def test_a_process_that_executes_several_runs_finds_what_each_needs(
    project: Project, instance: dg.DagsterInstance
) -> None:
    """As workers of Celery and Dask do."""
    project.declare("sales", report=["warehouse/extract", "finance/close"])
    abroad = {"dags": {"close": {"depends_on": ["other/load"]}}, "elsewhere": ["other"]}
    project.declare("finance", more=abroad)
    server = CodeServer(project)
    worker = server.start_worker()
    report, close = build_asset_key("sales", "report"), build_asset_key("finance", "close")
    for key in (LOADED, report, close, CHECK_OF_OBSERVED):
        assets = frozenset({key} if isinstance(key, dg.AssetKey) else set[dg.AssetKey]())
        checks = None if assets else frozenset({CHECK_OF_OBSERVED})
        create_run(instance, assets=assets, checks=checks)
        job = worker.get_reconstructable_job(ASSET_JOB)
        subset = job.get_subset(asset_selection=assets, asset_check_selection=checks)
        assert len(create_execution_plan(subset).step_keys_to_execute) == 1


def test_definitions_of_the_projects_own_may_name_any_dag(
    project: Project, instance: dg.DagsterInstance
) -> None:
    (project.defs / "own.py").write_text(SENSOR.format(key=OBSERVED.path))
    server = CodeServer(project)
    create_run(instance, assets=frozenset({LOADED}))
    worker = server.start_worker().get_definition()
    assert {"own", "metrics__observation"} <= {sensor.name for sensor in worker.sensor_defs}


def test_runs_of_other_code_locations_do_not_matter(
    project: Project, instance: dg.DagsterInstance
) -> None:
    server = CodeServer(project, "ours")
    create_run(instance, assets=frozenset({LOADED}))
    theirs = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("theirs"), "__repository__")
    create_run_for_test(
        instance,
        "all_checks",
        remote_job_origin=RemoteJobOrigin(theirs, "all_checks"),
        status=dg.DagsterRunStatus.STARTED,
    )
    assert OBSERVED not in server.start_worker().get_definition().assets_defs_by_key


def test_a_check_of_a_state_is_found_beside_a_dag_of_the_same_name(
    project: Project, instance: dg.DagsterInstance
) -> None:
    more = {"defs_state": {"management_type": "VERSIONED_STATE_STORAGE"}}
    project.declare("sales", more=more, state=["warehouse/extract"])
    server = CodeServer(project)
    check = build_check_key(build_state_asset_key("sales"), STATE_CHECK_NAME)
    create_run(instance, checks=frozenset({check}))
    assert check in server.start_worker().get_definition().asset_graph.asset_check_keys


def test_an_asset_of_the_projects_own_may_depend_on_any_dag(
    project: Project, instance: dg.DagsterInstance
) -> None:
    (project.defs / "own.py").write_text(ASSETS.format(key=OBSERVED.path))
    server = CodeServer(project)
    own = frozenset({dg.AssetKey("report")})
    create_run(instance, assets=own)
    job = server.start_worker().get_reconstructable_job(ASSET_JOB).get_subset(asset_selection=own)
    assert OBSERVED in job.get_definition().asset_layer.asset_graph.get_all_asset_keys()
    assert create_execution_plan(job).step_keys_to_execute == ["report"]


@pytest.mark.parametrize("is_depended_on", [False, True])
def test_dags_with_partitions_are_built_if_assets_of_the_projects_own_depend_on_them(
    project: Project, instance: dg.DagsterInstance, *, is_depended_on: bool
) -> None:
    daily = {"partitions": {"cron": "0 0 * * *", "start": "2026-01-01"}}
    dags = {"a": daily, "b": {**daily, "depends_on": ["sales/a"]}, "c": daily}
    project.declare("sales", more={"dags": dags})
    a, b, c = (build_asset_key("sales", dag_id) for dag_id in "abc")
    if is_depended_on:
        (project.defs / "own.py").write_text(ASSETS.format(key=c.path))
    server = CodeServer(project)
    for key in (b, LOADED):
        instance.wipe()
        create_run(instance, assets=frozenset({key}))
        graph = server.start_worker().get_definition().asset_graph
        built = {a, b} if key == b else set[dg.AssetKey]()
        built |= {c} if is_depended_on else set()
        assert {
            each for each in graph.get_all_asset_keys() if graph.get(each).partitions_def
        } == built


def test_without_an_instance_everything_is_loaded(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = CodeServer(project)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    assert OBSERVED in server.start_worker().get_definition().assets_defs_by_key


def test_what_dagster_does_not_tell_is_loaded_in_full(
    project: Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which process this is, is no part of Dagster's public API."""
    server = CodeServer(project)
    create_run(instance, assets=frozenset({LOADED}))
    server.start_worker().get_definition()
    assert fetch_active_runs_in_worker()
    monkeypatch.delattr(DefinitionsLoadContext, "accessed_defs_state_info")
    assert not fetch_active_runs_in_worker()


def test_a_code_server_and_the_command_line_load_everything(
    project: Project, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = CodeServer(project)
    create_run(instance, assets=frozenset({LOADED}))
    assert OBSERVED in server.repository.assets_defs_by_key
    module = f"{project.defs.parent.name}.definitions"
    by_command = ReconstructableRepository.for_module(module, "defs", str(project.path))
    monkeypatch.setattr(DefinitionsLoadContext, "_instance", None)  # as in a new process
    assert OBSERVED in by_command.get_definition().assets_defs_by_key


BETWEEN = ASSETS.format(key=["metrics", "dag", "load"])
LAST = {"asset": ["report"]}


@pytest.mark.parametrize(
    ("selected", "steps"),
    [
        (["metrics/last"], ["metrics__dags"]),
        (["metrics/load", "metrics/last"], ["metrics__dags"]),
        (
            ["metrics/load", "report", "metrics/last"],
            ["metrics__dags_2", "report", "metrics__dags"],
        ),
    ],
)
def test_a_dag_after_an_asset_of_the_projects_own_is_planned_as_by_the_code_server(
    project: Project, instance: dg.DagsterInstance, selected: list[str], steps: list[str]
) -> None:
    dags = {"load": {"depends_on": ["warehouse/extract"]}, "last": {"depends_on": [LAST]}}
    shutil.rmtree(project.defs / "metrics")
    project.declare("metrics", more={"dags": dags})
    (project.defs / "own.py").write_text(BETWEEN)
    server = CodeServer(project)
    keys = frozenset(
        dg.AssetKey(["report"]) if name == "report" else build_asset_key(*name.split("/"))
        for name in selected
    )
    create_run(instance, assets=keys)
    worker = server.start_worker()
    assert OBSERVED not in worker.get_definition().assets_defs_by_key
    job = worker.get_reconstructable_job(ASSET_JOB).get_subset(asset_selection=keys)
    planned = server.repository.get_maybe_subset_job_def(ASSET_JOB, None, keys, None)
    for each in (planned, job):
        assert create_execution_plan(each).step_keys_to_execute == steps


DAGS = [f"{instance}/{name}" for instance in ("a", "b", "c") for name in "wxyz"]


@pytest.mark.usefixtures("instance")
@settings(
    max_examples=int(os.environ.get("HISTORIES", "10")),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_it_plans_the_same_steps_as_the_code_server(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Dagster splits multi_assets that depend on each other crosswise, and numbers the steps."""
    path = tmp_path_factory.mktemp("fleet")
    pairs = st.sampled_from([(a, b) for a in DAGS for b in DAGS if a[-1] < b[-1]])  # no cycle
    upstreams: dict[str, set[str]] = {}
    for upstream, downstream in data.draw(st.lists(pairs, min_size=1, max_size=12)):
        upstreams.setdefault(downstream, set()).add(upstream)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path)
        project = Project(path, f"project_of_{path.name}")
        for name in "abc":
            own = {dag: sorted(deps) for dag, deps in upstreams.items() if dag[0] == name}
            dags = {dag.split("/")[1]: {"depends_on": deps} for dag, deps in own.items()}
            project.declare(name, more={"dags": dags})
            project.keep_state(name, *"wxyz")
        server = CodeServer(project)
        downstreams = sorted(build_keys(*upstreams))
        selected = frozenset(data.draw(st.sets(st.sampled_from(downstreams), min_size=1)))
        with dg.DagsterInstance.get() as instance:
            instance.wipe()
            create_run(instance, assets=selected)
        expected = server.repository.get_maybe_subset_job_def(ASSET_JOB, None, selected, None)
        job = server.start_worker().get_reconstructable_job(ASSET_JOB)
        plans = map(create_execution_plan, (expected, job.get_subset(asset_selection=selected)))
        steps, steps_of_worker = (plan.step_keys_to_execute for plan in plans)
        assert set(steps_of_worker) == set(steps)
