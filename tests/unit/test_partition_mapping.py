from __future__ import annotations

from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation_defs.declaration import DagDeclaration, Granularity, InstanceDeclaration, Window
from federation_defs.partition_mapping import (
    PartitionMapping,
    build_mappings,
    find_window,
    select_decided_by_events,
)
from tests.unit.build import declare_instance

Declared = dict[str, Any]
START = "2025-01-01"
HOURLY: Declared = {"cron": "0 * * * *", "start": START}
DAILY: Declared = {"cron": "0 0 * * *", "start": START}
WEEKLY: Declared = {"cron": "0 0 * * 1", "start": START}
MONTHLY: Declared = {"cron": "0 0 1 * *", "start": START}
AT_SIX: Declared = {"cron": "0 6 * * *", "start": START}
BERLIN = {"timezone": "Europe/Berlin"}
LORD_HOWE = {"timezone": "Australia/Lord_Howe"}  # its summer time is half an hour


def declare(name: str, **dags: Any) -> InstanceDeclaration:
    return declare_instance(name, dags)


def map_partitions(
    upstream: Declared | None,
    downstream: Declared,
    window: Window | None = None,
    granularity: Granularity = "all",
) -> PartitionMapping:
    edge = {"dag": "a/up", "window": window}
    dag = {"depends_on": [edge], "partitions": downstream, "granularity": granularity}
    instances = {"a": declare("a", up={"partitions": upstream})}
    (mapping,) = build_mappings(DagDeclaration.model_validate(dag), instances)
    return mapping


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc)


NOON = at("2026-01-05T12:00")
MONTHLY_BERLIN, HOURLY_BERLIN = {**MONTHLY, **BERLIN}, {**HOURLY, **BERLIN}
DAILY_BERLIN = {**DAILY, **BERLIN}


@pytest.mark.parametrize(
    ("upstream", "downstream", "window", "updated", "expected"),
    [
        (DAILY, DAILY, None, "2026-01-05", ["2026-01-05"]),
        (DAILY, {**DAILY, "key_format": "%d.%m.%Y"}, None, "2026-01-05", ["05.01.2026"]),
        (HOURLY, DAILY, None, "2026-01-05-23:00", ["2026-01-05"]),
        (DAILY, WEEKLY, None, "2026-01-04", ["2025-12-29"]),
        (DAILY, MONTHLY, None, "2026-01-31", ["2026-01-01"]),
        (DAILY, MONTHLY, "previous", "2026-01-31", ["2026-02-01"]),
        (MONTHLY, MONTHLY, "previous", "2025-12-01", ["2026-01-01"]),
        (WEEKLY, MONTHLY, None, "2025-12-29", ["2025-12-01", "2026-01-01"]),
        (DAILY, AT_SIX, None, "2026-01-05", ["2026-01-04", "2026-01-05"]),
        (DAILY, DAILY_BERLIN, None, "2026-01-05", ["2026-01-05", "2026-01-06"]),
        (DAILY_BERLIN, DAILY, None, "2026-01-05", ["2026-01-04", "2026-01-05"]),
        (HOURLY, DAILY_BERLIN, None, "2026-01-05-23:00", ["2026-01-06"]),
        (DAILY, {**DAILY, "start": "2026-01-06"}, None, "2026-01-05", []),
        (DAILY, DAILY, None, "2024-12-31", []),
        (DAILY, DAILY, None, "no date", []),
        (DAILY, DAILY, None, None, []),
        (None, DAILY, None, None, ["2026-01-04"]),
        (None, DAILY, "last", None, ["2026-01-04"]),
        (None, DAILY, "current", None, ["2026-01-05"]),
        (None, MONTHLY, None, None, ["2025-12-01"]),
        (None, DAILY_BERLIN, "current", None, ["2026-01-05"]),
    ],
)
def test_an_update_is_about_the_windows_that_it_overlaps(
    upstream: Declared | None,
    downstream: Declared,
    window: Window | None,
    updated: str | None,
    expected: list[str],
) -> None:
    assert map_partitions(upstream, downstream, window).find_updated(updated, NOON) == expected


def test_a_longer_window_is_about_all_shorter_ones() -> None:
    found = map_partitions(MONTHLY, DAILY).find_updated("2026-02-01", NOON)
    assert found == [f"2026-02-{day:02}" for day in range(1, 29)]


@pytest.mark.parametrize(
    ("upstream", "downstream", "partition", "count"),
    [
        (HOURLY, DAILY, "2026-03-29", 24),
        (HOURLY, DAILY_BERLIN, "2026-03-28", 24),
        (HOURLY, DAILY_BERLIN, "2026-03-29", 23),
        (HOURLY, DAILY_BERLIN, "2026-10-25", 25),
        (HOURLY_BERLIN, DAILY_BERLIN, "2026-03-29", 23),
        (HOURLY_BERLIN, DAILY_BERLIN, "2026-10-25", 25),
        (HOURLY, MONTHLY, "2026-02-01", 672),
        (DAILY, MONTHLY, "2026-02-01", 28),
        (DAILY, WEEKLY, "2026-01-05", 7),
        (DAILY, DAILY_BERLIN, "2026-01-05", 2),
        (WEEKLY, DAILY, "2026-01-05", 1),
        ({**DAILY, "start": "2026-01-10"}, MONTHLY, "2026-01-01", 22),
        ({**DAILY, "start": "2026-02-01"}, MONTHLY, "2026-01-01", 0),
    ],
)
def test_a_partition_needs_all_of_its_time(
    upstream: Declared, downstream: Declared, partition: str, count: int
) -> None:
    mapping = map_partitions(upstream, downstream)
    needed, least = mapping.find_needed(partition)
    assert (len(needed), least) == (count, count)
    for key in needed:
        assert partition in mapping.find_updated(key, NOON)


