"""What a Dagster run leaves in its tags, and what is read of it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation_defs.dagster_io.current_run import CurrentRun
from federation_defs.dagster_io.heartbeat import HeartbeatMonitor
from federation_defs.dagster_io.run_tags import Target, build_long_tags, find_owners
from federation_defs.naming import (
    build_alive_tag,
    build_detached_tag,
    build_plan_tag,
    build_run_id,
)
from federation_defs.timing import Timing
from tests.unit.build import build_run

END = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
TAGS = {"federation/waits_for.metrics": "true"}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def start_run(instance: dg.DagsterInstance, **tags: str) -> dg.DagsterRun:
    @dg.job
    def any_job() -> None: ...

    started = dg.DagsterRunStatus.STARTED
    return instance.create_run_for_job(any_job, status=started, tags={**TAGS, **tags})


def test_the_tags_of_a_thousand_partitions_fit_into_a_text_of_mysql_and_an_index_of_postgresql(
    instance: dg.DagsterInstance,
) -> None:
    run = start_run(instance)
    ends = [END + timedelta(seconds=number * math.pi) for number in range(1000)]
    dag_runs = [build_run("daily", f"scheduled__{end.isoformat()}", end_date=end) for end in ends]
    targets = [Target("daily", f"2025-{number}") for number in range(1000)]
    planned = list(zip(targets[::2], dag_runs[::2], strict=True))
    # All but the last at once: each call writes all plans anew, and 500 of them take 15 s.
    plans = {
        target.name: (dag_run.run_id, f"failed {dag_run.end_date}")
        for target, dag_run in planned[:-1]
    }
    instance.add_run_tags(run.run_id, build_long_tags(build_plan_tag("metrics"), plans))
    current = CurrentRun(instance, run, "metrics")
    current.plan_clear(*planned[-1])
    current.detach(*[dag_run.key for dag_run in dag_runs[1::2]])
    stored = instance.get_run_by_id(run.run_id)
    assert stored is not None
    assert sum(map(len, stored.tags.values())) < 64_000
    assert max(len(key) + len(value) for key, value in stored.tags.items()) < 2600
    keys = [dag_run.key for dag_run in dag_runs]
    owners = find_owners(instance, "metrics", keys, lambda _: True)
    assert [owners[key] for key in keys[::2]] == [[run.run_id]] * 500
    again = CurrentRun(instance, stored, "metrics")
    assert [again.get_planned_run_id(target) for target in targets[::2]] == [
        dag_run.run_id for dag_run in dag_runs[::2]
    ]


def test_few_runs_are_stored_so_that_a_person_can_read_them(instance: dg.DagsterInstance) -> None:
    run = start_run(instance)
    CurrentRun(instance, run, "metrics").record_adoption(
        Target("daily", "2025-01-01"), build_run("daily", "scheduled__1")
    )
    stored = instance.get_run_by_id(run.run_id)
    assert stored is not None
    plans = json.loads(stored.tags["federation/runs_again.metrics"])
    assert plans == {"daily [2025-01-01]": ["scheduled__1", "adopted"]}


ODD = [
    "zlib:",
    "2:zlib:",
    "9999999999:",
    "0:{}",
    "1:{}",
    "zlib:!",
    "zlib:AAAA",
    "null",
    "[]",
    "{}",
    '{"a": [[], {}]}',
    '[["a", ["b"]]]',
]
EDITED = st.text(max_size=20) | st.sampled_from([*ODD, "[" * 9999])


@settings(max_examples=int(os.environ.get("HISTORIES", "15")))
@given(plans=EDITED, detached=EDITED)
def test_tags_that_a_person_has_edited_hurt_nobody(plans: str, detached: str) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        edited = {build_plan_tag("metrics"): plans, build_detached_tag("metrics"): detached}
        run = start_run(instance, **edited)
        key = ("daily", "scheduled__1")
        assert find_owners(instance, "metrics", [key], lambda _: True) == {key: []}
        CurrentRun(instance, run, "metrics")


@pytest.mark.parametrize("heartbeat", ["{run_id} 1700000000 waits", "", "{run_id} 1700000000"])
def test_a_dag_run_is_left_to_another_attempt_only_if_that_is_at_work(
    instance: dg.DagsterInstance, heartbeat: str
) -> None:
    """An attempt that waits for this one would wait for ever."""
    root, other, own = (f"{digit * 8}-0000-0000-0000-000000000000" for digit in "012")
    beats = {other: heartbeat.format(run_id=other), own: f"{own} 1700000000"}

    @dg.job
    def any_job() -> None: ...

    for run_id, beat in beats.items():
        tags = {**TAGS, "dagster/root_run_id": root, build_alive_tag("metrics"): beat}
        instance.create_run_for_job(
            any_job,
            run_id=run_id,
            status=dg.DagsterRunStatus.STARTED,
            tags={**tags, "dagster/parent_run_id": root},
            parent_run_id=root,
            root_run_id=root,
        )
    stored = instance.get_run_by_id(own)
    assert stored is not None
    monitor = HeartbeatMonitor("metrics", Timing(), 5)
    dag_run = build_run("daily", build_run_id(root))
    current = CurrentRun(instance, stored, "metrics")
    found = current.find_earlier_owners(dag_run, monitor.is_at_work)
    assert found == ([other] if heartbeat.endswith("0") else [])
