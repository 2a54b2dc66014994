"""Dependencies on instances that other code locations declare."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dagster as dg
import pytest
from pydantic import ValidationError

from federation_defs.automation import build_condition
from federation_defs.partition_mapping import build_mappings
from federation_defs.specs import build_specs
from federation_defs.validation import Member, find_problems
from tests.unit.build import declare_instance

HOURLY = {"cron": "0 * * * *", "start": "2026-01-01"}
DAILY = {"cron": "0 0 * * *", "start": "2026-01-01"}
UPSTREAM, DOWNSTREAM = dg.AssetKey(["warehouse", "dag", "load"]), dg.AssetKey("downstream")


def declare(name: str, project: str, dags: dict[str, Any] | None = None, **more: Any) -> Member:
    declared = declare_instance(name, dags or {}, **more)
    return Member(f"{project}/defs/{name}/defs.yaml", declared, project)


def depend(on: Any, elsewhere: list[str] | None = None, **dag: Any) -> Member:
    dags = {"report": {"depends_on": [on], **dag}}
    return declare("sales", "sales", dags, elsewhere=elsewhere or ["warehouse"])


def test_an_instance_that_is_named_as_elsewhere_may_be_depended_on() -> None:
    assert find_problems([depend("warehouse/load")]) == []


def test_a_dag_elsewhere_that_is_written_as_an_asset_is_a_problem() -> None:
    """It would hide from every other check."""
    assert find_problems([depend({"asset": ["warehouse", "dag", "load"]})]) == [
        "sales/defs/sales/defs.yaml: dags.report.depends_on: the asset warehouse/dag/load is a "
        "DAG; write warehouse/load"
    ]
    assert find_problems([depend({"asset": ["lake", "dag", "load"]})]) == []


def test_a_typing_error_is_still_one() -> None:
    (problem,) = find_problems([depend("warehose/load")])
    assert problem.endswith("no Airflow instance 'warehose'; did you mean 'warehouse'?")


def test_an_unknown_name_says_how_to_name_an_instance_of_another_location() -> None:
    (problem,) = find_problems([depend("finance/close")])
    assert problem.endswith("or write `elsewhere: [finance]` if another code location declares it.")


def test_an_instance_is_not_both_here_and_elsewhere() -> None:
    here = declare("warehouse", "sales")
    assert find_problems([here, depend("warehouse/load")]) == [
        "sales/defs/sales/defs.yaml: elsewhere: 'warehouse' is declared in this code location, in "
        "sales/defs/warehouse/defs.yaml; remove it"
    ]


def test_a_dag_with_partitions_says_which_ones_an_upstream_elsewhere_has() -> None:
    (problem,) = find_problems([depend("warehouse/load", partitions=DAILY)])
    assert "write its `partitions` beside `dag: warehouse/load`" in problem
    upstream = {"dag": "warehouse/load"}
    for known in ({"partitions": HOURLY}, {"window": "last"}, {"window": "current"}):
        assert find_problems([depend({**upstream, **known}, partitions=DAILY)]) == []


def test_partitions_that_an_upstream_elsewhere_has_are_mapped_as_if_it_were_here() -> None:
    member = depend({"dag": "warehouse/load", "partitions": HOURLY}, partitions=DAILY)
    (mapping,) = build_mappings(member.declaration.dags["report"], {})
    assert mapping.find_needed("2026-01-02")[1] == 24
    spec = build_specs(member.declaration, None, set())["report"]
    assert spec.automation_condition is None  # the event sensor decides
    dg.Definitions(assets=[spec]).resolve_asset_graph()


@pytest.mark.parametrize(
    ("dependency", "dag", "said"),
    [
        ({"dag": "warehouse/load", "partitions": HOURLY}, {}, "declare `partitions`"),
        ({"dag": "warehouse/load", "partitions": "auto"}, {"partitions": DAILY}, "in full"),
        ({"asset": ["a"], "partitions": DAILY}, {"partitions": DAILY}, "DAG of another code"),
    ],
)
def test_partitions_of_an_upstream_are_refused_where_they_say_nothing(
    dependency: dict[str, Any], dag: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        depend(dependency, **dag)


def test_partitions_of_an_upstream_that_is_declared_here_are_refused() -> None:
    here = declare("warehouse", "sales", {"load": {"partitions": HOURLY}})
    sales = depend({"dag": "warehouse/load", "partitions": HOURLY}, partitions=DAILY)
    declared = sales.declaration.model_copy(update={"elsewhere": []})
    (problem,) = find_problems([here, replace(sales, declaration=declared)])
    assert "remove the `partitions` beside it" in problem


def test_partitions_that_changed_in_one_location_only_are_found_where_all_are_known() -> None:
    here = depend({"dag": "warehouse/load", "partitions": DAILY}, partitions=DAILY)
    there = declare("warehouse", "core", {"load": {"partitions": DAILY}})
    assert find_problems([here, there], is_whole=True) == []
    there = declare("warehouse", "core", {"load": {"partitions": {**DAILY, "start": "2025-01-01"}}})
    (problem,) = find_problems([here, there], is_whole=True)
    assert "are declared otherwise in core/defs/warehouse/defs.yaml" in problem
    assert "write those beside `dag: warehouse/load`" in problem
    assert "2025-01-01" in problem


@pytest.mark.parametrize(
    ("select", "dags", "is_asset"),
    [
        ({}, {}, True),
        ({"dag_ids": ["extract_*"]}, {}, False),
        ({"exclude": ["lo*"]}, {}, False),
        ({"exclude": ["lo*"]}, {"load": {}}, True),
        ({"exclude": ["lo*"]}, {"clean": {"depends_on": ["warehouse/load"]}}, True),
        ({"tags": ["team"]}, {}, True),  # only Airflow knows
    ],
)
def test_a_dag_elsewhere_is_declared_or_selected_there(
    select: dict[str, Any], dags: dict[str, Any], is_asset: bool
) -> None:
    there = declare("warehouse", "core", dags, select=select)
    problems = find_problems([depend("warehouse/load"), there], is_whole=True)
    assert bool(problems) != is_asset
    said = "neither declares nor selects 'load'; add it to `dags` or `select` there"
    assert all(said in each for each in problems)


def build_automation(partitions: dg.PartitionsDefinition | None) -> dg.Definitions:
    """Return the two assets as the daemon sees them, which has both locations' definitions."""

    @dg.asset(key=UPSTREAM, partitions_def=partitions)
    def upstream() -> None: ...

    condition = build_condition({UPSTREAM: "elsewhere"})

    @dg.asset(key=DOWNSTREAM, deps=[upstream], automation_condition=condition)
    def downstream() -> None: ...

    return dg.Definitions(assets=[upstream, downstream])


@pytest.mark.parametrize("partition", [None, "a"])
def test_an_update_elsewhere_counts_whether_or_not_the_upstream_has_partitions(
    partition: str | None,
) -> None:
    defs = build_automation((partition and dg.StaticPartitionsDefinition(["a", "b"])) or None)
    with dg.DagsterInstance.ephemeral() as instance:
        before = dg.evaluate_automation_conditions(defs, instance)
        instance.report_runless_asset_event(dg.AssetMaterialization(UPSTREAM, partition=partition))
        after = dg.evaluate_automation_conditions(defs, instance, cursor=before.cursor)
        assert (before.total_requested, after.get_num_requested(DOWNSTREAM)) == (0, 1)
