"""The automation condition, evaluated by Dagster on an ephemeral instance."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation_defs.automation import build_condition, compute_interval
from federation_defs.naming import CHECK_NAME

UPSTREAM, DOWNSTREAM = dg.AssetKey("upstream"), dg.AssetKey("downstream")


@dg.asset
def upstream() -> None: ...


@dg.asset(deps=[upstream], automation_condition=build_condition({UPSTREAM: "executed"}))
def downstream() -> None: ...


DEFS = dg.Definitions(assets=[upstream, downstream], executor=dg.in_process_executor)


class Automation:
    """The automation sensor: ticks of the condition, and the runs that they request."""

    def __init__(self, defs: dg.Definitions = DEFS) -> None:
        self.defs = defs
        self.job = defs.resolve_implicit_global_asset_job_def()
        self.instance = dg.DagsterInstance.ephemeral()
        self.cursor: Any = None
        self.run: dg.DagsterRun | None = None

    def tick(self) -> bool:
        """Return whether a tick requests a run of the downstream. The run then goes on."""
        result = dg.evaluate_automation_conditions(self.defs, self.instance, cursor=self.cursor)
        self.cursor = result.cursor
        is_requested = result.get_num_requested(DOWNSTREAM) == 1
        if is_requested:
            self.run = self.instance.create_run_for_job(
                self.job,
                asset_selection=frozenset({DOWNSTREAM}),
                status=dg.DagsterRunStatus.STARTED,
            )
        return is_requested

    def update_upstream(self) -> None:
        self.instance.report_runless_asset_event(dg.AssetMaterialization(UPSTREAM))

    def finish(self) -> None:
        """End the run that goes on, if there is one."""
        if self.run is not None:
            self.instance.report_runless_asset_event(dg.AssetMaterialization(DOWNSTREAM))
        self.leave()

    def leave(self) -> None:
        """End the run that goes on without a materialization."""
        if self.run is not None:
            self.instance.report_run_canceled(self.run, "over")
        self.run = None


def test_an_update_requests_one_run() -> None:
    automation = Automation()
    assert not automation.tick()
    automation.update_upstream()
    assert automation.tick()
    automation.finish()
    assert not automation.tick()


def test_loading_the_location_requests_nothing() -> None:
    automation = Automation()
    automation.update_upstream()
    assert not automation.tick()
    assert not automation.tick()


def test_an_update_before_the_tick_after_a_request_is_not_lost() -> None:
    """With `since()` alone, a request wins over an update that is new on the same tick."""
    automation = Automation()
    automation.tick()
    automation.update_upstream()
    assert automation.tick()
    automation.update_upstream()
    assert not automation.tick()
    automation.finish()
    assert automation.tick()
    automation.finish()
    assert not automation.tick()


@settings(max_examples=int(os.environ.get("HISTORIES", "10")))
@given(st.lists(st.sampled_from(["update", "tick", "finish"]), max_size=14))
def test_a_run_is_requested_if_there_was_an_update_since_the_last_request_and_no_run_goes_on(
    steps: list[str],
) -> None:
    automation = Automation()
    automation.update_upstream()
    automation.tick()
    is_pending = False
    for step in steps:
        if step == "update":
            automation.update_upstream()
            is_pending = True
        elif step == "finish":
            automation.finish()
        else:
            is_due = is_pending and automation.run is None
            assert automation.tick() == is_due
            is_pending = is_pending and not is_due


def materialize(instance: dg.DagsterInstance, _version: str) -> None:
    instance.report_runless_asset_event(dg.AssetMaterialization(UPSTREAM))


def observe(instance: dg.DagsterInstance, version: str) -> None:
    tags = {"dagster/data_version": version}
    instance.report_runless_asset_event(dg.AssetObservation(UPSTREAM, tags=tags))


DAYS = dg.DailyPartitionsDefinition("2025-01-01")


def materialize_day(instance: dg.DagsterInstance, version: str) -> None:
    """Another day each time; others are missing."""
    event = dg.AssetMaterialization(UPSTREAM, partition=f"2025-01-{1 + len(version):02}")
    instance.report_runless_asset_event(event)


@dg.observable_source_asset(key=UPSTREAM)
def observable() -> dg.DataVersion:
    raise NotImplementedError


@pytest.mark.filterwarnings("ignore:Property `OpDefinition.version`")  # dagster 1.13 itself
@pytest.mark.parametrize("when", ["any", "all"])
@pytest.mark.parametrize(
    ("asset", "happen", "requested"),
    [
        (upstream, materialize, [True, True, True]),
        (dg.AssetSpec(UPSTREAM), materialize, [True, True, True]),
        (observable, observe, [True, False, True]),
        (dg.AssetSpec(UPSTREAM, partitions_def=DAYS), materialize_day, [True, True, True]),
    ],
    ids=["of Dagster", "external", "observable", "partitioned"],
)
def test_an_asset_starts_a_dag_when_it_is_materialized_or_has_a_new_version(
    asset: Any, happen: Callable[..., None], requested: list[bool], when: Literal["any", "all"]
) -> None:
    condition = build_condition({UPSTREAM: "asset"}, when=when)

    @dg.asset(deps=[UPSTREAM], automation_condition=condition)
    def downstream() -> None: ...

    automation = Automation(dg.Definitions([asset, downstream]))
    automation.tick()
    ticks = []
    for version in ("one", "one", "two"):
        happen(automation.instance, version)
        ticks.append(automation.tick())
        automation.finish()
    assert ticks == requested


def test_an_asset_whose_last_run_failed_holds_a_dag_that_waits_for_all() -> None:
    condition = build_condition({UPSTREAM: "asset"}, when="all")

    @dg.asset(deps=[UPSTREAM], automation_condition=condition)
    def downstream() -> None: ...

    automation = Automation(dg.Definitions([upstream, downstream]))
    automation.tick()
    automation.update_upstream()
    for status, is_due in [("FAILURE", False), ("SUCCESS", True)]:
        automation.instance.create_run_for_job(
            automation.job,
            asset_selection=frozenset({UPSTREAM}),
            status=dg.DagsterRunStatus(status),
        )
        assert automation.tick() == is_due


@pytest.mark.parametrize(("check", "is_over"), [("other", False), (CHECK_NAME, True)])
def test_only_its_own_check_says_that_a_run_is_over_which_dagster_does_not_wait_for(
    check: str, *, is_over: bool
) -> None:
    condition = build_condition({UPSTREAM: "observed"}, detached=DOWNSTREAM)

    @dg.asset(
        deps=[UPSTREAM],
        check_specs=[dg.AssetCheckSpec(name, asset=DOWNSTREAM) for name in (CHECK_NAME, "other")],
        automation_condition=condition,
    )
    def downstream() -> dg.MaterializeResult:
        raise NotImplementedError

    automation = Automation(dg.Definitions([dg.AssetSpec(UPSTREAM), downstream]))
    automation.tick()
    automation.update_upstream()
    assert automation.tick()
    automation.leave()
    automation.update_upstream()
    assert not automation.tick()
    evaluation = dg.AssetCheckEvaluation(DOWNSTREAM, check, passed=False, metadata={})
    automation.instance.report_runless_asset_event(evaluation)
    assert automation.tick() == is_over


@pytest.mark.parametrize(
    ("downstreams", "interval_s"),
    [([], 1), ([0, 3], 1), ([20] * 7, 2), ([87] * 20, 10), ([12] * 200, 25), ([1] * 5000, 25)],
)
def test_automation_takes_two_thirds_of_the_daemons_time_at_most_and_ticks_twice_a_minute(
    downstreams: list[int], interval_s: int
) -> None:
    assert compute_interval(downstreams) == interval_s