@pytest.mark.parametrize(
    ("granularity", "needed", "count"),
    [("all", 24, 24), ("last", 1, 1), ("any", 24, 1), (20, 24, 20), (100, 24, 24)],
)
def test_granularity_says_how_many_shorter_partitions_are_needed(
    granularity: Granularity, needed: int, count: int
) -> None:
    keys, least = map_partitions(HOURLY, DAILY, granularity=granularity).find_needed("2026-01-05")
    assert (len(keys), least) == (needed, count)
    assert keys[-1] == "2026-01-05-23:00"


@pytest.mark.parametrize(
    ("hour", "expected"), [("22:00", []), ("23:00", ["2026-01-05"])], ids=["not the last", "last"]
)
def test_with_the_last_one_no_other_updates_a_partition(hour: str, expected: list[str]) -> None:
    mapping = map_partitions(HOURLY, DAILY, granularity="last")
    assert mapping.find_updated(f"2026-01-05-{hour}", NOON) == expected


def test_the_previous_window_is_that_of_the_downstream() -> None:
    mapping = map_partitions(DAILY, MONTHLY, "previous")
    needed, count = mapping.find_needed("2026-03-01")
    assert (needed[0], needed[-1], count) == ("2026-02-01", "2026-02-28", 28)
    first, _ = mapping.find_needed("2025-01-01")
    assert first == []


CADENCES = [HOURLY, DAILY, WEEKLY, MONTHLY, AT_SIX, {"cron": "*/30 * * * *", "start": START}]
ZONES: list[Declared] = [{}, BERLIN, LORD_HOWE, {"timezone": "Asia/Kathmandu"}]
declared = st.builds(
    lambda *parts: parts[0] | parts[1], *map(st.sampled_from, (CADENCES, ZONES))
).filter(lambda each: each != {**HOURLY, **LORD_HOWE})  # which is refused


@given(
    upstream=declared,
    downstream=declared,
    window=st.sampled_from(["same", "previous"]),
    minutes=st.integers(60 * 24 * 100, 60 * 24 * 800),
)
def test_what_a_partition_needs_covers_its_window_and_updates_it(
    upstream: Declared, downstream: Declared, window: Window, minutes: int
) -> None:
    mapping = map_partitions(upstream, downstream, window)
    moment = at(START) + timedelta(minutes=minutes)
    partition = mapping.downstream.get_partition_key_for_timestamp(moment.timestamp())
    needed, _ = mapping.find_needed(partition)
    windows = [find(mapping.upstream, key) for key in needed]
    own = find(mapping.downstream, partition)
    if window == "previous":
        before = mapping.downstream.get_prev_partition_window(own.start, respect_bounds=False)
        assert before
        own = before
    assert windows[0].start <= own.start < windows[0].end
    assert windows[-1].start < own.end <= windows[-1].end
    assert all(one.end == other.start for one, other in pairwise(windows))
    for key in (needed[0], needed[-1]):
        assert partition in mapping.find_updated(key, NOON)


def find(definition: dg.TimeWindowPartitionsDefinition | None, key: str) -> dg.TimeWindow:
    window = definition and find_window(definition, key)
    assert window
    return window


def test_events_decide_for_a_dag_below_one_with_partitions() -> None:
    dags = declare(
        "b",
        plain={"depends_on": ["a/plain"]},
        below={"depends_on": ["a/plain", "a/up"]},
        partitioned={"depends_on": ["a/plain"], "partitions": DAILY},
    )
    instances = {"a": declare("a", up={"partitions": DAILY}), "b": dags}
    assert select_decided_by_events(dags.dags, instances).keys() == {"below", "partitioned"}


@pytest.mark.parametrize("cron", ["0 * * * *", "*/15 * * * *"])
@pytest.mark.parametrize("zone", [{}, BERLIN])
def test_each_hour_of_the_day_on_which_one_is_repeated_has_its_own(
    cron: str, zone: Declared
) -> None:
    upstream = {"cron": cron, "start": START, **BERLIN}
    mapping = map_partitions(upstream, {**upstream, **zone})
    assert mapping.upstream
    moments = [at("2026-10-24T22:00") + timedelta(minutes=15 * number) for number in range(100)]
    keys = {
        definition: [
            definition.get_partition_key_for_timestamp(each.timestamp()) for each in moments
        ]
        for definition in (mapping.upstream, mapping.downstream)
    }
    for above, below in zip(keys[mapping.upstream], keys[mapping.downstream], strict=True):
        assert mapping.find_updated(above, NOON) == [below]
        assert mapping.find_needed(below)[0] == [above]


def test_the_window_before_the_repeated_hour_is_the_one_before() -> None:
    mapping = map_partitions(HOURLY_BERLIN, HOURLY_BERLIN, "previous")
    hours = [at("2026-10-24T23:00") + timedelta(hours=number) for number in range(5)]
    keys = [mapping.downstream.get_partition_key_for_timestamp(each.timestamp()) for each in hours]
    for before, after in pairwise(keys):
        assert mapping.find_updated(before, NOON) == [after]
        assert mapping.find_needed(after)[0] == [before]
