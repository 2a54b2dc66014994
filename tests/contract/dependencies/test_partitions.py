"""Which partitions an event sensor starts, beside a small model: in a table of histories, and in
random ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from operator import attrgetter
from pathlib import Path
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation_defs.dagster_io.reports import END_LABEL
from federation_defs.events import build_drop_observation
from federation_defs.execution import build_execution
from federation_defs.naming import build_asset_key
from federation_defs.specs import build_specs
from tests.contract.conftest import Airflow, OpenInstance, StartAirflow
from tests.contract.dependencies.reacting import (
    DAG,
    EventDaemon,
    Player,
    declare,
    list_counted,
    report,
)
from tests.contract.execution.executing import FAST, materialize
from tests.contract.execution.partitioned import of, of_range
from tests.contract.history import report_in

Declared = dict[str, Any]
KEY = build_asset_key("metrics", DAG)
START = "2026-03-01"
DAYS = [date(2026, 3, 1) + timedelta(days=number) for number in range(40)]
DAILY: Declared = {"cron": "0 0 * * *", "start": START}
HOURLY: Declared = {"cron": "0 * * * *", "start": START}
SIX_HOURLY: Declared = {"cron": "0 */6 * * *", "start": START}
WEEKLY: Declared = {"cron": "0 0 * * 0", "start": START}
MONTHLY: Declared = {"cron": "0 0 1 * *", "start": START}
BERLIN = {"timezone": "Europe/Berlin"}  # summer time begins on 29 March
TRIGGER = {"at_once": 3}
UPSTREAMS: list[str] = ["up", "other"]


def name_hours(day: date, zone: str = "UTC") -> list[str]:
    """Return the keys of the hours, in UTC, of a day somewhere."""
    begin = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone))
    end = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)) + timedelta(days=1)
    hour, keys = begin.astimezone(timezone.utc), list[str]()
    while hour < end.astimezone(timezone.utc):
        keys += [f"{hour:%Y-%m-%d-%H:%M}"] if f"{hour:%Y-%m-%d}" >= START else []
        hour += timedelta(hours=1)
    return keys


def name_quarters(day: date) -> list[str]:
    """Return the keys of the quarters of a day in UTC, of six hours each."""
    return [f"{day}-{hour:02}:00" for hour in range(0, 24, 6)]


@dataclass(frozen=True)
class Case:
    """Two DAGs, and their partitions; three with `when: all`.

    Attributes:
        upstream: The partitions of the upstream one. Of one without, an update is told by the day
            before it.
        needs: By partition of the downstream one, what it needs, the earliest first.
        least: How many of them it needs; None for all.
        first: Which of the downstream partitions the histories of the table begin with.
    """

    upstream: Declared | None
    downstream: Declared | None
    needs: dict[str | None, list[str]]
    declared: Declared = field(default_factory=dict)
    edge: Declared = field(default_factory=dict)
    least: int | None = None
    first: int = 0

    @property
    def is_all(self) -> bool:
        """Whether a partition needs an update of two upstreams since its last run."""
        return self.declared.get("trigger", {}).get("when") == "all"


def map_days(convert: Callable[[date], list[str]], count: int = 40) -> dict[str | None, list[str]]:
    return {str(day): convert(day) for day in DAYS[:count]}


WEEKS: dict[str | None, list[str]] = {
    str(day): [str(day + timedelta(days=number)) for number in range(7)] for day in DAYS[::7]
}
LAST_QUARTER = map_days(lambda day: name_quarters(day)[-1:])
CASES = {
    "daily → daily": Case(DAILY, DAILY, map_days(lambda day: [str(day)])),
    "daily → daily, other keys": Case(
        {**DAILY, "key_format": "%d.%m.%Y"}, DAILY, map_days(lambda day: [f"{day:%d.%m.%Y}"])
    ),
    "six-hourly → daily, all": Case(SIX_HOURLY, DAILY, map_days(name_quarters)),
    "six-hourly → daily, last": Case(SIX_HOURLY, DAILY, LAST_QUARTER, {"granularity": "last"}),
    "six-hourly → daily, any": Case(
        SIX_HOURLY, DAILY, map_days(name_quarters), {"granularity": "any"}, least=1
    ),
    "six-hourly → daily, 3 of 4": Case(
        SIX_HOURLY, DAILY, map_days(name_quarters), {"granularity": 3}, least=3
    ),
    "hourly → a day in Berlin": Case(
        HOURLY,
        {**DAILY, **BERLIN},
        map_days(lambda day: name_hours(day, "Europe/Berlin")),
        first=22,  # 23 March, so that the histories have the day of 23 hours
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
        WEEKLY, DAILY, {day: [str(week)] for week, days in WEEKS.items() for day in days}
    ),
    "daily → without": Case(DAILY, None, {None: [str(day) for day in DAYS[:3]]}, least=1),
    "without → daily": Case(None, DAILY, map_days(lambda day: [str(day)])),
    "daily and daily → daily, when: all": Case(
        DAILY,
        DAILY,
        map_days(lambda day: [f"up {day}", f"other {day}"]),
        {"trigger": {"when": "all"}},
    ),
}


@dataclass
class Model:
    """What has to run: each partition that has what it needs, after each update of that."""

    case: Case
    updated: set[str] = field(default_factory=set)  # of the upstream's; with `all`, not yet used
    pending: list[str | None] = field(default_factory=list)
    active: list[str | None] = field(default_factory=list)

    def update(self, partition: str) -> None:
        self.updated.add(partition)
        for key, needed in self.case.needs.items():
            if partition in needed:
                if key in self.pending:
                    self.pending.remove(key)
                self.pending.append(key)

    def tick(self) -> list[str | None]:
        begun: list[str | None] = []
        for key in list(self.pending):
            needed = self.case.needs[key]
            least = len(needed) if self.case.least is None else self.case.least
            is_complete = len(self.updated.intersection(needed)) >= least
            has_room = len(self.active) < TRIGGER["at_once"]
            if is_complete and has_room and key not in self.active:
                self.pending.remove(key)
                self.active.append(key)
                begun.append(key)
                if self.case.is_all:
                    self.updated.difference_update(needed)
        return begun


class PartitionPlayer(Player):
    def __init__(
        self, airflow: Airflow, instance: dg.DagsterInstance, case: Case, model: Model
    ) -> None:
        edges = [{"dag": "warehouse/up", **case.edge}]
        if case.is_all:
            edges.append({"dag": "warehouse/other"})
        trigger = {**(TRIGGER if case.downstream else {}), **case.declared.get("trigger", {})}
        dag = {
            "depends_on": edges,
            **case.declared,
            "partitions": case.downstream,
            "trigger": trigger,
        }
        upstreams = {"warehouse": {up: {"partitions": case.upstream} for up in UPSTREAMS}}
        name = attrgetter("partition_key")
        super().__init__(model, name, airflow.client, instance, {DAG: dag}, upstreams)
        self.case = case

    def update(self, partition: str) -> None:
        """Report a success of an upstream: with `when: all`, of the one that stands before it."""
        dag_id, _, name = partition.rpartition(" ")
        more: dict[str, Any] = {}
        if self.case.upstream is None:
            end = datetime.fromisoformat(f"{name}T12:00:00+00:00") + timedelta(days=1)
            more = {END_LABEL: dg.MetadataValue.timestamp(end)}
        key = None if more else name
        upstream = f"warehouse/{dag_id or 'up'}"
        report(self.instance, upstream, run_id=uuid4().hex, partition=key, **more)


def spread(updates: list[str]) -> list[str]:
    """Return the updates with ticks between some of the first, and after each of the last."""
    history: list[str] = []
    for number, update in enumerate(updates):
        is_near_end = number >= len(updates) - 2 or number == 0
        history += [update, "tick"] if is_near_end else [update]
    return history


KINDS = ["in time", "late", "out of order", "three days away", "backfill", "clear", "crash"]


def build_histories(first: list[str], second: list[str]) -> dict[str, list[str]]:
    """Return a history of each kind, of the updates that two partitions need."""
    both = [*first, *second]
    return {
        "in time": [*spread(first), *spread(second)],
        "late": [*spread(first[:-1]), *spread(second), first[-1]],
        "out of order": spread(both[::-1]),
        "three days away": [*both, "restart"],
        "backfill": [*both, "tick", *second, *first, "tick", "finish"],
        "clear": ["all", "tick", *["finish", "tick"] * 7, first[-1], "tick", "finish", *first],
        "crash": [*first, "crash", *second, "crash", "restart", "crash"],
    }


@pytest.mark.parametrize("name", CASES)
def test_each_updated_partition_leads_to_its_run_once(
    airflow_v2: Airflow, open_instance: OpenInstance, tmp_path: Path, name: str
) -> None:
    """The table: each kind of history, of two partitions of its own where there are as many."""
    case = CASES[name]
    airflow_v2.database.add_dag(DAG)
    keys = list(case.needs)[case.first :]
    with open_instance(tmp_path / "dagster") as instance:
        player, model = begin(airflow_v2, instance, case, case.needs[keys[0]][0])
        for number, kind in enumerate(KINDS):
            pair = keys[2 * number :][:2] if len(keys) > 2 * number + 1 else keys[-2:]
            first, second = case.needs[pair[0]], case.needs[pair[1]] if len(pair) > 1 else []
            history = build_histories(first, second)[kind]
            begun = finish(player, model, history, [*first, *second], kind)
            assert set(begun) >= set(pair), kind
            assert begun.count(pair[0]) >= (2 if kind in ("backfill", "clear") else 1), kind


def begin(
    airflow: Airflow, instance: dg.DagsterInstance, case: Case, before: str
) -> tuple[PartitionPlayer, Model]:
    """Return a daemon that has ticked once, after an update that leads to nothing."""
    model = Model(case)
    player = PartitionPlayer(airflow, instance, case, model)
    player.update(before)
    player.play("tick")
    if not case.is_all:
        model.updated.add(before)
    return player, model


def finish(
    player: PartitionPlayer, model: Model, history: list[str], near: list[str], what: str = ""
) -> list[str | None]:
    """Play a history until nothing goes on, and return the partitions that have run."""
    begun: list[str | None] = []
    for event in [*history, "tick"]:
        if event in ("tick", "crash", "restart", "finish"):
            begun += player.play(event, what)
            continue
        for partition in near if event == "all" else [event]:  # all: a backfill
            player.update(partition)
            model.update(partition)
    while model.active:
        for event in ("finish", "tick"):
            begun += player.play(event, what)
    return begun


if "HISTORIES" in os.environ:  # as in the soak

    @pytest.mark.parametrize("name", CASES)
    @given(data=st.data())
    @settings(
        max_examples=int(os.environ["HISTORIES"]),
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    def test_each_updated_partition_leads_to_its_run_once_in_random_histories(
        airflow_v2: Airflow,
        open_instance: OpenInstance,
        tmp_path: Path,
        name: str,
        data: st.DataObject,
    ) -> None:
        case = CASES[name]
        airflow_v2.database.add_dag(DAG)
        position = data.draw(st.integers(0, len(case.needs) - 1))
        near = [
            each for needed in [*case.needs.values()][position : position + 2] for each in needed
        ]
        history = data.draw(
            st.lists(st.sampled_from(["tick", "tick", "finish", "crash", "restart", "all", *near]))
        )
        with open_instance(tmp_path / uuid4().hex) as instance:
            player, model = begin(airflow_v2, instance, case, near[0])
            finish(player, model, [*history, "all"], near)


UP = "warehouse/up"
UP_KEY = build_asset_key("warehouse", "up")
LATER = {"cron": "0 0 * * *", "start": "2020-01-01"}


def start(
    airflow: Airflow, instance: dg.DagsterInstance, dag: Declared, **upstreams: Declared | None
) -> EventDaemon:
    """Return a daemon that has ticked once.

    Args:
        upstreams: The partitions of DAGs of warehouse; `up` is daily, unless they say otherwise.
    """
    airflow.database.add_dag(DAG, polls=0)
    known = {name: {"partitions": each} for name, each in {"up": DAILY, **upstreams}.items()}
    daemon = EventDaemon(airflow.client, instance, {DAG: dag}, {"warehouse": known})
    assert daemon.tick() == []
    return daemon


def read_days(airflow: Airflow) -> list[str]:
    return [f"{run.logical_date:%F}" for run in airflow.database.runs if run.logical_date]


PARTITIONS: Declared = {"partitions": DAILY}
PARTITIONED: Declared = {"depends_on": [UP], "partitions": DAILY}


def test_a_partition_is_run_with_its_date_and_again_after_another_update(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = start(airflow, instance, PARTITIONED)
    for _ in range(2):
        report(instance, UP, partition="2026-03-05")
        assert daemon.tick() == [f"{UP} success "]
        assert daemon.tick() == []
    (run,) = airflow.database.runs  # of one date there is one run
    assert read_days(airflow) == ["2026-03-05"]
    assert [task.try_number for task in run.tasks] == [2, 2]
    assert instance.get_materialized_partitions(KEY) == {"2026-03-05"}


@pytest.mark.parametrize("position", [0, 1, 2])
def test_an_update_of_the_package_runs_nothing_of_the_past(
    airflow_v2: Airflow, instance: dg.DagsterInstance, position: int
) -> None:
    """The sensor was there, and may have been switched off. Conditions decided on partitions."""
    for day in ("2026-03-05", "2026-03-06"):
        report(instance, UP, partition=day)
    airflow_v2.database.add_dag(DAG, polls=0)
    known = {"warehouse": {"up": {"partitions": DAILY}}}
    daemon = EventDaemon(airflow_v2.client, instance, {DAG: PARTITIONED}, known)
    values = {"version": 1, "position": position, "seen": [], "dags": {}}
    daemon.cursor = json.dumps(values)
    assert daemon.tick() == daemon.tick() == []
    assert list_counted(instance) == [f"{UP} (success)"]
    report(instance, UP, partition="2026-03-07")
    assert len(daemon.tick()) == 1
    assert read_days(airflow_v2) == ["2026-03-07"]


def test_after_three_days_away_each_day_is_run_one_at_a_time_in_order(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = start(airflow_v2, instance, PARTITIONED)
    for day in ("2026-03-05", "2026-03-06", "2026-03-07"):
        report(instance, UP, partition=day)
    for _ in range(3):
        assert len(daemon.tick()) == 1
    assert daemon.tick() == []
    assert read_days(airflow_v2) == ["2026-03-05", "2026-03-06", "2026-03-07"]


def test_what_waits_is_told_and_dropped_on_request(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = start(airflow_v2, instance, {**PARTITIONED, "partitions": LATER}, up=HOURLY)
    report(instance, UP, partition="2026-03-05-07:00")
    assert daemon.tick() == []
    assert f"{DAG}: 2026-03-05 has 1 of 24 partitions of {UP}" in daemon.skip_reason
    instance.report_runless_asset_event(build_drop_observation("metrics", DAG))
    assert daemon.tick() == []
    assert "2026-03-05" not in daemon.skip_reason


def test_a_partition_that_has_not_begun_waits_until_it_has(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    tomorrow = f"{datetime.now(timezone.utc) + timedelta(days=1):%F}"
    daemon = start(airflow_v2, instance, PARTITIONED)
    report(instance, UP, partition=tomorrow)
    assert daemon.tick() == []
    assert f"{tomorrow} has not begun" in daemon.skip_reason


def test_the_window_that_goes_on_is_run(airflow_v2: Airflow, instance: dg.DagsterInstance) -> None:
    """As after a run of Airflow 3, whose date is the moment at which it fires."""
    today = f"{datetime.now(timezone.utc):%F}"
    daemon = start(airflow_v2, instance, PARTITIONED)
    report(instance, UP, partition=today)
    assert len(daemon.tick()) == 1
    assert instance.get_materialized_partitions(KEY) == {today}


@pytest.mark.parametrize("partition", ["2026-03-05", None, "no date"])
@pytest.mark.parametrize("runs", ["latest", "each"])
def test_a_dag_without_partitions_is_run_by_every_update_of_one_with_them(
    airflow_v2: Airflow, instance: dg.DagsterInstance, partition: str | None, runs: str
) -> None:
    daemon = start(airflow_v2, instance, {"depends_on": [UP], "trigger": {"runs": runs}})
    for run_id in ("one", "two"):
        report(instance, UP, run_id=run_id, partition=partition)
    ticked = [len(daemon.tick()) for _ in range(3)]
    assert ticked == ([1, 0, 0] if runs == "latest" else [1, 1, 0])


@pytest.mark.parametrize("partition", [None, "no date", "2026-02-28"])
def test_an_update_of_no_partition_runs_no_partition(
    airflow_v2: Airflow, instance: dg.DagsterInstance, partition: str | None
) -> None:
    daemon = start(airflow_v2, instance, PARTITIONED)
    report(instance, UP, partition=partition)
    report(instance, UP, "failure", partition=partition)
    assert daemon.tick() == []


@pytest.mark.parametrize(("window", "days"), [(None, 1), ("last", 1), ("current", 0)])
def test_an_upstream_without_partitions_runs_the_last_window_or_the_current_one(
    airflow_v2: Airflow, instance: dg.DagsterInstance, window: str | None, days: int
) -> None:
    edge = {"dag": "warehouse/plain", "window": window}
    daemon = start(airflow_v2, instance, {**PARTITIONED, "depends_on": [edge]}, plain=None)
    expected = datetime.now(timezone.utc) - timedelta(days=days)
    report(instance, "warehouse/plain")
    assert len(daemon.tick()) == 1
    assert read_days(airflow_v2) == [f"{expected:%F}"]


def test_with_two_upstreams_a_partition_waits_until_both_have_it(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    dag = {**PARTITIONED, "depends_on": [UP, "warehouse/other"]}
    daemon = start(airflow_v2, instance, dag, other=DAILY)
    report(instance, UP, partition="2026-03-05")
    report(instance, "warehouse/other", partition="2026-03-06")
    assert daemon.tick() == []
    assert "2026-03-05 has 0 of 1 partitions of warehouse/other" in daemon.skip_reason
    report(instance, UP, partition="2026-03-06")
    assert len(daemon.tick()) == 1
    report(instance, "warehouse/other", partition="2026-03-06")
    assert len(daemon.tick()) == 1, "any of them"
    assert read_days(airflow_v2) == ["2026-03-06"]


def test_a_partition_that_came_while_it_did_not_count_is_lacking_no_longer(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """Two code servers take turns, as in a deployment; the old one knows no second upstream."""
    both = {**PARTITIONED, "depends_on": [UP, "warehouse/other"]}
    daemon = start(airflow_v2, instance, both, other=DAILY)
    report(instance, UP, partition="2026-03-05")
    assert daemon.tick() == []
    assert "2026-03-05 has 0 of 1 partitions of warehouse/other" in daemon.skip_reason
    new = daemon.sensor
    airflow_v2.database.dags[DAG].is_paused = True
    daemon.declare({DAG: PARTITIONED})
    report(instance, "warehouse/other", partition="2026-03-05")
    assert daemon.tick() == []
    airflow_v2.database.dags[DAG].is_paused = False
    daemon.declare({DAG: both})
    daemon.sensor = new
    assert len(daemon.tick()) == 1


def test_with_all_a_partition_runs_when_each_upstream_has_updated_it_since_the_last_run(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    other, day = "warehouse/other", "2026-03-05"
    dag = {**PARTITIONED, "depends_on": [UP, other], "trigger": {"when": "all"}}
    daemon = start(airflow_v2, instance, dag, other=DAILY)
    for upstream, state, begun in [
        (UP, "success", 0),
        (other, "success", 1),
        (other, "success", 0),
        (other, "failure", 0),
        (UP, "success", 0),
        (other, "success", 1),
    ]:
        report(instance, upstream, state, partition=day)
        assert len(daemon.tick()) == begun
        told = f"{day} waits for " in daemon.skip_reason
        assert told == (not begun and (upstream, state) != (other, "failure"))


@pytest.mark.parametrize(("reruns", "begun"), [("follow", 1), ("ignore", 0), ("rerun", 1)])
def test_a_cleared_run_of_a_partition_leads_to_what_reruns_says(
    airflow_v2: Airflow, instance: dg.DagsterInstance, reruns: str, begun: int
) -> None:
    trigger = {"runs": "each", "reruns": reruns}
    daemon = start(airflow_v2, instance, {**PARTITIONED, "trigger": trigger})
    for day in ("2026-03-05", "2026-03-06"):
        report(instance, UP, run_id=f"of {day}", partition=day)
    assert [len(daemon.tick()) for _ in range(3)] == [1, 1, 0]
    report(instance, UP, run_id="of 2026-03-05", partition="2026-03-05")
    assert len(daemon.tick()) == begun
    tries = [run.tasks[0].try_number for run in airflow_v2.database.runs]
    assert tries == [1 + begun, 1]


def test_the_conf_tells_of_the_partition(airflow_v2: Airflow, instance: dg.DagsterInstance) -> None:
    daemon = start(airflow_v2, instance, {**PARTITIONED, "trigger": {"pass_upstream": True}})
    report(instance, UP, run_id="one", partition="2026-03-05")
    assert len(daemon.tick()) == 1
    (run,) = airflow_v2.database.runs
    (upstream,) = run.conf["federation"]["upstream"]
    assert (upstream["run_id"], upstream["partition_key"]) == ("one", "2026-03-05")


def test_a_run_that_is_cleared_for_a_second_event_keeps_its_conf_with_a_warning(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """Airflow can't change the conf of a run."""
    daemon = start(airflow_v2, instance, {**PARTITIONED, "trigger": {"pass_upstream": True}})
    for run_id in ("one", "two"):
        report(instance, UP, run_id=run_id, partition="2026-03-05")
        assert len(daemon.tick()) == 1
    (run,) = airflow_v2.database.runs
    (upstream,) = run.conf["federation"]["upstream"]
    assert (upstream["run_id"], run.tasks[0].try_number) == ("one", 2)
    latest = instance.get_runs(limit=1)[0]
    warnings = [each.user_message for each in instance.all_logs(latest.run_id)]
    assert any("keeps the conf that it was created with" in each for each in warnings)


