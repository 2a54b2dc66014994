"""The automation condition beside the one that it replaced, which was `eager()` with a part of it
replaced and had three times as many nodes: both request the same in any history."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

import dagster as dg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from federation_defs.automation import Upstream, build_condition
from tests.contract.history import RunHistory

Build = Callable[..., dg.AutomationCondition]
A, OTHER, B, C = map(dg.AssetKey, ("a", "other", "b", "c"))
CHECK = dg.AssetCheckKey(B, "dag_run")
EVENTS = [
    *["update a", "update other", "update b", "update c"],
    *["wipe a", "wipe other", "wipe b", "wipe c"],
    *["person", "next", "next", "next", "fail", "leave", "check"],
]
BEGIN = [["update a", "update other"], ["update b", "update c"]]
# What happens before each tick. Each of these histories needs another part of the condition.
DURING_A_RUN = [["update a"], ["update a"], ["next"], ["next"]]
WIPED = [["wipe b"], ["next"], ["next"], ["wipe c"]]
BY_A_PERSON = [["person"], ["next"], ["next"]]
WHILE_AN_UPSTREAM_RUNS = [["update a"], ["fail", "person"], ["update other"], ["next"], ["next"]]
WHILE_AN_UPSTREAM_IS_MISSING = [["wipe a", "wipe other"], ["update other"], ["update a"]]
IN_ONE_RUN = [["wipe b", "wipe c"], ["next"], ["next"], ["update a"], ["next"], ["next"]]


def build_reference(
    upstreams: Mapping[dg.AssetKey, Upstream],
    *,
    detached: dg.AssetKey | None,
) -> dg.AutomationCondition:
    condition = dg.AutomationCondition
    updated = condition.any_deps_updated()
    if "detached" in upstreams.values():
        updated = condition.any_deps_match(condition.newly_updated())
    requested = condition.newly_requested()
    first = condition.initial_evaluation()
    pending = updated.since(requested | first)
    overtaken = (updated & requested).since((requested & ~updated) | first)
    handled = condition.newly_missing() | condition.any_deps_updated()
    lossless = condition.eager().replace(handled.since_last_handled(), pending | overtaken)
    if detached is None:
        return lossless
    ended = condition.newly_updated() | condition.any_checks_match(condition.newly_updated())
    ended |= condition.cron_tick_passed("0 * * * *")
    return lossless & ~(requested.since(ended) & ~condition.execution_failed())


def build_fleet(build: Build, *, is_detached: bool) -> dg.Definitions:
    """Return two upstreams that Dagster does not run (`a` and `other`), and two DAGs that it runs:
    `b` after `a`, and `c` after `b` and `other`."""

    @dg.asset(
        key=B,
        deps=[A],
        check_specs=[dg.AssetCheckSpec(CHECK.name, asset=B)],
        automation_condition=build({A: "observed"}, detached=B if is_detached else None),
    )
    def b() -> dg.MaterializeResult:
        raise NotImplementedError

    @dg.asset(
        key=C,
        deps=[B, OTHER],
        automation_condition=build(
            {B: "detached" if is_detached else "executed", OTHER: "observed"}, detached=None
        ),
    )
    def c() -> None: ...

    upstreams = [dg.AssetSpec(key) for key in (A, OTHER)]
    return dg.Definitions([*upstreams, b, c], executor=dg.in_process_executor)


class History(RunHistory):
    """What happens in a Dagster instance, and two conditions that see it."""

    def __init__(self, fleets: list[dg.Definitions]) -> None:
        super().__init__(fleets[0])
        self.fleets = fleets
        self.cursors: list[Any] = [None for _ in fleets]
        self.requested: set[dg.AssetKey] = set()
        # Dagster runs that go on, and the assets that they have not materialized.
        self.runs: list[tuple[dg.DagsterRun, list[dg.AssetKey]]] = []

    def take(self, *events: str) -> None:
        for event in events:
            self._take(event)

    def _take(self, event: str) -> None:
        action, _, name = event.partition(" ")
        key = dg.AssetKey(name) if name else C
        if action == "update":
            self.report(dg.AssetMaterialization(key))
        elif action == "wipe" and key not in self.requested:
            # A DAG that was requested and then wiped is materialized by the run. It needs no other.
            self.instance.wipe_assets([key])
        elif action == "check":
            self.report(dg.AssetCheckEvaluation(B, CHECK.name, passed=True, metadata={}))
        elif action == "person":
            self.begin({B, C})
        elif action in ("next", "fail", "leave") and self.runs:
            self.go_on(action)

    def tick(self) -> None:
        """Evaluate the conditions, and start the run that they request."""
        now = datetime.now(timezone.utc)
        answers = []
        for number, fleet in enumerate(self.fleets):
            result = dg.evaluate_automation_conditions(
                fleet, self.instance, cursor=self.cursors[number], evaluation_time=now
            )
            self.cursors[number] = result.cursor
            answers.append({key for key in (B, C) if result.get_num_requested(key)})
        assert all(answer == answers[0] for answer in answers), answers
        self.requested = answers[0]
        if self.requested:
            self.begin(self.requested)

    def begin(self, keys: set[dg.AssetKey]) -> None:
        self.runs.append((self.start(keys), sorted(keys)))

    def go_on(self, action: str) -> None:
        """Materialize the next asset of the oldest run, fail it, or end it without an asset."""
        run, keys = self.runs[0]
        if action == "next":
            self.report(dg.AssetMaterialization(keys.pop(0)), run)
        if action != "next" or not keys:
            self.finish(run, is_success=action != "fail")
            self.runs.pop(0)


KINDS = pytest.mark.parametrize("is_detached", [False, True], ids=["waited", "detached"])


@KINDS
def test_the_smaller_condition_requests_what_the_larger_one_did(is_detached: bool) -> None:
    fleets = [
        build_fleet(build, is_detached=is_detached) for build in (build_condition, build_reference)
    ]

    @settings(max_examples=int(os.environ.get("HISTORIES", "2")))
    @given(st.lists(st.lists(st.sampled_from(EVENTS), max_size=2), max_size=12))
    @example(DURING_A_RUN)
    @example(WIPED)
    @example(BY_A_PERSON)
    @example(WHILE_AN_UPSTREAM_RUNS)
    @example(WHILE_AN_UPSTREAM_IS_MISSING)
    @example(IN_ONE_RUN)
    def compare(ticks: list[list[str]]) -> None:
        history = History(fleets)
        for events in [*BEGIN, *ticks, [], []]:
            history.take(*events)
            history.tick()

    compare()


@KINDS
@pytest.mark.parametrize("is_update", [True, False])
def test_another_version_of_the_package_makes_no_request(
    is_update: bool, is_detached: bool
) -> None:
    """The cursor is that of the other condition. This holds for a return to the old one, too."""
    builds = [build_reference, build_condition] if is_update else [build_condition, build_reference]
    before, after = (build_fleet(build, is_detached=is_detached) for build in builds)
    history = History([before])
    for events in BEGIN:
        history.take(*events)
        history.tick()
    for events in [["next", "wipe other", "update a"], [], ["update a"]]:
        history.take(*events)
        history.tick()
    assert history.runs
    history.fleets = [after]
    history.tick()
    assert history.requested == set()
    history.take("next", "check")
    history.tick()
    assert history.requested == set()
