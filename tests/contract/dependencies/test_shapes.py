"""Dependencies of several DAGs in several instances: chains, diamonds, any and all of them, and
Dagster assets between them."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg
import pytest

from federation_defs import build_asset_key
from tests.contract.conftest import StartAirflow
from tests.contract.dependencies.federating import Federate, federating

AFTER_LOAD = {"depends_on": ["top/load"]}
BOTTOM = {"depends_on": ["left/clean", "right/count"]}
SIDES = {"top": {"load": {}}, "left": {"clean": AFTER_LOAD}, "right": {"count": AFTER_LOAD}}
ALL = {**SIDES, "bottom": {"report": {**BOTTOM, "trigger": {"when": "all"}}}}
ANY = {**SIDES, "bottom": {"report": BOTTOM}}


@pytest.fixture
def federate(start_airflow: StartAirflow, instance: dg.DagsterInstance) -> Iterator[Federate]:
    with federating(start_airflow, instance) as federate:
        yield federate


def test_the_bottom_of_a_diamond_that_waits_for_all_runs_once_per_change(
    federate: Federate,
) -> None:
    federation = federate(ALL)
    for _ in range(2):
        federation.end("top/load")
        assert federation.tick() == ["left/clean", "right/count"]
        federation.end("left/clean")
        assert federation.tick() == []
        federation.end("right/count")
        assert federation.tick() == ["bottom/report"]
        federation.end("bottom/report")
        assert federation.tick() == []
    assert federation.count_runs("bottom/report") == 2


def test_sides_of_a_diamond_that_run_one_after_the_other_are_waited_for(
    federate: Federate,
) -> None:
    federation = federate(ALL)
    federation.end("top/load")
    assert federation.tick("left") == ["left/clean"]
    federation.end("left/clean")
    assert federation.tick("bottom", "right") == ["right/count"]
    federation.end("right/count")
    assert federation.tick() == ["bottom/report"]


def test_a_side_that_failed_holds_the_bottom_until_it_has_succeeded(federate: Federate) -> None:
    federation = federate(ALL)
    federation.end("top/load")
    federation.tick()
    federation.end("left/clean")
    federation.end("right/count", "failed")
    assert federation.tick() == []
    federation.end("right/count")
    assert federation.tick() == ["bottom/report"]


def test_an_upstream_that_is_requested_again_is_waited_for(federate: Federate) -> None:
    """It might fail, and what the others have done would be used up."""
    report = {"depends_on": ["left/clean", "top/count"], "trigger": {"when": "all"}}
    left = {"clean": AFTER_LOAD, "report": report}
    federation = federate({"top": {"load": {}, "count": {}}, "left": left})
    federation.end("top/load")
    assert federation.tick() == ["left/clean"]
    federation.end("left/clean")
    for dag in ("top/count", "top/load"):
        federation.end(dag)
    assert federation.tick() == ["left/clean"]
    federation.end("left/clean", "failed")
    assert federation.tick() == []
    federation.end("left/clean")
    assert federation.tick() == ["left/report"]


def test_an_upstream_that_failed_after_its_success_holds_the_others(federate: Federate) -> None:
    waits = {"depends_on": ["top/load", "left/clean"], "trigger": {"when": "all"}}
    federation = federate({"top": {"load": {}}, "left": {"clean": {}}, "bottom": {"report": waits}})
    federation.end("top/load")
    federation.end("top/load", "failed")
    federation.end("left/clean")
    assert federation.tick() == []
    federation.end("top/load")
    assert federation.tick() == ["bottom/report"]


def test_any_upstream_starts_a_dag_though_the_last_run_of_another_failed(
    federate: Federate,
) -> None:
    waits = {"depends_on": ["top/load", "left/clean"]}
    federation = federate({"top": {"load": {}}, "left": {"clean": {}}, "bottom": {"report": waits}})
    federation.end("top/load")
    federation.end("left/clean")
    assert federation.tick() == ["bottom/report"]
    federation.end("bottom/report")
    federation.end("top/load", "failed")
    federation.end("left/clean")
    assert federation.tick() == ["bottom/report"]


def test_any_side_starts_the_bottom_of_a_diamond_when_no_side_is_in_progress(
    federate: Federate,
) -> None:
    federation = federate(ANY)
    federation.end("top/load")
    assert federation.tick() == ["left/clean", "right/count"]
    federation.end("left/clean")
    assert federation.tick() == []
    federation.end("right/count")
    assert federation.tick() == ["bottom/report"]
    federation.end("bottom/report")
    assert federation.tick() == []


def test_any_side_starts_the_bottom_of_a_diamond_when_the_other_was_not_requested_yet(
    federate: Federate,
) -> None:
    """No condition sees what the sensor of another instance is about to request."""
    federation = federate(ANY)
    federation.end("top/load")
    assert federation.tick() == ["left/clean", "right/count"]
    for side in ("left/clean", "right/count"):
        federation.end(side)
    assert federation.tick() == ["bottom/report"]
    federation.end("bottom/report")
    federation.end("top/load")
    assert federation.tick("left") == ["left/clean"]
    federation.end("left/clean")
    assert federation.tick("bottom", "right") == ["bottom/report", "right/count"]
    for dag in ("bottom/report", "right/count"):
        federation.end(dag)
    assert federation.tick() == ["bottom/report"]


def test_a_chain_goes_over_several_instances_and_back(federate: Federate) -> None:
    federation = federate(
        {
            "first": {"load": {}, "publish": {"depends_on": ["third/report"]}},
            "second": {"clean": {"depends_on": ["first/load"]}},
            "third": {"report": {"depends_on": ["second/clean"]}},
        }
    )
    federation.end("first/load")
    for dag in ("second/clean", "third/report", "first/publish"):
        assert federation.tick() == [dag]
        federation.end(dag)
    assert federation.tick() == []


def test_one_dag_starts_many(federate: Federate) -> None:
    names = [f"i{number}" for number in range(4)]
    federation = federate({"top": {"load": {}}, **{name: {"clean": AFTER_LOAD} for name in names}})
    federation.end("top/load")
    assert federation.tick() == [f"{name}/clean" for name in names]
    for name in names:
        federation.end(f"{name}/clean")
    assert federation.tick() == []


def test_dagster_assets_and_dags_depend_on_each_other(federate: Federate) -> None:
    @dg.asset(
        deps=[build_asset_key("top", "load")],
        automation_condition=dg.AutomationCondition.eager(),
    )
    def targets() -> None: ...

    report = {"depends_on": ["top/load", {"asset": ["targets"]}], "trigger": {"when": "all"}}
    federation = federate({"top": {"load": {}}, "bottom": {"report": report}}, [targets])
    federation.end("top/load")
    assert federation.tick("bottom") == []
    assert federation.tick("own") == ["own/targets"]
    assert federation.tick() == ["bottom/report"]
    federation.end("bottom/report")
    assert federation.tick() == []
