from __future__ import annotations

from dataclasses import replace

import pytest
from dagster.components import DefsStateConfigArgs

from federation_defs.declaration import InstanceDeclaration
from federation_defs.state import Snapshot
from federation_defs.validation import (
    Member,
    find_absent_dags,
    find_dateless_triggers,
    find_named_dags,
    find_problems,
)
from tests.unit.build import build_dag_snapshot, build_declaration, build_snapshot


def build_member(name: str, **dags: list[str]) -> Member:
    return Member(f"defs/{name}/defs.yaml", build_declaration(name, **dags))


def declare_state(member: Member, key: str) -> Member:
    state = DefsStateConfigArgs.local_filesystem().model_copy(update={"key": key})
    return Member(member.source, member.declaration.model_copy(update={"defs_state": state}))


def find_absent(instance: str, snapshot: Snapshot | None, *members: Member) -> dict[str, str]:
    return find_absent_dags(instance, snapshot, find_named_dags(members).get(instance, {}))


WAREHOUSE = build_member("warehouse")
METRICS = build_member("metrics", customer_metrics=["warehouse/load_customers"])


def test_a_consistent_federation_has_no_problems() -> None:
    assert find_problems([WAREHOUSE, METRICS]) == []
    snapshot = build_snapshot("load_customers")
    assert find_absent("warehouse", snapshot, WAREHOUSE, METRICS) == {}


def test_an_unknown_instance_is_named_with_a_similar_one() -> None:
    assert find_problems([WAREHOUSE, build_member("metrics", b=["warehose/a"])]) == [
        "defs/metrics/defs.yaml: dags.b.depends_on: there is no Airflow instance 'warehose'; "
        "did you mean 'warehouse'?"
    ]


def test_all_problems_of_all_files_are_found_at_once() -> None:
    members = [build_member("warehouse", x=["nowhere/y"]), build_member("metrics", b=["x/q"])]
    assert len(find_problems(members)) == 2


@pytest.mark.parametrize("other", ["metrics", "Metrics"])
def test_two_instances_with_the_same_name_are_a_problem(other: str) -> None:
    members = [
        Member("defs/a/defs.yaml", build_declaration(other)),
        Member("defs/b/defs.yaml", build_declaration("metrics")),
    ]
    (problem,) = find_problems(members)
    assert problem.startswith("defs/b/defs.yaml: name: 'metrics' is the name of defs/a/defs.yaml")


@pytest.mark.parametrize("key", ["shared", "FederatedAirflow[warehouse]", "s h A r e d"])
def test_two_instances_with_the_same_state_are_a_problem(key: str) -> None:
    assert find_problems([declare_state(WAREHOUSE, "other"), declare_state(METRICS, key)]) == []
    other = (
        WAREHOUSE if "warehouse" in key else declare_state(WAREHOUSE, key.lower().replace(" ", "/"))
    )
    (problem,) = find_problems([other, declare_state(METRICS, key)])
    assert problem.startswith(
        f"defs/metrics/defs.yaml: defs_state.key: '{key}' is the key of defs/warehouse/defs.yaml"
    )


def test_a_cycle_is_named_with_its_path() -> None:
    members = [build_member("first", a=["second/b"]), build_member("second", b=["first/a"])]
    (problem,) = find_problems(members)
    assert "first/a → second/b → first/a" in problem or "second/b → first/a → second/b" in problem


def test_an_absent_upstream_is_named_with_the_place_and_a_similar_one() -> None:
    metrics = build_member("metrics", b=["warehouse/load_custmers"], c=["warehouse/load_custmers"])
    snapshot = build_snapshot("load_customers", "x")
    assert find_absent("warehouse", snapshot, WAREHOUSE, metrics) == {
        "load_custmers": "defs/metrics/defs.yaml: dags.b.depends_on, "
        "defs/metrics/defs.yaml: dags.c.depends_on: Airflow 'warehouse' has no DAG "
        "'load_custmers'; did you mean 'load_customers'?"
    }


def test_an_absent_declared_dag_is_named_with_the_known_ones() -> None:
    metrics = build_member("metrics", zzz=["metrics/b"])
    assert find_absent("metrics", build_snapshot("b", "c"), metrics) == {
        "zzz": "defs/metrics/defs.yaml: dags.zzz: Airflow 'metrics' has no DAG 'zzz'; there is "
        "b, c."
    }


def test_a_dag_without_a_file_is_absent_and_no_typing_error() -> None:
    metrics = build_member("metrics", b=["metrics/a"])
    snapshot = build_snapshot("a", build_dag_snapshot("b", is_present=False))
    assert find_absent("metrics", snapshot, metrics) == {
        "b": "defs/metrics/defs.yaml: dags.b: Airflow 'metrics' has no DAG 'b': its file has gone, "
        "or does not parse."
    }


@pytest.mark.parametrize("snapshot", [None, build_snapshot()])
def test_no_dag_is_absent_from_an_instance_that_never_listed_one(snapshot: Snapshot | None) -> None:
    assert find_absent("warehouse", snapshot, WAREHOUSE, METRICS) == {}


def test_a_dag_that_others_depend_on_need_not_be_selected() -> None:
    """Its selection may depend on a tag, which its owners may remove at any time."""
    snapshot = build_snapshot("a", unselected=("load_customers",))
    assert find_absent("warehouse", snapshot, WAREHOUSE, METRICS) == {}


@pytest.mark.parametrize("api", ["v1", "v2", None])
def test_only_an_airflow_that_is_known_as_a_2_has_no_runs_without_a_date(api: str | None) -> None:
    member = build_member("metrics", a=["warehouse/b"])
    trigger = {"dags": {"a": {"depends_on": ["warehouse/b"], "trigger": {"logical_date": "none"}}}}
    declared = {**member.declaration.model_dump(exclude_unset=True), **trigger}
    member = Member(member.source, InstanceDeclaration.model_validate(declared))
    problems = list(find_dateless_triggers(member, replace(build_snapshot("a"), api=api)))
    assert problems == [
        "defs/metrics/defs.yaml: dags.a.trigger.logical_date: Airflow 'metrics' is a 2.x, where "
        "every run has a logical date; remove the key"
    ] * (api == "v1")
    assert not list(find_dateless_triggers(member, None))
