"""The automation condition beside the one that it replaced, which was `eager()` with a part of it
replaced and had three times as many nodes: both request the same in any history."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import StepMaterializationData
from hypothesis import given, settings
from hypothesis import strategies as st

from federation_defs.automation import Upstreams, build_condition

Build = Callable[..., dg.AutomationCondition]
A, OTHER, B, C = map(dg.AssetKey, ("a", "other", "b", "c"))
CHECK = dg.AssetCheckKey(B, "dag_run")
HOURLY = dg.HourlyPartitionsDefinition("2026-01-01-00:00")
STEPS = [
    *["tick"] * 5,
    *["update a"] * 2,
    *["update other", "wipe a", "wipe b", "wipe c", "person"],
    *["next asset", "next asset", "fail", "leave", "check", "hour"],
]


def build_reference(
    *, waits: bool, upstreams: Upstreams, is_partitioned: bool
) -> dg.AutomationCondition:
    del is_partitioned
    condition = dg.AutomationCondition
    deps_updated = condition.any_deps_updated()
    if upstreams == "detached":
        deps_updated = condition.any_deps_match(condition.newly_updated())
    updated = condition.newly_missing() | deps_updated
    requested = condition.newly_requested()
    first = condition.initial_evaluation()
    pending = updated.since(requested | first)
    overtaken = (updated & requested).since((requested & ~updated) | first)
    handled = condition.newly_missing() | condition.any_deps_updated()
    lossless = condition.eager().replace(handled.since_last_handled(), pending | overtaken)
    if waits:
        return lossless
    ended = condition.newly_updated() | condition.any_checks_match(condition.newly_updated())
    ended |= condition.cron_tick_passed("0 * * * *")
    return lossless & ~(requested.since(ended) & ~condition.execution_failed())


def build_fleet(build: Build, *, is_detached: bool, is_partitioned: bool) -> dg.Definitions:
    """Return two upstreams that Dagster does not run (`a` and `other`), and two DAGs that it runs:
    `b` after `a`, and `c` after `b` and `other`."""
    partitions = HOURLY if is_partitioned else None

    @dg.asset(
        key=B,
        deps=[A],
        partitions_def=partitions,
        check_specs=[dg.AssetCheckSpec(CHECK.name, asset=B)],
        automation_condition=build(
            waits=not is_detached, upstreams="observed", is_partitioned=is_partitioned
        ),
    )
    def b() -> dg.MaterializeResult:
        raise NotImplementedError

    @dg.asset(
        key=C,
        deps=[B, OTHER],
        partitions_def=partitions,
        automation_condition=build(
            waits=True,
            upstreams="detached" if is_detached else "executed",
            is_partitioned=is_partitioned,
        ),
    )
    def c() -> None: ...

    upstreams = [dg.AssetSpec(key, partitions_def=partitions) for key in (A, OTHER)]
    return dg.Definitions([*upstreams, b, c], executor=dg.in_process_executor)


class History:
    """What happens in a Dagster instance, and two conditions that see it."""

    def __init__(self, fleets: list[dg.Definitions], *, is_partitioned: bool) -> None:
        self.instance = dg.DagsterInstance.ephemeral()
        self.is_partitioned = is_partitioned
        self.fleets = fleets
        self.job = fleets[0].resolve_implicit_global_asset_job_def()
        self.cursors: list[Any] = [None for _ in fleets]
        self.hours = 0
        self.requested: set[dg.AssetKey] = set()
        # Dagster runs that go on, the assets that they have not materialized, and the partition.
        self.runs: list[tuple[dg.DagsterRun, list[dg.AssetKey], str | None]] = []

    @property
    def now(self) -> datetime:
        return datetime.now(timezone.utc) + timedelta(hours=self.hours)

    @property
    def partition(self) -> str | None:
        """The latest partition."""
        if not self.is_partitioned:
            return None
        return HOURLY.get_partition_key_for_timestamp((self.now - timedelta(hours=1)).timestamp())

    def take(self, step: str) -> None:
        action, _, name = step.partition(" ")
        key = dg.AssetKey(name) if name else C
        if action == "tick":
            self.tick()
        elif action == "update":
            event = dg.AssetMaterialization(key, partition=self.partition)
            self.instance.report_runless_asset_event(event)
        elif action == "wipe" and key not in self.requested:
            # A DAG that was requested and then wiped is materialized by the run. It needs no other.
            self.instance.wipe_assets([key])
        elif action == "check":
            evaluation = dg.AssetCheckEvaluation(B, CHECK.name, passed=True, metadata={})
            self.instance.report_runless_asset_event(evaluation)
        elif action == "hour" and self.is_partitioned:
            self.hours += 1
        elif action == "person":
            self.start({B, C})
        elif action in ("next", "fail", "leave") and self.runs:
            self.go_on(action)

    def tick(self) -> None:
        """Evaluate the conditions, and start the run that they request."""
        now = self.now
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
            self.start(self.requested)

    def start(self, keys: set[dg.AssetKey]) -> None:
        tags = {"dagster/partition": self.partition} if self.partition else {}
        run = self.instance.create_run_for_job(
            self.job,
            asset_selection=frozenset(keys),
            tags=tags,
            status=dg.DagsterRunStatus.STARTED,
        )
        self.runs.append((run, sorted(keys), self.partition))

    def go_on(self, action: str) -> None:
        """Materialize the next asset of the oldest run, fail it, or end it without an asset."""
        run, keys, partition = self.runs[0]
        if action == "next":
            materialization = dg.AssetMaterialization(keys.pop(0), partition=partition)
            self.report(run, "ASSET_MATERIALIZATION", StepMaterializationData(materialization))
        if action == "fail":
            self.instance.report_run_failed(run)
        elif action == "leave" or not keys:
            self.report(run, "PIPELINE_SUCCESS")
        if action != "next" or not keys:
            self.runs.pop(0)

    def report(self, run: dg.DagsterRun, event_type: str, data: Any = None) -> None:
        event = dg.DagsterEvent(event_type, run.job_name, event_specific_data=data)
        self.instance.report_dagster_event(event, run.run_id)


@pytest.mark.parametrize(
    ("is_detached", "is_partitioned"),
    [(False, False), (True, False), (False, True)],
    ids=["waited", "detached", "partitioned"],
)
def test_the_smaller_condition_requests_what_the_larger_one_did(
    is_detached: bool, is_partitioned: bool
) -> None:
    fleets = [
        build_fleet(build, is_detached=is_detached, is_partitioned=is_partitioned)
        for build in (build_condition, build_reference)
    ]

    @settings(max_examples=int(os.environ.get("HISTORIES", "15")), deadline=None)
    @given(st.lists(st.sampled_from(STEPS), max_size=25))
    def compare(steps: list[str]) -> None:
        history = History(fleets, is_partitioned=is_partitioned)
        for step in ["update a", "update other", "tick", "update a", *steps, "tick"]:
            history.take(step)

    compare()
