"""The partition of a run, and the trigger of a partition."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import dagster as dg
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from federation_defs.airflow.models import DagRun, TriggerOptions
from federation_defs.declaration import PartitionsDeclaration
from federation_defs.partitions import Partitioning, RunPartition
from tests.unit.build import build_run

START = "2025-01-01"
REFUSED = ("@hourly", "Australia/Lord_Howe")  # Dagster (1.13) mistakes the hours there


def build(cron: str = "0 0 * * *", **declared: Any) -> Partitioning:
    values = {"cron": cron, "start": START, **declared}
    return Partitioning(PartitionsDeclaration.model_validate(values))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc)


def run_at(date: str | None = None, key: str | None = None, **dates: datetime) -> DagRun:
    """Return a run with this date for all dates that are not given."""
    moment = at(date) if date else None
    all_dates = dict.fromkeys(("logical_date", "data_interval_start", "data_interval_end"), moment)
    return build_run("dag", "run", partition_key=key, **{**all_dates, **dates})


@pytest.mark.parametrize(
    ("cron", "first", "second"),
    [
        ("0 0 * * *", "2025-01-01", "2025-01-02"),
        ("@daily", "2025-01-01", "2025-01-02"),
        ("30 4 * * *", "2025-01-01", "2025-01-02"),
        ("@weekly", "2025-01-05", "2025-01-12"),
        ("0 6 * * 1", "2025-01-06", "2025-01-13"),
        ("@monthly", "2025-01-01", "2025-02-01"),
        ("@hourly", "2025-01-01-00:00", "2025-01-01-01:00"),
        ("0 * * * *", "2025-01-01-00:00", "2025-01-01-01:00"),
        ("*/15 6-8 * * *", "2025-01-01-06:00", "2025-01-01-06:15"),
        ("0 6,18 * * *", "2025-01-01-06:00", "2025-01-01-18:00"),
    ],
)
def test_keys_are_dates_if_a_day_has_one_partition_and_else_times(
    cron: str, first: str, second: str
) -> None:
    keys = build(cron).definition.get_partition_keys(at("2025-03-15"))
    assert list(keys[:2]) == [first, second]
    assert len(set(keys)) == len(keys)


def test_keys_have_the_declared_format() -> None:
    keys = build(key_format="%d.%m.%Y").definition.get_partition_keys(at("2025-01-03"))
    assert list(keys) == ["01.01.2025", "02.01.2025", "03.01.2025"]


@pytest.mark.parametrize(
    ("date", "last"), [("data_interval_end", "2025-01-02"), ("logical_date", "2025-01-03")]
)
def test_the_window_that_goes_on_is_a_partition_unless_runs_are_of_windows_that_are_over(
    date: str, last: str
) -> None:
    keys = build(date=date).definition.get_partition_keys(at("2025-01-03T12:00"))
    assert keys[-1] == last


def test_the_first_partition_begins_on_the_first_day_in_its_time_zone() -> None:
    definition = build(timezone="America/New_York").definition
    window = definition.time_window_for_partition_key("2025-01-01")
    assert window.start.astimezone(timezone.utc) == at("2025-01-01T05:00")


DAY = (at("2025-02-03"), at("2025-02-04"))


@pytest.mark.parametrize(
    ("date", "options"),
    [
        ("data_interval_start", TriggerOptions(DAY[0], DAY)),
        ("data_interval_end", TriggerOptions(DAY[1], DAY)),
        ("logical_date", TriggerOptions(DAY[0])),
    ],
)
def test_a_partition_is_triggered_with_its_declared_date(
    date: str, options: TriggerOptions
) -> None:
    assert build(date=date).build_options("2025-02-03", has_keys=False) == options


@pytest.mark.parametrize("date", ["data_interval_start", "data_interval_end", "logical_date"])
def test_a_partition_of_a_dag_with_keys_is_triggered_with_its_key_only(date: str) -> None:
    options = build(date=date).build_options("2025-02-03", has_keys=True)
    assert options == TriggerOptions("none", partition_key="2025-02-03")


@pytest.mark.parametrize(
    ("cron", "zone"),
    [
        (cron, zone)
        for cron in ("0 0 * * *", "@hourly", "@monthly", "0 6,18 * * *", "*/15 * * * *")
        for zone in ("UTC", "Europe/Berlin", "Australia/Lord_Howe")
        if (cron, zone) != REFUSED
    ],
)
@pytest.mark.parametrize("date", ["data_interval_start", "data_interval_end", "logical_date"])
def test_the_run_of_a_triggered_partition_belongs_to_that_partition(
    cron: str, date: str, zone: str
) -> None:
    """Also when the clocks change; in Lord Howe by half an hour."""
    partitioning = build(cron, date=date, timezone=zone)
    definition = partitioning.definition
    keys = [
        *definition.get_partition_keys(at("2025-01-03")),
        *definition.get_partition_keys_in_range(find_range(partitioning, "2025-03-29", 4)),
        *definition.get_partition_keys_in_range(find_range(partitioning, "2025-04-05", 3)),
        *definition.get_partition_keys_in_range(find_range(partitioning, "2025-10-25", 3)),
    ]
    for key in keys:
        options = partitioning.build_options(key, has_keys=False)
        logical = options.logical_date
        assert isinstance(logical, datetime)
        start, end = options.data_interval or (logical, logical)
        run = run_at(
            logical_date=logical.astimezone(timezone.utc),
            data_interval_start=start.astimezone(timezone.utc),
            data_interval_end=end.astimezone(timezone.utc),
        )
        assert partitioning.find_partition(run).key == key


def find_range(partitioning: Partitioning, day: str, days: int) -> dg.PartitionKeyRange:
    """Return the partitions of some days."""
    first = at(day).timestamp()
    moments = (first, first + days * 86400)
    keys = [partitioning.definition.get_partition_key_for_timestamp(moment) for moment in moments]
    return dg.PartitionKeyRange(*keys)


@pytest.mark.parametrize(
    ("date", "moment", "partition"),
    [
        ("data_interval_start", "2025-02-03T00:00", "2025-02-03"),
        ("data_interval_end", "2025-02-03T00:00", "2025-02-02"),
        ("logical_date", "2025-02-03T00:00", "2025-02-03"),
        ("data_interval_start", "2025-02-03T12:00", "2025-02-03"),
        ("data_interval_end", "2025-02-03T12:00", "2025-02-03"),
        ("data_interval_start", "2025-01-01T00:00", "2025-01-01"),
        ("data_interval_start", "2024-12-31T23:59", None),
        ("data_interval_end", "2025-01-01T00:00", None),
        ("data_interval_end", "2025-01-02T00:00", "2025-01-01"),
    ],
)
def test_a_run_belongs_to_the_partition_of_its_date(
    date: str, moment: str, partition: str | None
) -> None:
    """A data interval that ends with a partition belongs to that partition."""
    assert build(date=date).find_partition(run_at(moment)).key == partition


@pytest.mark.parametrize("run_type", ["manual", "operator_triggered", "asset_materialization"])
@pytest.mark.parametrize("date", ["data_interval_start", "data_interval_end", "logical_date"])
def test_a_run_by_hand_belongs_to_a_partition_only_where_one_begins(
    date: str, run_type: str
) -> None:
    partitioning = build(date=date)
    at_a_tick, at_noon = (run_at(f"2025-02-03T{hour}:00") for hour in ("00", "12"))
    assert partitioning.find_partition(at_noon).key is not None
    for run, has_one in ((at_a_tick, True), (at_noon, False)):
        found = partitioning.find_partition(replace(run, run_type=run_type))
        assert (found.key is not None) == has_one
    assert "started by hand, and no partition begins then" in (found.absence or "")


def test_a_run_by_hand_of_a_repeated_hour_belongs_to_it() -> None:
    partitioning = build("@hourly", timezone="Europe/Berlin")
    for hour in ("2025-10-26T00:00", "2025-10-26T01:00"):
        found = partitioning.find_partition(replace(run_at(hour), run_type="manual"))
        assert found.key is not None


DAILY = "`0 0 * * *` (UTC) from 2025-01-01 on, with keys as %Y-%m-%d, by data_interval_start"


@pytest.mark.parametrize(
    ("moment", "key", "seen"),
    [
        (None, None, "It has no data_interval_start."),
        ("2024-12-31", None, "Its data_interval_start is 2024-12-31 00:00:00+00:00."),
        ("9999-12-31", None, "Its data_interval_start is 9999-12-31 00:00:00+00:00."),
        ("2025-02-03", "2025-2-3", "Its partition key is '2025-2-3'."),
    ],
)
def test_the_reason_why_a_run_has_no_partition_names_its_date_or_key_and_what_is_declared(
    moment: str | None, key: str | None, seen: str
) -> None:
    partition = build().find_partition(run_at(moment, key))
    assert partition == RunPartition(None, f"{seen} Declared partitions: {DAILY}.")


def test_a_run_of_a_partition_has_nothing_to_explain() -> None:
    assert build().find_partition(run_at("2025-02-03")) == RunPartition("2025-02-03")


def test_the_date_that_counts_has_to_be_there() -> None:
    run = run_at(data_interval_start=at("2025-02-03"))
    assert build(date="data_interval_start").find_partition(run).key == "2025-02-03"
    assert build(date="logical_date").find_partition(run).key is None


def test_a_partition_key_takes_precedence_over_dates() -> None:
    run = run_at("2025-02-03", key="2025-02-07")
    assert build().find_partition(run).key == "2025-02-07"


@pytest.mark.parametrize("key", ["", "2025-2-3", "2025-02-30", "20250203", "2025-02-03 ", "x"])
def test_a_key_of_another_format_is_no_partition(key: str) -> None:
    assert build().find_partition(run_at("2025-02-03", key=key)).key is None


@pytest.mark.parametrize("start", [START, "2999-01-01"], ids=["past", "yet to come"])
def test_a_key_before_the_first_partition_is_no_partition(start: str) -> None:
    assert build(start=start).find_partition(run_at(key="2024-12-31")).key is None


ANY_CRON = st.sampled_from(
    ["0 0 * * *", "@hourly", "*/15 * * * *", "30 4 * * 1", "0 0 1 * *", "0 6,18 * * *", "@yearly"]
)
ANY_ZONE = st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe", "Pacific/Apia"])
ANY_DATE = st.none() | st.datetimes(timezones=st.just(timezone.utc))
# Also digits of other scripts, which `strptime` reads.
ANY_KEY = st.none() | st.text() | st.from_regex(r"\d{1,5}-\d\d?-\d\d?(-\d\d:\d\d)?", fullmatch=True)


@settings(max_examples=int(os.environ.get("HISTORIES", "150")))
@given(
    cron=ANY_CRON,
    zone=ANY_ZONE,
    date=st.sampled_from(["data_interval_start", "data_interval_end", "logical_date"]),
    start=st.sampled_from([START, "1900-01-01", "2200-01-01"]),
    moment=ANY_DATE,
    key=ANY_KEY,
)
def test_the_partition_of_any_run_holds_its_date_or_is_explained(
    cron: str, zone: str, date: str, start: str, moment: datetime | None, key: str | None
) -> None:
    try:
        partitioning = build(cron, date=date, timezone=zone, start=start)
    except ValidationError:
        reject()
    dates: dict[str, Any] = {date: moment}
    run = build_run("dag", "run", partition_key=key, **dates)
    partition = partitioning.find_partition(run)
    assert (partition.key is None) == (partition.absence is not None)
    if partition.key is None:
        return
    window = partitioning.definition.time_window_for_partition_key(partition.key)
    assert window.start >= partitioning.definition.start
    if key is not None:
        assert partition.key == key
    else:
        assert moment is not None
        ends = date == "data_interval_end"
        is_inside = (
            window.start < moment <= window.end if ends else window.start <= moment < window.end
        )
        assert is_inside


@pytest.mark.parametrize(
    ("cron", "shortest_d", "longest_d"),
    [
        ("@hourly", 0.04, 0.05),
        ("0 6,18 * * *", 0.4, 0.6),
        ("0 0 * * *", 0.9, 1.1),
        ("0 6 * * 1", 6.9, 7.1),
        ("@monthly", 28, 31),
        ("*/15 6-8 * * *", 0.01, 0.2),
    ],
)
def test_the_cadence_is_the_mean_time_between_two_partitions(
    cron: str, shortest_d: float, longest_d: float
) -> None:
    declaration = build(cron, timezone="Europe/Berlin").declaration
    assert shortest_d < declaration.cadence_s / 86400 < longest_d
