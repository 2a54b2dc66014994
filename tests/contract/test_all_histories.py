"""The condition of `when: all` beside a model with a latch per upstream: in any history, both
request the same."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from federation_defs.automation import Upstream, build_condition
from federation_defs.naming import CHECK_NAME, build_asset_key
from tests.contract.history import RunHistory

A, B, C = (build_asset_key("airflow", name) for name in "abc")
OTHER_CHECK = "max_duration"
# As observation reports it, and in a Dagster run of `b`, or of `b` and `c`.
OBSERVED = ["a succeeds", "a fails", "b succeeds"]
IN_RUN = ["b starts", "b and c start", "run materializes b", "run fails b"]
ENDS = ["c succeeds", "c breaks"]
EVENTS = {
    "observed": [*OBSERVED, "b fails", "a is slow", *ENDS],
    "executed": [*OBSERVED, *IN_RUN, *IN_RUN, "run succeeds", "run breaks", *ENDS],
}
# What happens before each tick.
TWICE_AND_ONCE = [["a succeeds"], ["a succeeds", "b succeeds"], ["c succeeds"], ["b succeeds"]]
DURING_A_RUN = [["a succeeds", "b succeeds"], [], ["a succeeds"], ["b succeeds"], ["c breaks"]]
AFTER_A_REQUEST = [["a succeeds", "b succeeds"], ["a succeeds", "c succeeds"], ["b succeeds"]]
STALE = [["a succeeds", "a fails"], ["b succeeds"], ["a succeeds"]]
STALE_LATER = [["a succeeds", "b fails"], [], ["b succeeds", "a fails"], ["b fails", "a succeeds"]]
UNDER_WAY = [["b succeeds", "b starts"], ["a succeeds"], ["run materializes b"], ["run succeeds"]]
IN_ONE_RUN = [
    ["a succeeds", "b and c start"],
    ["run materializes b", "run succeeds"],
    ["b succeeds"],
]
NOT_STARTED = [
    ["a succeeds", "b starts", "run materializes b", "run fails b", "run breaks"],
    ["b starts", "run breaks"],
    ["b succeeds"],
]
SLOW = [["a succeeds", "b succeeds", "a is slow"]]


class Model:
    """When `c`, which depends on `a` and `b`, has to run.

    Attributes:
        updated: The upstreams that have succeeded since the last tick, and of each whether `c` was
            in the Dagster run of its last success.
        latches: The upstreams that have succeeded since the last request.
        failed: The upstreams whose last run failed.
    """

    def __init__(self) -> None:
        self.failed: set[dg.AssetKey] = set()
        self.updated: dict[dg.AssetKey, bool] = {}
        self.latches: set[dg.AssetKey] = set()

    def tick(self, *, is_busy: bool) -> bool:
        """Whether the DAG is requested."""
        self.latches |= {key for key, is_with_c in self.updated.items() if not is_with_c}
        self.updated = {}
        if is_due := self.latches == {A, B} and not self.failed and not is_busy:
            self.latches = set()
        return is_due


class History(RunHistory):
    """What happens in a Dagster instance, and the condition and the model that see it."""

    def __init__(self, defs: dg.Definitions) -> None:
        super().__init__(defs)
        self.model = Model()
        self.defs = defs
        self.cursor: Any = None  # Dagster stores and reads it for each tick, as after a restart
        self.own_run: dg.DagsterRun | None = None  # of c alone
        self.run: dg.DagsterRun | None = None  # of b, and maybe of c
        self.is_evaluated = self.is_materialized = False  # b, in that run
        self.is_last_observed = False  # the last success of b

    @property
    def now(self) -> datetime:
        """The daemon's time. Its clock is ahead of those that date events."""
        return datetime.now(timezone.utc) + timedelta(minutes=5)

    def take(self, event: str) -> None:
        match event.split():
            case ["a", "is", "slow"]:
                evaluation = dg.AssetCheckEvaluation(A, OTHER_CHECK, passed=False, metadata={})
                self.report(evaluation)
            case ["a", end]:
                self.end(A, None, is_success=end == "succeeds")
            # An evaluation in a Dagster run counts as of the moment when the run began.
            case ["b", "succeeds" | "fails" as end] if not self.run:
                self.end(B, None, is_success=end == "succeeds")
            # What is in progress is by the last run that was created (dagster 1.13).
            case ["b", *others, "start" | "starts"] if not (self.run or (others and self.own_run)):
                self.run = self.start({B, C} if others else {B})
                self.is_evaluated = self.is_materialized = False
            case ["run", "materializes" | "fails" as end, "b"] if self.run:
                self.end(B, self.run, is_success=end == "materializes")
            case ["run", end] if self.run:
                self.finish(self.run, is_success=end == "succeeds")
                if not self.is_evaluated:  # Dagster could not run it
                    self.model.failed -= {B}
                    if end == "breaks" and not self.is_last_observed:
                        self.model.failed.add(B)
                self.run = None
            case ["c", end] if self.own_run:
                self.finish(self.own_run, is_success=end == "succeeds")
                self.own_run = None
            case _:
                pass

    def end(self, key: dg.AssetKey, run: dg.DagsterRun | None, *, is_success: bool) -> None:
        """End a DAG run. A Dagster run reports it, or observation."""
        self.is_evaluated |= run is not None
        self.report(self.build_evaluation(key, run, is_success), run)
        if not is_success:
            self.report(dg.AssetObservation(key), run)
            self.model.failed.add(key)
            return
        self.report(dg.AssetMaterialization(key), run)
        self.model.failed.discard(key)
        self.model.updated[key] = run is not None and C in (run.asset_selection or ())
        if key == B:
            self.is_materialized, self.is_last_observed = run is not None, run is None

    def build_evaluation(
        self, key: dg.AssetKey, run: dg.DagsterRun | None, is_success: bool
    ) -> dg.AssetCheckEvaluation:
        """Build an evaluation as observation does, or Dagster for a step."""
        target = None
        if run and (last := self.instance.fetch_materializations(key, limit=1).records):
            target = AssetCheckEvaluationTargetMaterializationData(
                storage_id=last[0].storage_id, run_id=last[0].run_id, timestamp=last[0].timestamp
            )
        return dg.AssetCheckEvaluation(
            asset_key=key,
            check_name=CHECK_NAME,
            passed=is_success,
            metadata={},
            target_materialization_data=target,
        )

    def tick(self) -> None:
        """Evaluate the condition, and start the run that it requests."""
        result = dg.evaluate_automation_conditions(
            self.defs, self.instance, cursor=self.cursor, evaluation_time=self.now
        )
        self.cursor = result.cursor
        is_requested = result.get_num_requested(C) == 1
        selection = self.run.asset_selection or () if self.run else ()
        is_busy = (B in selection and not self.is_materialized) or C in selection
        assert is_requested == self.model.tick(is_busy=is_busy or self.own_run is not None)
        if is_requested:
            self.own_run = self.start({C})


