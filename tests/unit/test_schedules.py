"""Partitions that are taken from the schedule of a DAG: what is confirmed, and what is kept."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation_defs.airflow.models import Schedule, parse_schedule
from federation_defs.declaration import PartitionsDeclaration
from federation_defs.schedules import AutoPartitions, describe_auto, resolve_schedule

UTC = timezone.utc
AUTO = PartitionsDeclaration.model_validate("auto")
DAY = timedelta(days=1)
WINTER, SUMMER = datetime(2026, 1, 15, tzinfo=UTC), datetime(2026, 7, 15, tzinfo=UTC)
DAILY = Schedule(
    text="0 0 * * *",
    timezone="UTC",
    start_date=datetime(2025, 3, 1, tzinfo=UTC),
    catchup=False,
    is_partitioned=False,
    next_logical_date=WINTER - DAY,
    next_fires_at=WINTER,
)
IN_LONDON = 'start_date=pendulum.datetime(2025, 3, 1, tz="Europe/London")'


def resolve(schedule: Schedule, source: str | None = "", **declared: Any) -> AutoPartitions:
    auto = PartitionsDeclaration.model_validate({"cron": "auto", **declared})
    return resolve_schedule(auto, schedule, source, None)


def at(moment: datetime, *, is_trigger: bool = True, **more: Any) -> Schedule:
    date = moment if is_trigger else moment - DAY
    return replace(DAILY, next_fires_at=moment, next_logical_date=date, **more)


def test_auto_is_a_text_or_a_cron_expression_beside_other_keys() -> None:
    assert PartitionsDeclaration.model_validate({"cron": "auto"}) == AUTO
    assert AUTO.is_auto
    written = PartitionsDeclaration.model_validate({"cron": "auto", "start": "2026-01-01"})
    assert written.is_auto
    assert not PartitionsDeclaration.model_validate(
        {"cron": "@daily", "start": "2026-01-01"}
    ).is_auto


@pytest.mark.parametrize("zone", ["Europe/London", "Europe/Lisbon"])
def test_a_person_chooses_between_two_time_zones_of_one_offset(zone: str) -> None:
    """In winter London has the time of UTC."""
    source = f"tz = '{zone}'"
    found = resolve(at(WINTER), source)
    assert found.resolved is None
    assert found.problem is not None
    assert f"a tick of '0 0 * * *' in UTC and in {zone}; write `timezone`" in found.problem
    for written in ("UTC", zone):
        partitions = resolve(at(WINTER), source, timezone=written)
        assert partitions.resolved is not None
        assert partitions.resolved["timezone"] == written


def test_in_summer_the_next_run_shows_the_time_zone() -> None:
    found = resolve(at(SUMMER - timedelta(hours=1)), IN_LONDON)
    assert found.resolved is not None
    assert found.resolved["timezone"] == "Europe/London"
    assert found.resolved["start"] == "2025-02-28"
    found = resolve(at(SUMMER), IN_LONDON)
    assert found.resolved is not None
    assert found.resolved["timezone"] == "UTC"


def test_time_zones_with_the_same_ticks_are_one() -> None:
    hourly = at(WINTER, text="0 * * * *")
    found = resolve(hourly, IN_LONDON + "'Europe/Berlin' 'Africa/Accra'")
    assert found.resolved is not None
    assert found.resolved["timezone"] == "UTC"
    found = resolve(at(WINTER), "'Africa/Accra' 'no time/zone'")
    assert found.resolved is not None
    assert found.resolved["timezone"] == "UTC"


def test_a_date_without_a_time_zone_has_that_of_the_server() -> None:
    found = resolve(at(WINTER - timedelta(hours=9), timezone="Asia/Tokyo"))
    assert found.resolved is not None
    assert found.resolved["timezone"] == "Asia/Tokyo"
    assert resolve(at(WINTER - timedelta(hours=9))).problem is not None


def test_the_known_time_zone_stays_as_long_as_it_fits() -> None:
    """In winter London has the time of UTC."""
    summer = resolve(at(SUMMER - timedelta(hours=1)), IN_LONDON)
    for moment in (WINTER, SUMMER - timedelta(hours=1)):
        assert resolve_schedule(AUTO, at(moment), IN_LONDON, summer) == summer
    moved = resolve_schedule(AUTO, at(SUMMER), IN_LONDON, summer)
    assert moved.resolved == summer.resolved
    assert moved.problem is not None
    assert "Its schedule is now '0 0 * * *' in UTC" in moved.problem


@pytest.mark.parametrize("text", ["0 0 * * *", "1 day, 0:00:00"])
def test_without_a_next_run_the_same_schedule_keeps_its_partitions(text: str) -> None:
    """Airflow plans none at the end date, and while a DAG has its most active runs."""
    day = at(WINTER, is_trigger=False, text=text)
    known = resolve(day)
    assert known.problem is None
    idle = replace(day, next_fires_at=None, next_logical_date=None)
    assert resolve_schedule(AUTO, idle, "", known) == known
    assert resolve(idle).resolved is None
    other = replace(idle, text="0 6 * * *")
    assert resolve_schedule(AUTO, other, "", known).problem is not None


@pytest.mark.parametrize(
    "source",
    [
        "from common import TZ",
        "start_date=pendulum.datetime(2025, 3, 1, tz=common.LOCAL)",
        "zone = Variable.get('timezone_of_sales')",
    ],
)
def test_a_time_zone_of_another_file_is_not_guessed(source: str) -> None:
    found = resolve(at(WINTER), source)
    assert found.problem is not None
    assert "the DAG's file takes its time zone from elsewhere ('" in found.problem
    assert found.problem.endswith("'); write `timezone`.")
    assert resolve(at(WINTER), source, timezone="Europe/London").problem is None
    assert resolve(at(WINTER, text="0 * * * *"), source).problem is None  # the same in all


@pytest.mark.parametrize(
    "source",
    [
        "start_date=datetime(2025, 3, 1)",
        "start_date=datetime(2025, 3, 1, tzinfo=timezone.utc)",
        "start_date=pendulum.datetime(2025, 3, 1, tz='UTC')",
        "quartz = 1",
    ],
)
def test_a_file_that_names_utc_or_no_time_zone_has_utc(source: str) -> None:
    assert resolve(at(WINTER), source).problem is None


@pytest.mark.parametrize("key", ["start", "key_format"])
def test_a_key_that_is_null_is_not_set(key: str) -> None:
    found = resolve(DAILY, **{key: None})
    assert found == resolve(DAILY)
    assert found.declared == {"cron": "auto"}


def test_a_written_start_gives_no_more_partitions_than_dagster_advises() -> None:
    minutes = at(WINTER, text="* * * * *")
    found = resolve(minutes, start="2025-01-01")
    assert found.problem is not None
    assert "since 2025-01-01 there would be more than 100000 partitions" in found.problem
    assert resolve(minutes, start="2026-01-01").problem is None


def test_without_the_file_the_time_zone_is_not_known() -> None:
    found = resolve(DAILY, None)
    assert found.problem is not None
    assert "Airflow does not show the DAG's file" in found.problem
    assert resolve(DAILY, None, timezone="UTC").problem is None
    delta = replace(DAILY, text="1 day, 0:00:00")
    assert resolve(delta, None).problem is None


@pytest.mark.parametrize(
    ("delta", "cron"),
    [
        ("0:01:00", "*/1 * * * *"),
        ("0:20:00", "*/20 * * * *"),
        ("1:00:00", "0 * * * *"),
        ("6:00:00", "0 */6 * * *"),
        ("1 day, 0:00:00", "0 0 * * *"),
        ("0:00:30", None),
        ("0:25:00", None),
        ("5:00:00", None),
        ("2 days, 0:00:00", None),
        ("7 days, 0:00:00", None),
        ("0:00:00", None),
        ("1 day, 0:00:00.5", None),
        ("999999999 days, 0:00:00", None),
    ],
)
def test_a_time_delta_is_a_cron_expression_if_it_keeps_to_the_clock(
    delta: str, cron: str | None
) -> None:
    start = datetime(2026, 1, 14, tzinfo=UTC)
    schedule = at(WINTER, text=delta, catchup=True, start_date=start)
    found = resolve(schedule)
    assert (found.resolved and found.resolved["cron"]) == cron
    off = replace(schedule, start_date=start + timedelta(seconds=7))
    assert resolve(off).resolved is None
    assert resolve(replace(schedule, catchup=False)).resolved is None


def test_both_kinds_of_schedules_line_up() -> None:
    """The partition of the run that is due on 15 January is 14 January, whatever its dates are."""
    interval, trigger = resolve(at(WINTER, is_trigger=False)), resolve(at(WINTER))
    assert interval.resolved is not None
    assert trigger.resolved is not None
    assert interval.resolved["date"] == "data_interval_start"
    assert trigger.resolved["date"] == "data_interval_end"
    # The first tick from the start date on begins an interval, or fires.
    assert (interval.resolved["start"], trigger.resolved["start"]) == ("2025-03-01", "2025-02-28")


def test_a_changed_declaration_needs_a_refresh() -> None:
    known = resolve(DAILY)
    assert describe_auto(AUTO, known) is None
    other = PartitionsDeclaration.model_validate({"cron": "auto", "start": "2026-01-01"})
    for declared, found in ((AUTO, None), (other, known)):
        problem = describe_auto(declared, found)
        assert problem is not None
        assert "; refresh the state: `dg utils refresh-defs-state`." in problem
    assert describe_auto(None, None) is None


def test_a_kept_declaration_that_is_refused_by_now_is_found_out_again() -> None:
    kept = replace(resolve(DAILY), resolved={"cron": "0 0 29 2 *", "start": "2026-01-01"})
    assert kept.build() is None
    assert describe_auto(AUTO, kept) is not None
    assert resolve_schedule(AUTO, DAILY, "", kept) == resolve(DAILY)


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.datetimes().map(str)
FIELDS = [
    "timezone",
    "start_date",
    "default_args",
    "catchup",
    "timetable_partitioned",
    "next_dagrun",
    "next_dagrun_logical_date",
    "next_dagrun_data_interval_end",
    "next_dagrun_run_after",
    "schedule_interval",
]
TEXTS = st.sampled_from(
    ["0 0 * * *", "* * * * *", "1:00:00", "@once", "0 0 31 2 *", "9 days, 1:00:00"]
)


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES), TEXTS | VALUES, st.text(max_size=30))
def test_any_answer_gives_partitions_or_a_sentence(
    answer: dict[str, Any], text: Any, source: str
) -> None:
    schedule = parse_schedule({**answer, "timetable_summary": text})
    found = resolve_schedule(AUTO, schedule, source, None)
    assert (found.resolved is None) == (found.problem is not None)


@given(
    st.datetimes(timezones=st.just(UTC)),
    st.datetimes(timezones=st.just(UTC)),
    st.sampled_from(["0 0 * * *", "@weekly", "30 5 * * 1-5", "0 0 1 1 *", "1 day, 0:00:00"]),
)
def test_any_dates_give_partitions_or_a_sentence(
    fires_at: datetime, start_date: datetime, text: str
) -> None:
    day = fires_at.replace(hour=0, minute=0, second=0, microsecond=0)
    for moment in (day, fires_at):
        found = resolve(at(moment, text=text, start_date=start_date))
        assert (found.resolved is None) == (found.problem is not None)
