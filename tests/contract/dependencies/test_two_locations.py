"""The event sensors of two code locations that declare the same instance, as during a move."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import dagster as dg
import pytest
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import SensorInstigatorData

from federation_defs.dependencies.sensor import build_event_sensor
from federation_defs.errors import DeclaredTwiceError
from federation_defs.naming import build_asset_key
from federation_defs.timing import Timing
from tests.contract.conftest import Airflow
from tests.contract.dependencies.reacting import DAG, EventDaemon, report
from tests.contract.execution.automating import Automation
from tests.contract.execution.executing import FAST, SOURCE, build_assets, materialize
from tests.unit.sensors import store_sensor

LOAD, OTHER = "warehouse/load", "warehouse/other"
FINISHED = [{"dag": dag, "state": "finished"} for dag in (LOAD, OTHER)]
BOTH = {"depends_on": FINISHED, "trigger": {"when": "all"}}
EITHER = {"depends_on": FINISHED}
TIMING = replace(FAST, other_sensors_s=0)


class Location(EventDaemon):
    """A daemon whose ticks know their code location, and which stores sensors as Dagster does."""

    def __init__(self, name: str, airflow: Airflow, instance: dg.DagsterInstance, dag: Any) -> None:
        self.origin = RegisteredCodeLocationOrigin(name)
        super().__init__(airflow.client, instance, {DAG: dag})

    def restart(self) -> None:
        self.sensor = build_event_sensor(self.client, self.dags, self.instances, timing=TIMING)

    def build_context(self, cursor: str | None) -> dg.SensorEvaluationContext:
        self.store()
        return dg.SensorEvaluationContext(
            instance_ref=None,
            last_tick_completion_time=None,
            last_run_key=None,
            cursor=cursor,
            repository_name=None,
            instance=self.instance,
            definitions=self.defs,
            code_location_origin=self.origin,
        )

    def store(self, ticked_s_ago: float = 0) -> None:
        at = time.time() - ticked_s_ago
        data = SensorInstigatorData(cursor=self.cursor, last_tick_start_timestamp=at)
        store_sensor(self.instance, self.origin.location_name, self.sensor.name, data)

    def create_run(self, request: dg.RunRequest, timing: Timing) -> Callable[[], bool]:
        """Create the run that a tick has requested. What is returned executes it, and returns
        whether it succeeded."""
        assets = build_assets(self.client, {DAG: EITHER}, timing=timing)
        defs = dg.Definitions([assets], executor=dg.in_process_executor)
        job = defs.resolve_implicit_global_asset_job_def()
        repository = RemoteRepositoryOrigin(self.origin, "__repository__")
        code = RepositoryPythonOrigin("python", ModuleCodePointer("none", "none"))
        run = self.instance.create_run_for_job(
            job,
            tags={**request.tags, **({"dagster/run_key": key} if (key := request.run_key) else {})},
            asset_selection=frozenset([build_asset_key("metrics", DAG)]),
            remote_job_origin=RemoteJobOrigin(repository, job.name),
            job_code_origin=JobPythonOrigin(job.name, code),
        )
        return lambda: execute_run(InMemoryJob(job), run, self.instance).success


def test_what_has_led_to_a_run_in_one_location_leads_to_none_in_the_other(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    sales, core = (Location(name, airflow_v2, instance, BOTH) for name in ("sales", "core"))
    assert (sales.tick(), core.tick()) == ([], [])
    for upstream, expected in ((LOAD, []), (OTHER, [f"{OTHER} finished "]), (LOAD, [])):
        report(instance, upstream)
        assert core.tick() == expected
        with pytest.raises(DeclaredTwiceError):
            sales.tick()
    core.store(ticked_s_ago=400)  # it was removed
    assert sales.tick() == []
    assert "waits for warehouse/other" in sales.skip_reason
    report(instance, OTHER)
    assert sales.tick() == [f"{OTHER} finished "]


def test_a_run_that_was_requested_before_a_move_goes_on_unless_the_other_location_has_it(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    sales, core = (Location(name, airflow_v2, instance, EITHER) for name in ("sales", "core"))
    timing = replace(FAST, sleep=lambda _: core.store())
    assert sales.tick() == []
    report(instance, LOAD)
    (request,) = sales.evaluate()
    execute = sales.create_run(request, timing)
    core.store()
    assert core.tick() == []
    assert execute()
    assert len(airflow_v2.database.runs) == 1

    by_hand = dg.RunRequest()
    for each in (request, by_hand):
        assert not sales.create_run(each, timing)()
    assert len(airflow_v2.database.runs) == 1


def test_conditions_of_a_moved_instance_begin_anew(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """Dagster keeps what they wait for by location."""
    airflow_v2.database.add_dag(DAG, polls=0)
    sales = Automation(airflow_v2, instance, {DAG: {}})
    sales.update_upstream()
    assert sales.tick()
    sales.update_upstream()  # after its sensor was switched off
    core = Automation(airflow_v2, instance, {DAG: {}})
    assert not core.tick()
    assert core.runs == ["success"]
    by_hand = materialize(airflow_v2.client, [DAG], instance)
    assert by_hand.success
    core.update_upstream()
    assert core.tick()
    assert core.runs == ["success"] * 3
    for _ in range(2):  # moved back: what the other location has answered starts no DAG
        sales.tick()
    assert sales.runs == ["success"] * 3
    sales.update_upstream()
    assert sales.tick()
    assert sales.runs == ["success"] * 4


def test_a_condition_that_waits_for_all_forgets_in_a_move_which_upstreams_have_succeeded(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    other = build_asset_key("warehouse", "other")
    both = {"depends_on": [SOURCE, "warehouse/other"], "trigger": {"when": "all"}}
    sales = Automation(airflow_v2, instance, {DAG: both})
    sales.update_upstream()
    assert not sales.tick()
    core = Automation(airflow_v2, instance, {DAG: both})
    instance.report_runless_asset_event(dg.AssetMaterialization(other))
    assert not core.tick()
    core.update_upstream()
    assert core.tick()
    assert core.runs == ["success"]