def build_fleet(upstream: Upstream) -> dg.Definitions:
    """Build `a`, which is observed, `b`, and `c`, which depends on both."""
    condition = build_condition({A: "observed", B: upstream}, when="all")

    @dg.asset(key=C, deps=[A, B], automation_condition=condition)
    def c() -> None: ...

    @dg.asset(key=B)
    def b() -> None: ...

    observed = [dg.AssetSpec(key) for key in (A, B)]
    upstreams = [observed[0], b] if upstream == "executed" else observed
    checks = [build_check(A), build_check(B), build_check(A, OTHER_CHECK)]
    return dg.Definitions([*upstreams, c], asset_checks=checks)


def build_check(key: dg.AssetKey, name: str = CHECK_NAME) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=key, name=name)
    def check() -> dg.AssetCheckResult:
        raise NotImplementedError

    return check


@pytest.mark.parametrize("kind", EVENTS)
def test_the_dag_is_run_when_all_upstreams_have_succeeded_since_the_last_request(kind: str) -> None:
    upstream = "executed" if kind == "executed" else "observed"
    defs = build_fleet(upstream)
    ticks = st.lists(st.lists(st.sampled_from(EVENTS[kind]), max_size=3), max_size=12)

    @settings(max_examples=int(os.environ.get("HISTORIES", "2")))
    @given(ticks)
    @example(TWICE_AND_ONCE)
    @example(DURING_A_RUN)
    @example(AFTER_A_REQUEST)
    @example(STALE)
    @example(STALE_LATER)
    @example(UNDER_WAY if kind == "executed" else [])
    @example(IN_ONE_RUN if kind == "executed" else [])
    @example(NOT_STARTED if kind == "executed" else [])
    @example(SLOW if kind == "observed" else [])
    def compare(ticks: list[list[str]]) -> None:
        history = History(defs)
        for events in [[], *ticks, [], ["c succeeds"], []]:
            for event in events:
                history.take(event)
            history.tick()

    compare()
