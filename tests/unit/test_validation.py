from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dagster.components import DefsStateConfigArgs

from federation_defs.state import Snapshot
from federation_defs.validation import (
    Member,
    find_absent_dags,
    find_dateless_triggers,
    find_deep_chains,
    find_named_dags,
    find_problems,
)
from tests.unit.build import (
    build_dag_snapshot,
    build_declaration,
    build_snapshot,
    declare_instance,
)


def build_member(name: str, **dags: list[str]) -> Member:
    return Member(f"defs/{name}/defs.yaml", build_declaration(name, **dags))


def declare(name: str, dags: dict[str, Any], **more: Any) -> Member:
    return Member(f"defs/{name}/defs.yaml", declare_instance(name, dags, **more))


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


@pytest.mark.parametrize("state", ["success", "failure"])
def test_a_cycle_is_named_with_its_path(state: str) -> None:
    first = declare("first", {"a": {"depends_on": [{"dag": "second/b", "state": state}]}})
    (problem,) = find_problems([first, build_member("second", b=["first/a"])])
    assert problem in (
        "defs/first/defs.yaml: dags.a.depends_on: there is a cycle: first/a → second/b → first/a; "
        "remove one of these dependencies",
        "defs/second/defs.yaml: dags.b.depends_on: there is a cycle: second/b → first/a → "
        "second/b; remove one of these dependencies",
    )


def test_a_dag_that_depends_on_itself_is_a_cycle() -> None:
    assert find_problems([build_member("metrics", a=["metrics/a"])]) == [
        "defs/metrics/defs.yaml: dags.a.depends_on: there is a cycle: metrics/a → metrics/a; "
        "remove one of these dependencies"
    ]


def test_all_cycles_are_named() -> None:
    member = build_member("m", a=["m/b"], b=["m/a", "m/c"], c=["m/b"], d=["m/d"])
    assert len(find_problems([member])) == 3


def test_a_dag_that_is_written_as_an_asset_is_a_problem() -> None:
    """It would hide from every other check."""
    asset = {"asset": ["warehouse", "dag", "load_customers"]}
    others = [{"asset": ["warehouse", "load_customers"]}, {"asset": ["lake", "dag", "x"]}]
    metrics = declare("metrics", {"b": {"depends_on": [asset, *others]}})
    assert find_problems([WAREHOUSE, metrics]) == [
        "defs/metrics/defs.yaml: dags.b.depends_on: the asset warehouse/dag/load_customers is a "
        "DAG; write warehouse/load_customers"
    ]


def test_a_dependency_between_environments_is_a_problem() -> None:
    staging = declare("warehouse", {}, environment="staging")
    metrics = declare("metrics", {"b": {"depends_on": ["warehouse/a"]}}, environment="production")
    assert find_problems([staging, metrics]) == [
        "defs/metrics/defs.yaml: dags.b.depends_on: warehouse/a belongs to the environment "
        "'staging', and metrics to 'production'; if that is meant, write `across_environments: "
        "true` beside `dag: warehouse/a`"
    ]


@pytest.mark.parametrize(
    ("upstream", "downstream", "across"),
    [
        ("staging", "staging", False),
        ("staging", "production", True),
        ("staging", None, False),
        (None, "production", False),
        (None, None, False),
    ],
)
def test_a_dependency_is_free_within_an_environment_if_it_says_so_or_without_environments(
    upstream: str | None, downstream: str | None, across: bool
) -> None:
    dependency = {"dag": "warehouse/a", "across_environments": across}
    members = [
        declare("warehouse", {}, environment=upstream),
        declare("metrics", {"b": {"depends_on": [dependency]}}, environment=downstream),
    ]
    assert find_problems(members) == []


@pytest.mark.parametrize(
    ("state", "key", "value"),
    [
        ("late", "deadline", {"cron": "0 6 * * *", "within": "3h"}),
        ("slow", "max_duration", "2h"),
    ],
)
def test_a_state_that_an_upstream_never_has_is_a_problem(state: str, key: str, value: Any) -> None:
    warehouse = declare("warehouse", {"load_orders": {key: value}, "other": {}})
    upstreams = ["load_orders", "load_order", "other"]
    depends_on = [{"dag": f"warehouse/{dag_id}", "state": state} for dag_id in upstreams]
    metrics = declare("metrics", {"b": {"depends_on": depends_on}})
    where = "defs/metrics/defs.yaml: dags.b.depends_on: warehouse"
    never = f"has no `{key}`, and so is never {state}; declare dags"
    assert find_problems([warehouse, metrics]) == [
        f"{where}/load_order {never}.load_order.{key} in defs/warehouse/defs.yaml; did you mean "
        "'load_orders'?",
        f"{where}/other {never}.other.{key} in defs/warehouse/defs.yaml",
    ]


def build_chain(name: str, length: int, first: str = "source") -> Member:
    dags = {f"d{number}": [f"{name}/d{number - 1}"] for number in range(2, length)}
    return build_member(name, d1=[f"{name}/{first}"], **dags)


def test_a_chain_of_six_dags_is_named_with_its_path_and_one_of_five_is_not() -> None:
    assert list(find_deep_chains([build_chain("m", 5)])) == []
    assert list(find_deep_chains([build_chain("m", 6)])) == [
        "defs/m/defs.yaml: dags.d5.depends_on: a chain of 6 DAGs, in which a delay is hard to "
        "trace: m/source → m/d1 → m/d2 → m/d3 → m/d4 → m/d5. Where a DAG needs only an earlier "
        "one, let it depend on that."
    ]


