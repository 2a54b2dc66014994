"""Which partitions an event sensor starts, beside a small model, in random histories."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation_defs.naming import build_asset_key
from tests.contract.conftest import Airflow, OpenInstance
from tests.contract.dependencies.reacting import DAG, EventDaemon, report

Declared = dict[str, Any]
KEY = build_asset_key("metrics", DAG)
START = "2026-03-01"
DAYS = [date(2026, 3, 1) + timedelta(days=number) for number in range(40)]
DAILY: Declared = {"cron": "0 0 * * *", "start": START}
HOURLY: Declared = {"cron": "0 * * * *", "start": START}
WEEKLY: Declared = {"cron": "0 0 * * 0", "start": START}
MONTHLY: Declared = {"cron": "0 0 1 * *", "start": START}
BERLIN = {"timezone": "Europe/Berlin"}  # summer time begins on 29 March
TRIGGER = {"at_once": 3}


def name_hours(day: date, zone: str = "UTC") -> list[str]:
    """Return the keys of the hours, in UTC, of a day somewhere."""
    begin = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone))
    end = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)) + timedelta(days=1)
    hour, keys = begin.astimezone(timezone.utc), list[str]()
    while hour < end.astimezone(timezone.utc):
        keys += [f"{hour:%Y-%m-%d-%H:%M}"] if f"{hour:%Y-%m-%d}" >= START else []
        hour += timedelta(hours=1)
    return keys


@dataclass(frozen=True)
class Case:
    """Two DAGs with partitions.

    Attributes:
        needs: By partition of the downstream one, what it needs, the earliest first.
        least: How many of them it needs; None for all.
    """

    upstream: Declared | None
    downstream: Declared
    needs: dict[str, list[str]]
    declared: Declared = field(default_factory=dict)
    edge: Declared = field(default_factory=dict)
    least: int | None = None


def map_days(convert: Callable[[date], list[str]], count: int = 40) -> dict[str, list[str]]:
    return {str(day): convert(day) for day in DAYS[:count]}


WEEKS = {str(day): [str(day + timedelta(days=number)) for number in range(7)] for day in DAYS[::7]}
LAST_HOUR = map_days(lambda day: name_hours(day)[-1:])
CASES = {
    "daily → daily": Case(DAILY, DAILY, map_days(lambda day: [str(day)])),
    "daily → daily, other keys": Case(
        {**DAILY, "key_format": "%d.%m.%Y"}, DAILY, map_days(lambda day: [f"{day:%d.%m.%Y}"])
    ),
    "hourly → daily, all": Case(HOURLY, DAILY, map_days(name_hours)),
    "hourly → daily, last": Case(HOURLY, DAILY, LAST_HOUR, {"granularity": "last"}),
    "hourly → daily, any": Case(HOURLY, DAILY, map_days(name_hours), {"granularity": "any"}, {}, 1),
    "hourly → daily, 20": Case(HOURLY, DAILY, map_days(name_hours), {"granularity": 20}, {}, 20),
    "hourly → a day in Berlin": Case(
        HOURLY, {**DAILY, **BERLIN}, map_days(lambda day: name_hours(day, "Europe/Berlin"))
    ),
    "a day in UTC → one in Berlin": Case(
        DAILY,
        {**DAILY, **BERLIN},
        map_days(lambda day: [str(day - timedelta(days=1)), str(day)]) | {START: [START]},
    ),
    "daily → weekly": Case(DAILY, WEEKLY, WEEKS),
    "daily → monthly": Case(DAILY, MONTHLY, {START: [str(day) for day in DAYS[:31]]}),
    "daily → monthly, previous": Case(
        DAILY, MONTHLY, {"2026-04-01": [str(day) for day in DAYS[:31]]}, {}, {"window": "previous"}
    ),
    "weekly → daily": Case(
        WEEKLY, DAILY, {day: [week] for week, days in WEEKS.items() for day in days}
    ),
}


@dataclass
class Model:
    """What has to run: each partition that has what it needs, after each update of that."""

    case: Case
    updated: set[str] = field(default_factory=set)  # of the upstream's, ever
    pending: list[str] = field(default_factory=list)
    active: list[str] = field(default_factory=list)

    def update(self, partition: str) -> None:
        self.updated.add(partition)
        for key, needed in self.case.needs.items():
            if partition in needed:
                if key in self.pending:
                    self.pending.remove(key)
                self.pending.append(key)

    def tick(self) -> list[str]:
        begun: list[str] = []
        for key in list(self.pending):
            needed = self.case.needs[key]
            least = len(needed) if self.case.least is None else self.case.least
            is_complete = len(self.updated.intersection(needed)) >= least
            has_room = len(self.active) < TRIGGER["at_once"]
            if is_complete and has_room and key not in self.active:
                self.pending.remove(key)
                self.active.append(key)
                begun.append(key)
        return begun


class Player(EventDaemon):
    """A daemon whose runs go on until the test ends them."""

    def __init__(self, airflow: Airflow, instance: dg.DagsterInstance, case: Case) -> None:
        edge = {"dag": "warehouse/up", **case.edge}
        dag = {
            "depends_on": [edge],
            "partitions": case.downstream,
            "trigger": TRIGGER,
            **case.declared,
        }
        upstreams = {"warehouse": {"up": {"partitions": case.upstream}}}
        super().__init__(airflow.client, instance, {DAG: dag}, upstreams)
        self.runs: list[dg.DagsterRun] = []

    def run(self, *, is_stored: bool = True) -> list[str]:
        """Evaluate the sensor, create the runs that it requests, and return their partitions."""
        begun: list[str] = []
        for request in self.evaluate():
            if self.has_run(request.run_key):
                continue
            assert request.partition_key
            tags = {
                **request.tags,
                "dagster/run_key": str(request.run_key),
                "dagster/partition": request.partition_key,
            }
            run = dg.DagsterRun(
                job_name="any",
                run_id=str(uuid4()),
                status=dg.DagsterRunStatus.STARTED,
                tags=tags,
                asset_selection=frozenset(request.asset_selection or ()),
            )
            self.instance.add_run(run)
            self.runs.append(run)
            begun.append(request.partition_key)
        if is_stored:
            self.cursor = self.ticked.cursor
        return begun

    def update(self, partition: str | None, run_id: str = "") -> None:
        report(self.instance, "warehouse/up", run_id=run_id or uuid4().hex, partition=partition)

    def finish(self) -> None:
        self.instance.report_run_failed(self.runs.pop(0), "it has ended")


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@settings(
    max_examples=int(os.environ.get("HISTORIES", "3")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_each_updated_partition_leads_to_its_run_once(
    airflow_v2: Airflow, open_instance: OpenInstance, tmp_path: Path, name: str, data: st.DataObject
) -> None:
    """In time, late, out of order, after days away, in backfills and after clears."""
    case = CASES[name]
    airflow_v2.database.add_dag(DAG)
    key = data.draw(st.sampled_from(sorted(case.needs)))
    position = sorted(case.needs).index(key)
    near = [each for one in sorted(case.needs)[position : position + 2] for each in case.needs[one]]
    history = data.draw(
        st.lists(st.sampled_from(["tick", "tick", "finish", "crash", "restart", "all", *near]))
    )
    with open_instance(tmp_path / uuid4().hex) as instance:
        daemon, model = Player(airflow_v2, instance, case), Model(case)
        daemon.update(near[0])  # before it was switched on
        model.updated.add(near[0])
        assert daemon.run() == []
        for event in [*history, "all"]:
            play(daemon, model, event, near)
        while model.active:
            play(daemon, model, "finish", near)
            play(daemon, model, "tick", near)
        play(daemon, model, "tick", near)


def play(daemon: Player, model: Model, event: str, near: list[str]) -> None:
    if event in ("tick", "crash"):
        assert daemon.run(is_stored=event == "tick") == model.tick()
        if event == "crash":
            daemon.restart()
    elif event == "restart":
        daemon.restart()
    elif event == "finish":
        if daemon.runs:
            daemon.finish()
            model.active.pop(0)
    else:
        for partition in near if event == "all" else [event]:  # all: a backfill
            daemon.update(partition)
            model.update(partition)
