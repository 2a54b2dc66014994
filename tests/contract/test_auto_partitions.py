"""A DAG with `partitions: auto`, from its Airflow to its asset."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.definitions_load_context import (
    DefinitionsLoadContext,
    DefinitionsLoadType,
)
from dagster._core.storage.defs_state.base import set_defs_state_storage
from dagster._core.storage.defs_state.blob_storage_state_storage import UPathDefsStateStorage
from upath import UPath

from federation_defs import FederatedAirflow
from federation_defs.dagster_io.event_log import fetch_last_evaluations
from federation_defs.naming import (
    PARTITIONS_CHECK_NAME,
    READY_CHECK_NAME,
    build_asset_key,
    build_check_key,
)
from tests.contract.airflow.test_schedules import DAY, build_plan, end
from tests.contract.clients import SIGN_INS
from tests.contract.fakes.airflow import FakeAirflow, asks
from tests.contract.fakes.faults import answer
from tests.unit.project import Project

# Dagster 1.13 itself uses a deprecated function of pydantic.
pytestmark = pytest.mark.filterwarnings("ignore:.parse_obj_as. is deprecated")

DAILY = build_plan("v2", ("0 0 * * *", end(DAY), {}, ""))
AT_SIX = build_plan("v2", ("0 6 * * *", end((None, "2026-11-22T06:00:00Z")), {}, ""))
BY_ASSETS = build_plan("v2", ("Asset", (None, None), {}, ""))


class Federation:
    """The Airflow `sales` with a DAG `load`, and its project."""

    def __init__(self, server: FakeAirflow, project: Project, more: Mapping[str, Any]) -> None:
        self._project = project
        self._more = more
        self.server = server
        self.dag = server.database.add_dag("load", plan=DAILY)
        project.declare("sales", server.url, SIGN_INS["v2"], {"dags": {"load": {}}, **more})
        self.declare("auto")

    def declare(self, partitions: str | Mapping[str, str], **more: Mapping[str, Any]) -> None:
        path = self._project.defs / "sales" / "defs.yaml"
        declared = yaml.safe_load(path.read_text())
        declared["attributes"]["dags"] |= {"load": {"partitions": partitions}, **more}
        path.write_text(yaml.safe_dump(declared))

    def load(
        self, dag_id: str = "load"
    ) -> tuple[dg.TimeWindowPartitionsDefinition | None, str | None]:
        """Load the project, and return the partitions of a DAG and what is wrong with them."""
        tree, component = self._build()
        graph = tree.build_defs(tree.defs_module_path).resolve_asset_graph()
        partitions = graph.get(build_asset_key("sales", dag_id)).partitions_def
        assert partitions is None or isinstance(partitions, dg.TimeWindowPartitionsDefinition)
        return partitions, component.find_partition_problem(dag_id)

    def observe(self, instance: dg.DagsterInstance) -> None:
        """Load the project, and let the sensor tick as the first time in a process."""
        tree, _ = self._build()
        repository = tree.build_defs(tree.defs_module_path).get_repository_def()
        sensor = repository.get_sensor_def("sales__observation")
        with dg.build_sensor_context(instance, repository_def=repository) as context:
            sensor.evaluate_tick(context)

    def find_started(self) -> set[str]:
        """Load the project, and return the DAGs that a sensor starts."""
        tree, _ = self._build()
        defs = tree.build_defs(tree.defs_module_path)
        graph = defs.resolve_asset_graph()
        selections = [each.asset_selection for each in defs.sensors or () if each.asset_selection]
        return {key.path[-1] for each in selections for key in each.resolve(graph)}

    def tick_events(
        self, instance: dg.DagsterInstance, cursor: str | None
    ) -> tuple[str | None, list[str | None]]:
        """Load the project, let the event sensor tick, and return its cursor and the partitions
        that it requests."""
        tree, _ = self._build()
        repository = tree.build_defs(tree.defs_module_path).get_repository_def()
        sensor = repository.get_sensor_def("sales__events")
        with dg.build_sensor_context(instance, cursor, repository_def=repository) as context:
            ticked = sensor.evaluate_tick(context)
        return ticked.cursor, [each.partition_key for each in ticked.run_requests or ()]

    def find_condition(self, dag_id: str) -> dg.AutomationCondition | None:
        """Load the project, and return the automation condition of a DAG."""
        tree, _ = self._build()
        graph = tree.build_defs(tree.defs_module_path).resolve_asset_graph()
        return graph.get(build_asset_key("sales", dag_id)).automation_condition

    def refresh(self) -> None:
        """Refresh the state as `dg utils refresh-defs-state` does."""
        _, component = self._build()
        asyncio.run(component.refresh_state(self._project.path))

    def _build(self) -> tuple[dg.ComponentTree, FederatedAirflow]:
        # As in a new process: the context knows the last states.
        DefinitionsLoadContext.set(DefinitionsLoadContext(DefinitionsLoadType.INITIALIZATION))
        tree = dg.ComponentTree.for_project(self._project.path)
        (component,) = tree.get_all_components(FederatedAirflow)
        return tree, component


@pytest.fixture(params=["LOCAL_FILESYSTEM", "VERSIONED_STATE_STORAGE"])
def federation(
    project: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[Federation]:
    monkeypatch.setenv("DAGSTER_IS_DEV_CLI", "1")
    storage = UPathDefsStateStorage(UPath(tmp_path / "states"))
    instance = dg.DagsterInstance.ephemeral()
    storage.register_instance(instance)
    with ExitStack() as stack:
        server = stack.enter_context(FakeAirflow("v2"))
        stack.enter_context(set_defs_state_storage(storage))
        yield Federation(server, project, {"defs_state": {"management_type": request.param}})


def build(cron: str, start: str) -> dg.TimeWindowPartitionsDefinition:
    return dg.TimeWindowPartitionsDefinition(cron_schedule=cron, start=start, fmt="%Y-%m-%d")


def test_the_asset_has_the_partitions_of_the_schedule(federation: Federation) -> None:
    assert federation.load() == (build("0 0 * * *", "2026-02-28"), None)


def test_the_check_of_a_dag_without_the_partitions_of_its_schedule_fails(
    federation: Federation, instance: dg.DagsterInstance
) -> None:
    federation.dag.plan = BY_ASSETS
    key = build_check_key(build_asset_key("sales", "load"), PARTITIONS_CHECK_NAME)
    for plan, passed in ((BY_ASSETS, False), (DAILY, True)):
        federation.dag.plan = plan
        federation.observe(instance)
        evaluation = fetch_last_evaluations(instance, [key])[key]
        assert evaluation.passed == passed
        assert ("write `cron` and `start`" in (evaluation.description or "")) != passed


def test_without_a_refresh_there_are_no_partitions(federation: Federation) -> None:
    federation.server.stop()
    partitions, problem = federation.load()
    assert partitions is None
    assert problem is not None
    assert "Its partitions are not known yet; refresh the state" in problem


def test_nothing_starts_a_dag_of_which_the_partitions_are_not_known(federation: Federation) -> None:
    below = {"depends_on": ["sales/load"], "partitions": "auto"}
    federation.server.database.add_dag("below", plan=BY_ASSETS)
    federation.declare("auto", below=below)
    assert federation.find_started() == set()
    federation.server.database.dags["below"].plan = DAILY
    assert federation.find_started() == {"below"}


def test_what_happens_while_partitions_are_not_known_starts_nothing_later(
    federation: Federation, instance: dg.DagsterInstance
) -> None:
    below = federation.server.database.add_dag("below", plan=DAILY)
    upstream, cursor = build_asset_key("sales", "load"), None
    # By the start that a person writes, the schedule, and what is requested when a day succeeds.
    for start, plan, day, expected in (
        ("2026-03-01", DAILY, "2026-03-02", ["2026-03-02"]),
        ("2026-03-02", BY_ASSETS, "2026-03-03", []),
        ("2026-03-02", DAILY, "2026-03-04", ["2026-03-04"]),
    ):
        below.plan = plan
        partitions = {"cron": "auto", "start": start}
        federation.declare(
            {"cron": "0 0 * * *", "start": "2026-03-01"},
            below={"depends_on": ["sales/load"], "partitions": partitions},
        )
        cursor, requested = federation.tick_events(instance, cursor)
        assert requested == []
        instance.report_runless_asset_event(dg.AssetMaterialization(upstream, partition=day))
        cursor, requested = federation.tick_events(instance, cursor)
        assert requested == expected


@pytest.mark.parametrize("federation", ["VERSIONED_STATE_STORAGE"], indirect=True)
def test_nothing_is_lost_by_a_load_while_the_state_can_not_be_read(
    federation: Federation,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upstream = build_asset_key("sales", "load")
    federation.server.database.add_dag("below", plan=DAILY).is_paused = True
    federation.declare(
        {"cron": "0 0 * * *", "start": "2026-03-01"},
        below={"depends_on": ["sales/load"], "partitions": "auto"},
    )
    cursor, _ = federation.tick_events(instance, None)
    instance.report_runless_asset_event(dg.AssetMaterialization(upstream, partition="2026-03-02"))
    cursor, _ = federation.tick_events(instance, cursor)
    monkeypatch.delenv("DAGSTER_IS_DEV_CLI")
    states = tmp_path / "dagster" / "defs_state"
    away = states.rename(tmp_path / "away")
    kept, requested = federation.tick_events(instance, cursor)
    assert (kept, requested) == (cursor, [])
    away.rename(states)
    instance.report_runless_asset_event(dg.AssetMaterialization(upstream, partition="2026-03-03"))
    federation.server.database.dags["below"].is_paused = False
    _, first = federation.tick_events(instance, cursor)
    assert first == ["2026-03-02"]


def test_a_schedule_that_changes_is_reported_and_changes_nothing(federation: Federation) -> None:
    before, _ = federation.load()
    federation.dag.plan = AT_SIX
    for _ in range(2):
        partitions, problem = federation.load()
        assert partitions == before
        assert problem is not None
        assert "Its schedule is now '0 6 * * *' in UTC by data_interval_end. The" in problem
    federation.refresh()
    assert federation.load()[0] == before
    federation.dag.plan = DAILY
    assert federation.load() == (before, None)


def test_a_refresh_by_hand_keeps_what_was_found_out(federation: Federation) -> None:
    federation.refresh()
    federation.dag.plan = AT_SIX
    federation.refresh()
    assert federation.load()[0] == build("0 0 * * *", "2026-02-28")


def test_a_schedule_that_no_longer_gives_partitions_changes_nothing(
    federation: Federation,
) -> None:
    before, _ = federation.load()
    for plan, said in ((BY_ASSETS, "'Asset' gives none"), (None, "has no DAG 'load'")):
        if plan is None:
            del federation.server.database.dags["load"]
        federation.dag.plan = plan or DAILY
        partitions, problem = federation.load()
        assert partitions == before
        assert problem is not None
        assert said in problem
        assert "The partitions stay those of '0 0 * * *' in UTC by data_interval_end." in problem


def test_a_person_takes_the_new_schedule_with_another_start(federation: Federation) -> None:
    federation.load()
    federation.dag.plan = AT_SIX
    federation.load()
    federation.declare({"cron": "auto", "start": "2026-11-22"})
    assert federation.load() == (build("0 6 * * *", "2026-11-22"), None)


def test_an_earlier_start_adds_partitions_and_a_later_one_takes_none(
    federation: Federation,
) -> None:
    days = {"2026-03-01": "2026-02-28", "2026-01-02": "2026-01-01", "2026-03-02": "2026-01-01"}
    for day, start in days.items():
        federation.dag.plan = {**DAILY, "start_date": f"{day}T00:00:00Z"}
        assert federation.load() == (build("0 0 * * *", start), None)


def test_for_a_schedule_that_gives_no_partitions_the_problem_says_what_to_write(
    federation: Federation,
) -> None:
    federation.dag.plan = BY_ASSETS
    partitions, problem = federation.load()
    assert partitions is None
    assert problem is not None
    assert "'Asset' gives none" in problem
    assert "write `cron` and `start`. A run that ends before they are known belongs" in problem
    federation.dag.plan = DAILY
    assert federation.load() == (build("0 0 * * *", "2026-02-28"), None)


def test_partitions_that_can_not_line_up_by_a_schedule_fail_a_check_and_not_the_load(
    federation: Federation,
) -> None:
    upstream = {"dag": "sales/load", "window": "last"}
    partitions = {"cron": "0 0 * * *", "start": "2026-01-01"}
    federation.declare("auto", report={"depends_on": [upstream], "partitions": partitions})
    _, problem = federation.load("report")
    assert problem == (
        "Upstream, sales/load has partitions; write `window: same` or previous, in place of last. "
        "Until that is settled, its upstreams do not start it."
    )
    assert federation.find_started() == set()


def test_windows_that_are_found_to_be_too_many_never_reach_the_sensor(
    federation: Federation,
) -> None:
    federation.dag.plan = build_plan("v2", ("* * * * *", end((None, DAY[1])), {}, ""))
    below = {"depends_on": ["sales/load"], "partitions": {"cron": "@yearly", "start": "2026-01-01"}}
    federation.declare({"cron": "auto", "start": "2026-11-01"}, below=below)
    _, problem = federation.load("below")
    assert "is as long as" in (problem or "")
    assert federation.find_started() == set()


def test_nothing_starts_a_dag_below_one_of_which_the_partitions_are_not_known(
    federation: Federation, instance: dg.DagsterInstance
) -> None:
    partitions = {"cron": "0 0 * * *", "start": "2026-01-01"}
    dags = {
        "plain": {"depends_on": ["sales/load"]},
        "parted": {"depends_on": ["sales/load"], "partitions": partitions},
    }
    checks = {
        dag_id: build_check_key(build_asset_key("sales", dag_id), check)
        for dag_id, check in (("plain", READY_CHECK_NAME), ("parted", PARTITIONS_CHECK_NAME))
    }
    for dag_id in dags:
        federation.server.database.add_dag(dag_id)
    federation.dag.plan = BY_ASSETS
    federation.declare("auto", **dags)
    assert federation.find_started() == set()
    assert federation.find_condition("plain") is None
    federation.observe(instance)
    for dag_id, key in checks.items():
        evaluation = fetch_last_evaluations(instance, [key])[key]
        assert not evaluation.passed, dag_id
        assert (
            "Upstream, the partitions of sales/load are not known; see its check `partitions`. "
            "Until that is settled, its upstreams do not start it."
        ) in (evaluation.description or "")
    federation.dag.plan = DAILY
    assert federation.find_started() == {"plain", "parted"}
    federation.observe(instance)
    evaluations = fetch_last_evaluations(instance, checks.values())
    assert all("not known" not in (each.description or "") for each in evaluations.values())


def test_what_is_wrong_is_a_warning_at_load_and_an_error_in_strict_mode(
    federation: Federation, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation.load()
    assert caplog.text == ""
    federation.dag.plan = BY_ASSETS
    federation.load()
    assert "dags.load.partitions: Its schedule does not determine its partitions" in caplog.text
    monkeypatch.setenv("FEDERATION_STRICT", "true")
    with pytest.raises(Exception, match=r"defs\.yaml") as refused:
        federation.load()
    message = "".join(traceback.format_exception(refused.value))
    assert "DeclarationError: 1 problem in the declarations" in message
    assert "dags.load.partitions: Its schedule does not determine" in message
    federation.dag.plan = DAILY
    federation.load()


@pytest.mark.parametrize("status", [400, 403, 406, 500])
@pytest.mark.parametrize("path", ["/dags/load/details", "/dagSources/.*"])
def test_what_can_not_be_read_of_one_dag_is_its_problem_alone(
    federation: Federation, caplog: pytest.LogCaptureFixture, path: str, status: int
) -> None:
    federation.server.database.add_dag("other")
    federation.server.fail_next(asks("GET", path), answer(status, {"detail": "x"}), times=99)
    partitions, problem = federation.load()
    assert partitions is None
    assert str(status) in (problem or "")
    assert federation.load("other") == (None, None)
    assert "Using the declared DAGs" not in caplog.text


def test_a_run_that_ends_before_its_partitions_are_known_says_so(
    federation: Federation, instance: dg.DagsterInstance
) -> None:
    federation.dag.plan = BY_ASSETS
    database = federation.server.database
    database.finish_run(database.start_run("load", "mine"))
    for _ in range(2):
        federation.observe(instance)
    key = build_asset_key("sales", "load")
    (record,) = instance.fetch_materializations(key, limit=5).records
    materialization = record.asset_materialization
    assert materialization is not None
    said = materialization.metadata["No partition"].value
    assert said == "The DAG's partitions were not known yet."
