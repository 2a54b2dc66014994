"""What is asked of Dagster is public, and Dagster+ does not refuse it.

Dagster+ is the package dagster-cloud of the same version, whose classes are the storages there.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from uuid import uuid4

import dagster as dg
import pytest
from dagster._annotations import is_public
from dagster_cloud.instance import DagsterCloudAgentInstance
from dagster_cloud.storage.defs_state import GraphQLDefsStateStorage
from dagster_cloud.storage.event_logs import GraphQLEventLogStorage
from dagster_cloud.storage.runs import GraphQLRunStorage
from dagster_cloud.storage.schedules import GraphQLScheduleStorage

from federation_defs import dagster_io
from federation_defs.dagster_io.deployment import fetch_last_states
from tests.contract.dagster_plus import IN_USER_CODE, as_server, find_refused
from tests.contract.storages import prepare

DAGSTER_IO = Path(dagster_io.__file__).parent
MODULES = set(DAGSTER_IO.parent.rglob("*.py"))
KEY = dg.AssetKey("any")
# How each method is called here. A method that is called for the first time is added.
CALLS: dict[str, Callable[[dg.DagsterInstance, dg.DagsterRun], object]] = {
    "add_run_tags": lambda instance, run: instance.add_run_tags(run.run_id, {"a": "b"}),
    "all_instigator_state": lambda instance, _: instance.all_instigator_state(),
    "all_logs": lambda instance, run: instance.all_logs(
        run.run_id, of_type={dg.DagsterEventType.ENGINE_EVENT}
    ),
    "defs_state_storage": lambda instance, _: fetch_last_states(instance, ["any"], Path()),
    "event_log_storage": lambda instance, _: (
        instance.event_log_storage.get_latest_asset_check_execution_by_key(
            [dg.AssetCheckKey(KEY, "ready")]
        )
    ),
    "fetch_materializations": lambda instance, _: instance.fetch_materializations(KEY, limit=1),
    "fetch_observations": lambda instance, _: instance.fetch_observations(KEY, limit=1),
    "fetch_planned_materializations": lambda instance, _: instance.fetch_planned_materializations(
        KEY, limit=1
    ),
    "from_ref": lambda instance, _: dg.DagsterInstance.from_ref(instance.get_ref()).dispose(),
    "get_asset_records": lambda instance, _: instance.get_asset_records([KEY]),
    "get_event_records": lambda instance, _: instance.event_log_storage.get_event_records(
        dg.EventRecordsFilter(dg.DagsterEventType.ASSET_OBSERVATION, after_cursor=1), limit=1
    ),
    "get_records_for_run": lambda instance, run: instance.get_records_for_run(
        run.run_id, None, dg.DagsterEventType.ASSET_OBSERVATION
    ),
    "get_instigator_state": lambda instance, _: instance.get_instigator_state("any", "any"),
    "get_latest_storage_id_by_partition": lambda instance, _: (
        instance.get_latest_storage_id_by_partition(
            KEY, dg.DagsterEventType.ASSET_MATERIALIZATION, None
        )
    ),
    "get_run_by_id": lambda instance, run: instance.get_run_by_id(run.run_id),
    "get_run_records": lambda instance, run: instance.get_run_records(
        dg.RunsFilter(run_ids=[run.run_id]), limit=1
    ),
    "get_run_step_stats": lambda instance, run: instance.get_run_step_stats(run.run_id),
    "get_settings": lambda instance, _: instance.get_settings("sensors"),
    "get_ticks": lambda instance, _: instance.get_ticks("any", "any", limit=1),
    "optimize_for_webserver": lambda instance, _: instance.optimize_for_webserver(1000, 60, 1),
    "report_run_failed": lambda instance, run: instance.report_run_failed(run, "why"),
    "report_runless_asset_event": lambda instance, _: [
        instance.report_runless_asset_event(event)
        for event in (
            dg.AssetMaterialization(KEY),
            dg.AssetObservation(KEY),
            dg.AssetCheckEvaluation(asset_key=KEY, check_name="dag_run", passed=True),
        )
    ],
}


def find_used(paths: Iterable[Path]) -> set[str]:
    """Return the members of `DagsterInstance` that modules use, public or not.

    They are found by their names alone, whatever object they are a member of.
    """
    members = {name for name in dir(dg.DagsterInstance) if not name.startswith("_")}
    used = {
        node.attr
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    return (used & members) - {"get"}  # also of every mapping


def find_not_public(names: set[str]) -> set[str]:
    return {
        name for name in names if not is_public(inspect.getattr_static(dg.DagsterInstance, name))
    }


USED = find_used(MODULES)


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    folder = tmp_path_factory.mktemp("dagster_plus")
    with (
        prepare("cloud", folder / "empty") as open_instance,
        open_instance(folder / "copy") as instance,
    ):
        yield instance


def test_only_public_methods_of_dagster_are_used_and_those_that_dagster_io_lists() -> None:
    listed = set(re.findall(r"^`(\w+)`$", dagster_io.__doc__ or "", re.MULTILINE))
    assert find_not_public(USED) == listed


def test_methods_that_are_not_public_are_used_in_dagster_io_only() -> None:
    elsewhere = MODULES - set(DAGSTER_IO.rglob("*.py"))
    assert find_not_public(find_used(elsewhere)) == set()


@pytest.mark.parametrize("name", sorted(USED))
def test_dagster_plus_serves_each_method_that_is_used(
    instance: dg.DagsterInstance, name: str
) -> None:
    assert name not in find_refused(DagsterCloudAgentInstance)
    assert name in CALLS, "say above how it is called"
    run = dg.DagsterRun(job_name="any", run_id=str(uuid4()))
    as_server(instance.run_storage).add_run(run)
    CALLS[name](instance, run)


def test_what_dagster_plus_refuses_is_refused_in_user_code_and_not_elsewhere(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, key = instance.event_log_storage, dg.AssetCheckKey(KEY, "dag_run")
    with pytest.raises(NotImplementedError, match="get_asset_check_execution_history"):
        storage.get_asset_check_execution_history(key, limit=1)
    as_server(storage).get_asset_check_execution_history(key, limit=1)
    monkeypatch.delenv(IN_USER_CODE)
    with dg.DagsterInstance.from_ref(instance.get_ref()) as daemons:
        daemons.event_log_storage.get_asset_check_execution_history(key, limit=1)


@pytest.mark.parametrize(
    "client", [GraphQLEventLogStorage, GraphQLRunStorage, GraphQLScheduleStorage]
)
def test_no_refusal_of_dagster_plus_is_overlooked(client: type) -> None:
    """Each mention of the error in the class is in a method that is known to refuse."""
    mentioning = {
        name
        for name, attribute in vars(client).items()
        if inspect.isfunction(attribute) and "NotImplementedError" in inspect.getsource(attribute)
    }
    assert mentioning
    assert mentioning <= find_refused(client)


def test_dagster_plus_refuses_nothing_that_has_to_do_with_states() -> None:
    assert not find_refused(GraphQLDefsStateStorage)
