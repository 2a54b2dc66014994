from __future__ import annotations

from federation_defs.declaration import InstanceDeclaration
from federation_defs.state import Snapshot
from federation_defs.validation import Member, find_problems
from tests.unit.build import build_declaration, build_snapshot


def member(declaration: InstanceDeclaration, snapshot: Snapshot | None = None) -> Member:
    return Member(f"defs/{declaration.name}/defs.yaml", declaration, snapshot)


def test_a_consistent_federation_has_no_problems() -> None:
    warehouse = member(build_declaration("warehouse"), build_snapshot("load_customers"))
    metrics = member(
        build_declaration("metrics", customer_metrics=["warehouse/load_customers"]),
        build_snapshot("customer_metrics"),
    )
    assert find_problems([warehouse, metrics]) == []


def test_an_unknown_instance_is_named_with_a_similar_one() -> None:
    warehouse = member(build_declaration("warehouse"), build_snapshot("a"))
    metrics = member(build_declaration("metrics", b=["warehose/a"]), build_snapshot("b"))
    assert find_problems([warehouse, metrics]) == [
        "defs/metrics/defs.yaml: dags.b.depends_on: there is no Airflow instance 'warehose'; "
        "did you mean 'warehouse'?"
    ]


def test_an_unknown_upstream_dag_is_named_with_a_similar_one() -> None:
    warehouse = member(build_declaration("warehouse"), build_snapshot("load_customers", "x"))
    metrics = member(
        build_declaration("metrics", b=["warehouse/load_custmers"]), build_snapshot("b")
    )
    assert find_problems([warehouse, metrics]) == [
        "defs/metrics/defs.yaml: dags.b.depends_on: Airflow 'warehouse' has no DAG "
        "'load_custmers'; did you mean 'load_customers'?"
    ]


def test_an_unknown_declared_dag_is_named_with_the_known_ones() -> None:
    metrics = member(build_declaration("metrics", zzz=["metrics/b"]), build_snapshot("b", "c"))
    assert find_problems([metrics]) == [
        "defs/metrics/defs.yaml: dags.zzz: Airflow 'metrics' has no DAG 'zzz'; there is b, c."
    ]


def test_all_problems_of_all_files_are_found_at_once() -> None:
    warehouse = member(build_declaration("warehouse", x=["nowhere/y"]), build_snapshot("z"))
    metrics = member(build_declaration("metrics", b=["warehouse/q"]), build_snapshot("b"))
    assert len(find_problems([warehouse, metrics])) == 3


def test_a_deleted_dag_is_no_problem() -> None:
    warehouse = member(build_declaration("warehouse"), build_snapshot(vanished=("a",)))
    metrics = member(
        build_declaration("metrics", b=["warehouse/a"]), build_snapshot(vanished=("b",))
    )
    assert find_problems([warehouse, metrics]) == []


def test_the_dags_of_an_instance_that_was_never_reached_are_not_checked() -> None:
    warehouse = member(build_declaration("warehouse"))
    metrics = member(build_declaration("metrics", b=["warehouse/a"]))
    assert find_problems([warehouse, metrics]) == []


def test_a_dag_that_others_depend_on_need_not_be_selected() -> None:
    """Its selection may depend on a tag, which its owners may remove at any time."""
    warehouse = member(build_declaration("warehouse"), build_snapshot("a", unselected=("tmp_b",)))
    metrics = member(build_declaration("metrics", c=["warehouse/tmp_b"]), build_snapshot("c"))
    assert find_problems([warehouse, metrics]) == []


def test_the_dags_of_an_instance_that_lists_none_are_not_checked() -> None:
    warehouse = member(build_declaration("warehouse"), build_snapshot())
    metrics = member(build_declaration("metrics", b=["warehouse/a"]), build_snapshot())
    assert find_problems([warehouse, metrics]) == []


def test_two_instances_with_the_same_name_are_a_problem() -> None:
    first = Member("defs/a/defs.yaml", build_declaration("metrics"), None)
    second = Member("defs/b/defs.yaml", build_declaration("metrics"), None)
    (problem,) = find_problems([first, second])
    assert problem.startswith("defs/b/defs.yaml: name: 'metrics' is the name of defs/a/defs.yaml")


def test_a_cycle_is_named_with_its_path() -> None:
    first = member(build_declaration("first", a=["second/b"]))
    second = member(build_declaration("second", b=["first/a"]))
    (problem,) = find_problems([first, second])
    assert "first/a → second/b → first/a" in problem or "second/b → first/a → second/b" in problem