def test_chains_that_share_a_dag_are_named_once() -> None:
    fan_out = build_member("wide", **{f"w{number}": ["m/d5"] for number in range(50)})
    below = build_member("below", last=["wide/w7", "m/d1"])
    warnings = list(find_deep_chains([build_chain("m", 6), fan_out, below, build_chain("x", 8)]))
    assert [warning.split(", ")[0].split("a chain of ")[1] for warning in warnings] == [
        "8 DAGs",
        "8 DAGs",
    ]
    assert "m/d5 → wide/w7 → below/last." in warnings[0]


def test_the_time_to_find_deep_chains_does_not_grow_with_their_length_times_their_number() -> None:
    long = build_chain("m", 6_000)
    leaves = build_member("leaves", **{f"l{number}": ["m/d5999"] for number in range(6_000)})
    begin = time.process_time()
    (warning,) = find_deep_chains([leaves, long])
    assert "a chain of 6001 DAGs" in warning
    assert time.process_time() - begin < 2


DAILY: dict[str, Any] = {"partitions": {"cron": "0 0 * * *", "start": "2026-01-01"}}
HOURLY: dict[str, Any] = {"partitions": {"cron": "@hourly", "start": "2026-01-01"}}


def test_a_function_that_can_not_be_asked_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rules_of_a_month.py").write_text("def is_month_end(event): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    functions = ["is_month_end", "is_month_and"]
    dags = {
        name: {"depends_on": ["n/x"], "trigger": {"only_if": f"rules_of_a_month:{name}"}}
        for name in functions
    }
    trigger = {"only_if": "rules_of_no_month:is_month_end"}
    missing = {"other": {"depends_on": ["m/x"], "trigger": trigger}}
    assert find_problems([declare("m", dags), declare("n", missing)]) == [
        "defs/m/defs.yaml: dags.is_month_and.trigger.only_if: rules_of_a_month:is_month_and is not "
        "in its module; did you mean 'is_month_end'?",
        "defs/n/defs.yaml: dags.other.trigger.only_if: rules_of_no_month:is_month_end can't be "
        "imported: ModuleNotFoundError: No module named 'rules_of_no_month'",
    ]


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
        "b, c. Restore the DAG, or remove its id from the declarations."
    }


def test_a_dag_without_a_file_is_absent_and_no_typing_error() -> None:
    metrics = build_member("metrics", b=["metrics/a"])
    snapshot = build_snapshot("a", build_dag_snapshot("b", is_present=False))
    assert find_absent("metrics", snapshot, metrics) == {
        "b": "defs/metrics/defs.yaml: dags.b: Airflow 'metrics' has no DAG 'b': its file has gone, "
        "or does not parse. Restore the DAG, or remove its id from the declarations."
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
    trigger = {"logical_date": "none"}
    member = declare("metrics", {"a": {"depends_on": ["warehouse/b"], "trigger": trigger}})
    problems = list(find_dateless_triggers(member, replace(build_snapshot("a"), api=api)))
    assert problems == [
        "defs/metrics/defs.yaml: dags.a.trigger.logical_date: Airflow 'metrics' is a 2.x, where "
        "every run has a logical date; remove the key"
    ] * (api == "v1")
    assert not list(find_dateless_triggers(member, None))


HOURS, DAYS = HOURLY["partitions"], DAILY["partitions"]


@pytest.mark.parametrize(
    ("upstream", "dag", "problem"),
    [
        (
            {},
            {"window": "same"},
            "warehouse/up has no partitions, and so no `window: same`; declare "
            "dags.up.partitions, or write last or current",
        ),
        (
            {"partitions": DAYS},
            {"window": "last"},
            "warehouse/up has partitions; write `window: same` or previous, in place of last",
        ),
        (
            {},
            {"window": "current", "partitions": {**DAYS, "date": "data_interval_end"}},
            "`window: current` of warehouse/up would run partitions before the end of their "
            "windows, and with `date: data_interval_end` that end is the date of the run; write "
            "another date",
        ),
        (
            {"partitions": {**HOURS, "cron": "* * * * *"}},
            {"partitions": {**DAYS, "cron": "@monthly"}},
            "a partition of this DAG is as long as 43611 partitions of warehouse/up; put a DAG "
            "between them whose partitions are days",
        ),
        (
            {"partitions": {**DAYS, "cron": "@monthly"}},
            {"partitions": {**HOURS, "cron": "* * * * *"}},
            "a partition of warehouse/up is as long as 43611 partitions of this DAG; put a DAG "
            "between them whose partitions are days",
        ),
        (
            {"partitions": HOURS},
            {"trigger": {"runs": "each"}},
            "with `runs: each`, each of the 24 partitions of warehouse/up that a partition of this "
            "DAG needs would run it; remove `runs`",
        ),
    ],
)
def test_partitions_that_can_not_line_up_are_a_problem(
    upstream: dict[str, Any], dag: dict[str, Any], problem: str
) -> None:
    edge = {"dag": "warehouse/up", **{key: dag.pop(key) for key in ("window",) if key in dag}}
    metrics = declare("metrics", {"b": {"partitions": DAYS, **dag, "depends_on": [edge]}})
    (found,) = find_problems([declare("warehouse", {"up": upstream}), metrics])
    assert found == f"{metrics.source}: dags.b.depends_on: {problem}"
