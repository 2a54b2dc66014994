"""What `partitions: auto` stands for, by kind of schedule and version of Airflow.

Fakes answer what real Airflows answered in November 2026, real ones what they do today.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from federation_defs.airflow.models import Schedule, TriggerOptions
from federation_defs.declaration import PartitionsDeclaration
from federation_defs.errors import DagNotFoundError, PermissionMissingError
from federation_defs.schedules import AutoPartitions, resolve_schedule
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.faults import answer
from tests.contract.worlds import FOLDERS, FakeWorld, World, make_run_id, wait_for_end

NO_CRON, DELTA = "gives none (cron: write a cron expression", "it is a time delta"
NO_NEXT_RUN = "Airflow plans no next run"
BEGIN = "2026-03-01T00:00:00+00:00"
# As of 22 November 2026, 3:30: the logical date of the next run, and when it is due.
DAY = ("2026-11-21T00:00:00+00:00", "2026-11-22T00:00:00+00:00")
DAY_IN_BERLIN = ("2026-11-20T04:30:00+00:00", "2026-11-21T04:30:00+00:00")
NONE = (None, None)


def end(dates: tuple[str | None, str | None]) -> tuple[str | None, str | None]:
    return dates[1], dates[1]


def keys(cron: str, start: str, timezone: str = "UTC", at_end: bool = False) -> dict[str, str]:
    date = "data_interval_end" if at_end else "data_interval_start"
    return {"cron": cron, "start": start, "timezone": timezone, "date": date}


NOW = end((None, "2026-11-22T03:29:42.984086+00:00"))
IN_BERLIN = keys("30 5 * * *", "2026-03-01", "Europe/Berlin")
AT_END_IN_BERLIN = keys("30 5 * * *", "2026-02-28", "Europe/Berlin", at_end=True)
IN_TOKYO = keys("0 6 * * *", "2026-03-01", "Asia/Tokyo", at_end=True)
EVENING = "2026-11-21T21:00:00+00:00"
HOUR = ("2026-11-22T02:00:00+00:00", "2026-11-22T03:00:00+00:00")
FIRST_HOUR = (BEGIN, "2026-03-01T01:00:00+00:00")
QUARTER_HOUR = ("2026-11-22T03:00:00+00:00", "2026-11-22T03:15:00+00:00")
NINETY_MINUTES = ("2026-11-22T01:30:00+00:00", "2026-11-22T03:00:00+00:00")
QUARTER = ("2026-07-01T00:00:00+00:00", "2026-10-01T00:00:00+00:00")
WEEK = ("2026-11-15T00:00:00+00:00", "2026-11-22T00:00:00+00:00")
MINUTE = ("2026-11-22T03:28:00+00:00", "2026-11-22T03:29:00+00:00")
BERLIN = {"start_date": "2026-02-28T23:00:00+00:00"}
# By kind: schedule, dates of the next run, what else Airflow returns, and the keys or the problem.
Kind = tuple[str | None, tuple[str | None, str | None], Mapping[str, Any], Mapping[str, str] | str]
BOTH: dict[str, Kind] = {
    "cron_interval": ("30 5 * * *", DAY_IN_BERLIN, BERLIN, IN_BERLIN),
    "cron_trigger": ("30 5 * * *", end(DAY_IN_BERLIN), BERLIN, AT_END_IN_BERLIN),
    "cron_trigger_with_window": ("0 0 * * *", DAY, {}, keys("0 0 * * *", "2026-03-01")),
    "cron_trigger_of_a_week": ("0 0 * * *", WEEK, {}, "neither start nor end of its window"),
    "cron_of_another_zone": ("0 6 * * *", (EVENING, EVENING), {}, IN_TOKYO),
    "cron_of_many_runs": ("* * * * *", MINUTE, {}, "more than 100000 partitions"),
    "cron_that_is_over": ("0 0 * * *", NONE, {}, NO_NEXT_RUN),
    "delta_interval": ("0:15:00", QUARTER_HOUR, {}, keys("*/15 * * * *", "2026-03-01")),
    "delta_interval_of_a_day": ("1 day, 0:00:00", DAY, {}, keys("0 0 * * *", "2026-03-01")),
    "delta_interval_of_no_hours": ("1:30:00", NINETY_MINUTES, {}, DELTA),
    "delta_trigger": ("1 day, 0:00:00", NOW, {}, DELTA),
    "once": ("@once", (BEGIN, BEGIN), {}, NO_CRON),
    "continuous": ("@continuous", (BEGIN, NOW[0]), {}, NO_CRON),
    "none": (None, NONE, {}, "the DAG has none"),
}
KINDS: dict[str, dict[str, Kind]] = {
    "v1": {
        **BOTH,
        "cron": ("30 5 * * *", DAY_IN_BERLIN, BERLIN, IN_BERLIN),
        "cron_of_default_args": ("0 0 * * *", DAY, {"start_date": None}, "no start date; write"),
        "preset": ("@daily", DAY, {}, keys("@daily", "2026-03-01")),
        "quarterly": ("@quarterly", QUARTER, {}, keys("0 0 1 */3 *", "2026-04-01")),
        "delta": ("1:00:00", HOUR, {}, keys("0 * * * *", "2026-03-01")),
        "delta_with_catchup": (
            "1:00:00",
            FIRST_HOUR,
            {"catchup": True},
            keys("0 * * * *", "2026-03-01"),
        ),
        "relative_delta": ("RelativeDelta", DAY, {}, NO_CRON),
        "asset": ("Dataset", NONE, {}, NO_CRON),
        "asset_or_cron": ("Dataset or 0 0 * * *", end(DAY), {}, NO_CRON),
        "events": ("events", end((None, "2050-01-01T00:00:00+00:00")), {}, NO_CRON),
    },
    "v2": {
        **BOTH,
        "cron": ("30 5 * * *", end(DAY_IN_BERLIN), BERLIN, AT_END_IN_BERLIN),
        "cron_without_start": (
            "0 * * * *",
            end(HOUR),
            {"start_date": None},
            "no start date; write `start`",
        ),
        "cron_of_default_args": (
            "0 0 * * *",
            end(DAY),
            {"start_date": None, "default_args": {"start_date": BEGIN}},
            keys("0 0 * * *", "2026-02-28", at_end=True),
        ),
        "preset": ("0 0 * * *", end(DAY), {}, keys("0 0 * * *", "2026-02-28", at_end=True)),
        "quarterly": (
            "0 0 1 */3 *",
            end(QUARTER),
            {},
            keys("0 0 1 */3 *", "2026-01-01", at_end=True),
        ),
        "crons": ("0 1 * * *, 0 2 * * *", end(HOUR), {}, NO_CRON),
        "delta": ("1:00:00", NOW, {}, DELTA),
        "delta_with_catchup": (
            "1:00:00",
            (BEGIN, BEGIN),
            {"catchup": True},
            keys("0 * * * *", "2026-02-28", at_end=True),
        ),
        "relative_delta": ("relativedelta(days=+1)", NOW, {}, NO_CRON),
        "asset": ("Asset", NONE, {}, NO_CRON),
        "asset_or_cron": ("Asset or 0 0 * * *", end(DAY), {}, NO_CRON),
        "partitions_of_days": (
            "0 0 * * *",
            (None, DAY[1]),
            {"timetable_partitioned": True},
            "no run has ended whose partition key confirms it",
        ),
        "partitions_of_an_asset": (
            "Partitioned Asset",
            NONE,
            {"timetable_partitioned": True},
            NO_CRON,
        ),
        "partitions_at_runtime": ("PartitionedAtRuntime", NONE, {}, NO_CRON),
    },
}


def build_plan(api: str, kind: Kind) -> dict[str, Any]:
    """Return the fields of the answer of an Airflow that has such a DAG."""
    text, (logical_date, due), more, _ = kind
    plan: dict[str, Any] = {"start_date": BEGIN, **more}
    if api == "v1":
        plan["schedule_interval"] = text and {"__type": "CronExpression", "value": text}
        if text == "1:00:00":
            plan["schedule_interval"] = {
                "__type": "TimeDelta",
                "days": 0,
                "seconds": 3600,
                "microseconds": 0,
            }
        if text == "RelativeDelta":
            plan["schedule_interval"] = {"__type": "RelativeDelta", "days": 1}
        dates = {"next_dagrun": logical_date, "next_dagrun_create_after": due}
    else:
        plan["timetable_summary"] = text
        dates = {"next_dagrun_logical_date": logical_date, "next_dagrun_run_after": due}
    interval = {
        "next_dagrun_data_interval_start": logical_date,
        "next_dagrun_data_interval_end": due if logical_date else None,
    }
    return {**plan, **dates, **interval}


def add_schedules(world: World) -> World:
    """Let a fake Airflow have the DAGs that a real one has."""
    if isinstance(world, FakeWorld):
        partitions: Kind = ("0 0 * * *", (None, DAY[1]), {"timetable_partitioned": True}, "")
        more = {"partitions": partitions} if world.api == "v2" else {}
        folder = FOLDERS["warehouse" if world.api == "v1" else "metrics"]
        for name, kind in {**KINDS[world.api], **more}.items():
            plan = build_plan(world.api, kind)
            world.database.add_dag(
                f"schedule_{name}",
                plan=plan,
                file="timetables.py",
                source=(folder / "timetables.py").read_text(),
                key_format="%Y-%m-%dT%H:%M:%S" if "timetable_partitioned" in plan else None,
                polls=2,
            )
    return world


@pytest.fixture
def scheduled(world: World) -> World:
    """An Airflow with a DAG of each kind of schedule."""
    return add_schedules(world)


def resolve(world: World, *names: str, **declared: str) -> dict[str, AutoPartitions]:
    dags = {f"schedule_{name}": name for name in names}
    sources = world.client.fetch_dag_sources(world.client.fetch_dag(dag_id) for dag_id in dags)
    auto = PartitionsDeclaration.model_validate({"cron": "auto", **declared})
    return {
        dags[dag_id]: resolve_schedule(auto, schedule, sources[dag_id], None)
        for dag_id, schedule in world.client.fetch_schedules(dags).items()
    }


def test_each_kind_of_schedule_gives_partitions_or_says_what_to_write(scheduled: World) -> None:
    kinds = KINDS[scheduled.api]
    for name, found in resolve(scheduled, *kinds).items():
        expected = kinds[name][-1]
        if isinstance(expected, str):
            assert found.resolved is None, name
            assert found.problem is not None, name
            assert expected in found.problem, name
            assert "; write " in found.problem, name
        else:
            assert (found.resolved, found.problem) == (expected, None), name


def test_what_a_person_writes_is_taken_and_confirmed(scheduled: World) -> None:
    (found,) = resolve(scheduled, "cron", timezone="UTC").values()
    assert found.problem is not None
    assert "no tick of '30 5 * * *' in UTC; write `timezone`" in found.problem
    (found,) = resolve(scheduled, "cron_of_default_args", start="2026-03-05").values()
    assert found.resolved is not None
    assert found.resolved["start"] == "2026-03-05"
    (found,) = resolve(scheduled, "cron_trigger_of_a_week", date="data_interval_end").values()
    assert found.resolved is not None
    assert found.resolved["date"] == "data_interval_end"


def test_the_default_format_of_partition_keys_is_confirmed_by_the_last_one(
    world_v2: World,
) -> None:
    add_schedules(world_v2)
    client, dag_id, run_id = world_v2.client, "schedule_partitions", make_run_id()
    client.session.request("PATCH", f"/api/v2/dags/{dag_id}", json={"is_paused": False})
    options = TriggerOptions("none", partition_key="2026-03-05T00:00:00")
    client.trigger_run(dag_id, run_id, options=options)
    wait_for_end(world_v2, run_id, dag_id)
    client.session.request("PATCH", f"/api/v2/dags/{dag_id}", json={"is_paused": True})
    (found,) = resolve(world_v2, "partitions").values()
    written = {"cron": "0 0 * * *", "start": "2026-03-01", "timezone": "UTC"}
    assert found.resolved == {**written, "key_format": "%Y-%m-%dT%H:%M:%S"}
    (found,) = resolve(world_v2, "partitions_of_days", key_format="%Y%m%d").values()
    assert found.resolved == {**written, "key_format": "%Y%m%d"}


def test_the_schedule_of_a_dag_that_can_not_be_read_says_why(fake_world: FakeWorld) -> None:
    fake_world.server.fail_next(asks("GET", "/dags/described/details"), answer(403, {}))
    found = fake_world.client.fetch_schedules(["described", "nobody_knows_it", "dated"])
    assert isinstance(found["described"], PermissionMissingError)
    assert isinstance(found["nobody_knows_it"], DagNotFoundError)
    assert isinstance(found["dated"], Schedule)
