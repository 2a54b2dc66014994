from __future__ import annotations

from datetime import timedelta
from typing import Any

import dagster as dg
import pytest

from federation_defs.automation import build_condition
from federation_defs.declaration import DagDeclaration, DeadlineDeclaration
from federation_defs.naming import build_asset_key
from federation_defs.specs import build_specs
from federation_defs.state import Snapshot
from tests.unit.build import build_dag_snapshot, build_declaration, build_snapshot, declare_instance


def test_every_dag_of_the_snapshot_is_an_asset_of_its_instance() -> None:
    specs = build_specs(build_declaration("warehouse"), build_snapshot("a", "b"), set())
    assert [spec.key for spec in specs.values()] == [
        build_asset_key("warehouse", "a"),
        build_asset_key("warehouse", "b"),
    ]
    assert {spec.group_name for spec in specs.values()} == {"warehouse"}
    assert specs["a"].kinds == {"airflow", "dag"}


def test_an_asset_has_the_metadata_of_its_dag() -> None:
    dag = build_dag_snapshot(
        "a",
        description="Loads it.",
        schedule="0 4 * * *",
        owners=("data eng", "ann@example.com", ""),
        airflow_tags=("sales", "tier: 1"),
        is_paused=True,
    )
    spec = build_specs(build_declaration("warehouse"), build_snapshot(dag), set())["a"]
    assert spec.description == "Loads it."
    assert spec.owners == ["team:data eng", "ann@example.com"]
    assert {"sales", "tier__1"} <= set(spec.tags)
    assert spec.metadata == {
        "Dag ID": "a",
        "Link to DAG": dg.MetadataValue.url(dag.url),
        "Schedule": "0 4 * * *",
        "Paused": True,
    }


def test_a_dependency_is_an_edge_and_an_automation_condition() -> None:
    declaration = build_declaration("metrics", b=["warehouse/a"])
    specs = build_specs(declaration, build_snapshot("b", "c"), set())
    assert [dep.asset_key for dep in specs["b"].deps] == [build_asset_key("warehouse", "a")]
    assert specs["b"].automation_condition is not None
    assert specs["c"].automation_condition is None


def test_the_condition_of_a_dag_has_what_its_upstreams_need() -> None:
    declaration = build_declaration("metrics", b=["warehouse/a"], c=["metrics/b"], d=["sales/x"])
    others = {
        "warehouse": build_declaration("warehouse"),
        "sales": build_declaration("sales", x=["warehouse/a"]),
    }
    conditions = {
        dag_id: spec.automation_condition
        for dag_id, spec in build_specs(declaration, None, set(), others).items()
    }
    assert conditions["b"] == build_condition({build_asset_key("warehouse", "a"): "observed"})
    assert conditions["c"] == build_condition({build_asset_key("metrics", "b"): "executed"})
    assert conditions["d"] is conditions["c"]


def test_a_dag_may_depend_on_assets_and_wait_for_all_of_its_upstreams() -> None:
    trigger = {"when": "all", "wait": False}
    dag = {"depends_on": ["warehouse/a", {"asset": ["sales", "targets"]}], "trigger": trigger}
    declaration = declare_instance("metrics", {"b": dag})
    spec = build_specs(declaration, None, set(), {"warehouse": build_declaration("warehouse")})["b"]
    upstream, asset = build_asset_key("warehouse", "a"), dg.AssetKey(["sales", "targets"])
    assert [dep.asset_key for dep in spec.deps] == [upstream, asset]
    assert spec.automation_condition == build_condition(
        {upstream: "observed", asset: "asset"}, when="all", detached=spec.key
    )


@pytest.mark.parametrize("trigger", [{"runs": "each"}, {"pass_upstream": True}])
def test_a_dag_that_the_event_sensor_decides_has_edges_and_no_condition(
    trigger: dict[str, Any],
) -> None:
    dag = {"depends_on": ["warehouse/a"], "trigger": trigger}
    declaration = declare_instance("metrics", {"b": dag})
    spec = build_specs(declaration, None, set())["b"]
    assert [dep.asset_key for dep in spec.deps] == [build_asset_key("warehouse", "a")]
    assert spec.automation_condition is None


def test_an_instance_that_is_not_known_belongs_to_another_code_location() -> None:
    specs = build_specs(build_declaration("metrics", b=["warehouse/a"]), None, set())
    elsewhere = build_condition({build_asset_key("warehouse", "a"): "elsewhere"})
    assert specs["b"].automation_condition == elsewhere


@pytest.mark.parametrize("snapshot", [None, build_snapshot(), build_snapshot("a")])
def test_dags_that_a_declaration_names_are_assets_whatever_the_snapshot_says(
    snapshot: Snapshot | None,
) -> None:
    specs = build_specs(build_declaration("metrics", b=["warehouse/a"]), snapshot, {"x"})
    assert specs.keys() >= {"b", "x"}
    assert specs["b"].kinds == {"airflow", "dag"}
    assert specs["b"].metadata == {"Dag ID": "b"}


def test_a_deadline_is_shown_as_dagsters_freshness_policy() -> None:
    deadline = DeadlineDeclaration(cron="0 6 * * *", within=3 * 3600, timezone="Europe/Berlin")
    declaration = declare_instance("metrics", {"a": DagDeclaration(deadline=deadline)})
    specs = build_specs(declaration, build_snapshot("b"), set())
    within = timedelta(hours=3)
    policy = dg.FreshnessPolicy.cron("0 6 * * *", within, "Europe/Berlin")
    assert specs["a"].freshness_policy == policy
    assert specs["b"].freshness_policy is None
