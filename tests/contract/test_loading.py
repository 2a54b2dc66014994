"""Which executor the runs of a project have that loads its federation with `load_federation`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.execution.api import execute_run_iterator

from federation_defs import load_federation
from federation_defs.naming import build_asset_key
from tests.unit.project import Project

# Dagster 1.13 itself uses deprecated functions of pydantic.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

JOBS = """\
import dagster as dg


@dg.asset
def theirs() -> None: ...


one_process = {"execution": {"config": {"in_process": {}}}}
default = dg.define_asset_job("default", [theirs])
configured = dg.define_asset_job("configured", [theirs], config=one_process)
executed = dg.define_asset_job("executed", [theirs], executor_def=dg.multiprocess_executor)
"""
EXECUTOR = """\
import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(executor=dg.in_process_executor)
"""


@pytest.fixture
def project(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("FEDERATION_TRIGGERS", "off")
    project.declare("metrics", load=["metrics/extract"])
    (project.defs / "jobs.py").write_text(JOBS)
    (project.defs / "__init__.py").touch()  # as `create-dagster` makes it
    return project


def starts_processes(
    project: Project, name: str, *selected: dg.AssetKey, is_awaited: bool = False
) -> bool:
    """Execute a job as a run worker does; return whether its steps have processes of their own.

    Args:
        is_awaited: Whether to wait for these processes.
    """
    module = f"{project.defs.parent.name}.definitions"
    repository = ReconstructableRepository.for_module(module, "defs", str(project.path))
    with dg.DagsterInstance.local_temp(str(project.path)) as instance:
        job = repository.get_reconstructable_job(name)
        if selected:
            job = job.get_subset(asset_selection=frozenset(selected))
        run = instance.create_run_for_job(job.get_definition(), asset_selection=frozenset(selected))
        events: Any = execute_run_iterator(job, run, instance)  # a generator
        has_process = any(event.event_type_value == "STEP_WORKER_STARTING" for event in events)
        for _ in events if is_awaited else ():
            pass
        events.close()
        ended = instance.get_run_by_id(run.run_id)
        assert ended
        assert ended.is_success == (is_awaited or not has_process)
        return has_process


def test_only_runs_of_our_steps_alone_stay_in_the_process_of_the_run_worker(
    project: Project,
) -> None:
    ours = build_asset_key("metrics", "load")
    assert not starts_processes(project, "__ASSET_JOB", ours)
    assert starts_processes(project, "__ASSET_JOB", ours, dg.AssetKey("theirs"), is_awaited=True)
    assert starts_processes(project, "default")


def test_a_job_keeps_the_executor_and_the_configuration_that_it_has(project: Project) -> None:
    assert not starts_processes(project, "configured")
    assert starts_processes(project, "executed")


def test_a_project_keeps_the_executor_that_it_has(project: Project) -> None:
    (project.defs / "executor.py").write_text(EXECUTOR)
    assert load_federation(project.path).executor is dg.in_process_executor
    assert not starts_processes(project, "default")


def test_a_project_passes_the_executor_that_merging_would_refuse(project: Project) -> None:
    executed = dg.Definitions(executor=dg.in_process_executor)
    with pytest.raises(dg.DagsterInvariantViolationError) as refused:
        dg.Definitions.merge(load_federation(project.path), executed)
    assert str(refused.value) in Path("README.md").read_text()
    loaded = load_federation(project.path, executor=dg.in_process_executor)
    assert dg.Definitions.merge(loaded, executed).executor is dg.in_process_executor


def test_a_load_warns_of_nothing(project: Project, recwarn: pytest.WarningsRecorder) -> None:
    load_federation(project.path)
    assert not [one for one in recwarn if not issubclass(one.category, DeprecationWarning)]


def test_an_asset_that_the_defs_folder_does_not_have_is_a_warning(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    keys = ["their"], ["theirs"], ["nothing", "like", "it"]
    report = {"depends_on": [{"asset": key} for key in keys]}
    project.declare("sales", more={"dags": {"report": report}})
    load_federation(project.path)
    where = f"{project.defs.parent.name}/defs/sales/defs.yaml: dags.report.depends_on: the defs "
    assert [record.getMessage() for record in caplog.records] == [
        f"{where}folder has no asset 'their'; did you mean 'theirs'?",
        f"{where}folder has no asset 'nothing/like/it'.",
    ]


def test_a_reload_with_new_states_keeps_what_the_load_adds(project: Project) -> None:
    """Dagster+ asks the component tree for the new definitions (dagster 1.13)."""
    project.declare("sales", more={"defs_state": {"management_type": "VERSIONED_STATE_STORAGE"}})
    loaded = load_federation(project.path, dg.in_process_executor, refresh_cron="1 2 * * *")
    tree = loaded.get_repository_def().get_component_tree()
    assert tree
    reloaded = tree.reload_with_state(["FederatedAirflow[sales]"])
    assert reloaded.executor is dg.in_process_executor
    schedule = reloaded.get_repository_def().get_schedule_def("federation__refresh_state_schedule")
    assert schedule.cron_schedule == "1 2 * * *"