def test_the_partition_key_of_an_airflow_is_passed_on_in_the_format_of_the_other(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    own = {**DAILY, "key_format": "%Y%m%d"}
    hourly = {**HOURLY, "key_format": "%Y-%m-%dT%H:%M:%S"}
    daemon = start(airflow_v2, instance, {**PARTITIONED, "partitions": own}, up=hourly)
    airflow_v2.database.add_dag(DAG, polls=0, key_format="%Y%m%d")
    for hour in range(24):
        report(instance, UP, partition=f"2026-03-05T{hour:02}:00:00")
    assert len(daemon.tick()) == 1
    (run,) = airflow_v2.database.runs
    assert (run.partition_key, run.logical_date) == ("20260305", None)
    assert instance.get_materialized_partitions(KEY) == {"20260305"}


def test_a_backfill_goes_on_over_three_instances(
    start_airflow: StartAirflow, instance: dg.DagsterInstance
) -> None:
    middle, last = (start_airflow("v2", name) for name in ("middle", "last"))
    for airflow in (middle, last):
        airflow.database.add_dag(DAG, polls=0)
    below = {**PARTITIONED, "depends_on": [f"middle/{DAG}"]}
    daemons = [
        EventDaemon(middle.client, instance, {DAG: PARTITIONED}, {"warehouse": {"up": PARTITIONS}}),
        EventDaemon(last.client, instance, {DAG: below}, {"middle": {DAG: PARTITIONED}}),
    ]
    assert [daemon.tick() for daemon in daemons] == [[], []]
    days = ["2026-03-07", "2026-03-05", "2026-03-06"]
    for day in days:
        report(instance, UP, partition=day)
    for _ in range(len(days) + 1):
        for daemon in daemons:
            daemon.tick()
    assert read_days(middle) == read_days(last) == days


@pytest.fixture(params=["any", "default"])
def any_instance(
    request: pytest.FixtureRequest, instance: dg.DagsterInstance, tmp_path: Path
) -> Iterator[dg.DagsterInstance]:
    """An instance as other tests have it, and one whose SQLite has a file for each run, as by
    Dagster's default: the events of each run are numbered anew there."""
    if request.param == "any":
        yield instance
        return
    with dg.DagsterInstance.local_temp(str(tmp_path)) as default:
        yield default


@pytest.mark.parametrize("is_partitioned", [True, False])
@pytest.mark.parametrize("is_range", [False, True], ids=["one partition", "a backfill"])
def test_a_dagster_run_of_both_dags_leads_to_no_other_run_of_the_second(
    airflow_v2: Airflow, any_instance: dg.DagsterInstance, is_range: bool, is_partitioned: bool
) -> None:
    instance, plain = any_instance, {"depends_on": ["metrics/first"], "trigger": {"runs": "each"}}
    second = {**PARTITIONED, "depends_on": ["metrics/first"]} if is_partitioned else plain
    # Which of the two Dagster plans first depends on their names.
    dags = {"first": {"partitions": DAILY}, DAG: second}
    for dag_id in dags:
        airflow_v2.database.add_dag(dag_id, polls=0)
    daemon = EventDaemon(airflow_v2.client, instance, dags)
    assert daemon.tick() == []
    tags = of_range("2026-03-05", "2026-03-07") if is_range else of("2026-03-05")
    executed = materialize(airflow_v2.client, dags, instance, tags=tags)
    partitions = 3 if is_range else 1
    expected = ["first"] * partitions + [DAG] * (partitions if is_partitioned else 1)
    assert sorted(executed.materialized) == sorted(expected)
    assert [daemon.tick() for _ in range(3)] == [[], [], []]


def test_a_dagster_run_of_both_that_was_canceled_before_the_second_leaves_that_to_automation(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = start(airflow_v2, instance, PARTITIONED)
    tags = of("2026-03-05")
    run = instance.create_run_for_job(
        daemon.defs.resolve_implicit_global_asset_job_def(), tags=tags, asset_selection={KEY}
    )
    report_in(instance, run, dg.AssetMaterialization(UP_KEY, partition="2026-03-05"))
    for _ in range(2):
        assert daemon.tick() == []
        assert f"Dagster run {run.run_id} runs both" in daemon.skip_reason
    instance.report_run_canceled(run)
    assert len(daemon.tick()) == 1


@pytest.mark.parametrize("partition", [None, "2026-03-05"])
def test_what_waits_for_a_dagster_run_of_both_is_not_overtaken(
    airflow_v2: Airflow, instance: dg.DagsterInstance, partition: str | None
) -> None:
    dag = {"depends_on": [UP], "trigger": {"runs": "each"}}
    daemon = start(airflow_v2, instance, {**PARTITIONED, **dag} if partition else dag)
    run = instance.create_run_for_job(
        daemon.defs.resolve_implicit_global_asset_job_def(),
        tags=of(partition) if partition else None,
        asset_selection={KEY},
    )
    report_in(instance, run, dg.AssetMaterialization(UP_KEY, partition=partition))
    report(instance, UP, run_id="two", partition=partition)
    assert daemon.tick() == []
    assert "2 wait" in daemon.skip_reason
    assert f"Dagster run {run.run_id} runs both" in daemon.skip_reason
    instance.report_run_canceled(run)
    assert [len(daemon.tick()) for _ in range(3)] == [1, 1, 0]


def test_a_dagster_run_of_both_is_found_though_many_others_were_created_meanwhile(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = start(airflow_v2, instance, {"depends_on": [UP], "trigger": {"runs": "each"}})
    job = daemon.defs.resolve_implicit_global_asset_job_def()
    run = instance.create_run_for_job(job, asset_selection={KEY})

    def run_others() -> None:
        for _ in range(60):
            other = instance.create_run_for_job(job, asset_selection={KEY})
            report_in(instance, other, dg.AssetObservation(KEY))
            instance.report_run_canceled(other)

    run_others()
    report_in(instance, run, dg.AssetMaterialization(UP_KEY))
    run_others()
    report_in(instance, run, dg.AssetObservation(KEY))  # launched
    instance.report_run_canceled(run)
    run_others()
    assert daemon.tick() == []
    assert airflow_v2.database.runs == []


@pytest.mark.parametrize("is_after", [True, False])
def test_what_a_dagster_run_of_both_has_not_launched_after_the_upstream_is_run(
    airflow_v2: Airflow, any_instance: dg.DagsterInstance, is_after: bool
) -> None:
    """As in a backfill whose worker dies, or that ran the partitions in another order.

    A step that is repeated, as after an error of the database, says again what it has launched.
    """
    instance = any_instance
    daemon = start(airflow_v2, instance, PARTITIONED)
    days = ["2026-03-05", "2026-03-06", "2026-03-07"]
    run = instance.create_run_for_job(
        daemon.defs.resolve_implicit_global_asset_job_def(),
        tags=of_range(days[0], days[-1]),
        asset_selection={KEY},
    )
    launched = dg.AssetObservation(KEY, partition=days[0])
    if not is_after:
        report_in(instance, run, launched)
    for day in days:
        report_in(instance, run, dg.AssetMaterialization(UP_KEY, partition=day))
    report_in(instance, run, launched)
    instance.report_run_failed(run, "its worker died")
    while daemon.tick():
        pass
    assert read_days(airflow_v2) == (days[1:] if is_after else days)


def test_a_partition_waits_for_the_first_success_of_an_upstream_without_any(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    dag = {**PARTITIONED, "depends_on": [UP, "warehouse/plain"]}
    daemon = start(airflow_v2, instance, dag, plain=None)
    report(instance, UP, partition="2026-03-05")
    assert daemon.tick() == []
    assert "2026-03-05 waits for the first success of warehouse/plain" in daemon.skip_reason
    report(instance, "warehouse/plain")
    assert len(daemon.tick()) == 1
    assert read_days(airflow_v2) == ["2026-03-05"]


def test_what_waits_for_partitions_that_are_gone_is_dropped_and_told(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = start(airflow_v2, instance, PARTITIONED, up=HOURLY)
    report(instance, UP, partition="2026-03-05-07:00")
    assert daemon.tick() == []
    daemon.declare({DAG: {**PARTITIONED, "partitions": {**DAILY, "key_format": "%d.%m.%Y"}}})
    assert daemon.tick() == []
    assert f"changed or are not known: {UP} (success) for 2026-03-05" in daemon.skip_reason


@pytest.mark.parametrize(
    ("upstream", "declared"),
    [
        (DAILY, {}),
        (HOURLY, {}),
        (MONTHLY, {}),
        ({**DAILY, **BERLIN}, {}),
        ({**HOURLY, **BERLIN}, {}),
        ({**DAILY, "start": "2026-03-20"}, {}),
        (DAILY, {"window": "previous"}),
        (None, {}),
    ],
)
def test_dagster_executes_a_partition_whatever_the_upstreams_partitions_are(
    airflow_v2: Airflow, instance: dg.DagsterInstance, upstream: Declared | None, declared: Declared
) -> None:
    """Dagster asks which partitions of the upstream a run depends on, to tell its data version."""
    airflow_v2.database.add_dag(DAG, polls=0)
    edge = {"dag": UP, **declared}
    own = declare({DAG: {"depends_on": [edge], "partitions": DAILY}}, airflow_v2.client)
    other = own.model_copy(
        update={
            "name": "warehouse",
            "dags": declare({"up": {"partitions": upstream}}, airflow_v2.client).dags,
        }
    )
    instances = {"metrics": own, "warehouse": other}
    specs = build_specs(own, None, set(), instances)
    assets = build_execution(airflow_v2.client, own.downstreams, specs, timing=FAST)
    upstreams = build_specs(other, None, set(), instances).values()
    report(instance, UP, partition="2026-03-05" if upstream == DAILY else None)
    executed = dg.materialize(
        [assets, *upstreams],
        selection=dg.AssetSelection.assets(KEY),
        partition_key="2026-03-05",
        instance=instance,
    )
    assert executed.success
    assert read_days(airflow_v2) == ["2026-03-05"]
