"""Periods of the past that lead to the same periods in the other Airflow, whoever ran them.

All that happens, if possible during the tests of other modules, does so in `act` and
`act_without_dagster`, and the tests look at what followed (`periods.py` has the declarations).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone, tzinfo
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun, TriggerOptions
from tests.conftest import ROOT
from tests.contract.worlds import trigger_surely
from tests.live.dagster_api import Materialization
from tests.live.federation import Federation, fetch_runs, utc_now
from tests.processes import LoggedProcess
from tests.waiting import wait_for

Interval = tuple[datetime, datetime]

BERLIN = ZoneInfo("Europe/Berlin")
DAY = timedelta(days=1)
# Each Airflow has its own way to run days of the past again, and Dagster has a third. Each day
# costs run workers: only one Airflow runs and clears several.
DAYS_OF_AIRFLOW_2 = [date(2025, 5, 10)]
DAYS_OF_AIRFLOW_3 = [date(2025, 6, 10), date(2025, 6, 11)]
DAYS_OF_DAGSTER = [date(2025, 7, 10), date(2025, 7, 11)]
# Of runs that Airflow 2's scheduler takes when they are cleared: those of its backfills it leaves.
DAYS_OF_TRIGGERS = [date(2025, 9, 10)]
DAYS_AWAY = [date(2025, 8, 10), date(2025, 8, 11)]
# With the number of its hours, and one of them whose run is the last one to end.
SHORT_DAY, LONG_DAY = (date(2025, 3, 30), 23, 2), (date(2025, 10, 26), 25, 3)


@dataclass(frozen=True)
class Past:
    """What came of the runs of the past.

    Attributes:
        since: From before the first of them.
        before_last: The downstream runs of the short day and the long one before the run of their
            last hour ended.
    """

    federation: Federation
    since: datetime
    before_last: list[DagRun]

    def list_runs(self, name: str, dag_id: str, days: Collection[date]) -> list[DagRun]:
        """Return the runs of a DAG that are reported for some days, in the order of the days.

        Check that each day has one run, and that each end of a run is reported once.
        """
        keys = {str(day) for day in days}
        events = [
            event for event in self._fetch_materializations(name, dag_id) if event.partition in keys
        ]
        assert len({event.metadata["End"] for event in events}) == len(events)
        by_day = {event.partition: event.run_id for event in events}
        assert len(set(by_day.values())) == len(keys)
        assert {(event.partition, event.run_id) for event in events} == set(by_day.items())
        client = self.federation.clients[name]
        return [fetch_run(client, dag_id, by_day[str(day)]) for day in sorted(days)]

    def count_reports(self, name: str, dag_id: str) -> Counter[str | None]:
        """Return how often each partition was reported."""
        return Counter(event.partition for event in self._fetch_materializations(name, dag_id))

    def wait_for_reports(
        self, name: str, dag_id: str, days: Collection[date], count: int = 1
    ) -> None:
        """Return when each of these days was reported so often."""
        wait_for(
            lambda: all(self.count_reports(name, dag_id)[str(day)] >= count for day in days),
            f"{dag_id} is reported for {days}",
            timeout_s=300,
        )

    def _fetch_materializations(self, name: str, dag_id: str) -> list[Materialization]:
        return self.federation.fetch_materializations(name, dag_id, self.since)


def fetch_run(client: AirflowClient, dag_id: str, run_id: str) -> DagRun:
    run = client.fetch_run(dag_id, run_id)
    assert run
    return run


def begin_of(day: date, zone: tzinfo = timezone.utc) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(timezone.utc)


def build_interval(day: date, zone: tzinfo = timezone.utc) -> Interval:
    return begin_of(day, zone), begin_of(day + DAY, zone)


def build_hours(day: date, count: int) -> list[Interval]:
    begin, end = build_interval(day, BERLIN)
    assert end - begin == timedelta(hours=count)
    hours = [begin + timedelta(hours=number) for number in range(count + 1)]
    return list(pairwise(hours))


def run_intervals(client: AirflowClient, dag_id: str, intervals: Sequence[Interval]) -> None:
    """Run a DAG of an Airflow 2 for some intervals, and return when all runs have succeeded."""
    since, run_ids = utc_now(), [f"test__{uuid4()}" for _ in intervals]

    def have_succeeded() -> bool:
        runs = fetch_runs(client, since, {dag_id})
        return set(run_ids) <= {run.run_id for run in runs if run.is_success}

    for run_id, interval in zip(run_ids, intervals, strict=True):
        options = TriggerOptions(interval[0], interval)
        trigger_surely(client, dag_id, run_id, options=options)
    wait_for(have_succeeded, f"{len(run_ids)} runs of {dag_id} have succeeded")


def start_backfill_in_airflow_2(demo_home: str, folder: Path) -> LoggedProcess:
    """Start the command, which runs the tasks itself, beside the scheduler."""
    home = Path(demo_home) / "warehouse"
    programs = ROOT / "airflow_instances" / "warehouse" / ".venv" / "bin"
    env = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}?timeout=30",
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "airflow_instances" / "lake"),
    }
    days = ["--start-date", str(min(DAYS_OF_AIRFLOW_2)), "--end-date", str(max(DAYS_OF_AIRFLOW_2))]
    subdir = ["--subdir", home / "dags" / "extra" / "periods.py"]
    command = [programs / "airflow", "dags", "backfill", "daily_load", *days, *subdir]
    return LoggedProcess(command, folder / "backfill.log", folder, env)


def backfill_in_airflow_3(client: AirflowClient) -> None:
    """Run the days of the past, each at the end of its day."""
    first, last = min(DAYS_OF_AIRFLOW_3), max(DAYS_OF_AIRFLOW_3)
    dates = {"from_date": str(begin_of(first + DAY)), "to_date": str(begin_of(last + DAY))}
    body = {"dag_id": "daily_measure", **dates}

    def create() -> bool:
        response = client.session.request("POST", "/api/v2/backfills", json=body)
        # 503: SQLite refuses to write while the scheduler does, and nothing was created (3.3).
        assert response.status_code in (200, 503), response.text
        return response.ok

    wait_for(create, "the backfill is created")


def clear(client: AirflowClient, dag_id: str, first: datetime, last: datetime) -> None:
    """Clear all tasks of a range of logical dates."""
    response = client.session.request(
        "POST",
        f"/api/{client.api_version.api}/dags/{dag_id}/clearTaskInstances",
        json={
            "start_date": first.isoformat(),
            "end_date": last.isoformat(),
            "dry_run": False,
            "only_failed": False,
            "reset_dag_runs": True,
        },
    )
    assert response.ok, response.text


def act(federation: Federation, folder: Path) -> Past:
    warehouse, metrics = federation.clients["warehouse"], federation.clients["metrics"]
    federation.wait_for_ticks(1)  # what is before a sensor's first tick counts for nothing
    since = utc_now()
    past = Past(federation, since, [])
    in_airflow_2 = start_backfill_in_airflow_2(federation.dagster.env["DEMO_HOME"], folder)
    backfill_in_airflow_3(metrics)
    federation.dagster.backfill("metrics", "daily_report", list(map(str, DAYS_OF_DAGSTER)))
    run_intervals(warehouse, "daily_load", [build_interval(day) for day in DAYS_OF_TRIGGERS])
    hours = {day: build_hours(day, count) for day, count, _ in (SHORT_DAY, LONG_DAY)}
    last_hours = [hours[day].pop(number) for day, _, number in (SHORT_DAY, LONG_DAY)]
    run_intervals(warehouse, "hourly_clicks", [each for day in hours.values() for each in day])

    past.wait_for_reports("warehouse", "daily_archive", DAYS_OF_AIRFLOW_3)
    first, last = min(DAYS_OF_AIRFLOW_3), max(DAYS_OF_AIRFLOW_3)
    clear(metrics, "daily_measure", begin_of(first + DAY), begin_of(last + DAY))
    past.wait_for_reports("warehouse", "daily_export", DAYS_OF_TRIGGERS)
    first, last = min(DAYS_OF_TRIGGERS), max(DAYS_OF_TRIGGERS)
    clear(warehouse, "daily_load", begin_of(first), begin_of(last))
    assert in_airflow_2.wait(300) == 0, in_airflow_2.read_log()
    past.wait_for_reports("warehouse", "daily_export", DAYS_OF_DAGSTER)
    past.wait_for_reports("warehouse", "daily_export", DAYS_OF_AIRFLOW_2)
    wait_for(
        lambda: past.count_reports("warehouse", "hourly_clicks").total() == 46,
        "all hours but the last ones are reported",
    )
    federation.wait_for_ticks(1)
    past.before_last.extend(fetch_runs(metrics, since, {"daily_clicks"}))
    run_intervals(warehouse, "hourly_clicks", last_hours)
    past.wait_for_reports("metrics", "daily_clicks", [SHORT_DAY[0], LONG_DAY[0]])
    past.wait_for_reports("warehouse", "daily_archive", DAYS_OF_AIRFLOW_3, 2)
    past.wait_for_reports("warehouse", "daily_export", DAYS_OF_TRIGGERS, 2)
    return past


def act_without_dagster(federation: Federation) -> None:
    days = [build_interval(day) for day in DAYS_AWAY]
    run_intervals(federation.clients["warehouse"], "daily_load", days)


@pytest.fixture(scope="module")
def past(
    federation: Federation, actions: Mapping[str, Future[Any]], request: pytest.FixtureRequest
) -> Past:
    past: Past = actions[__name__].result()
    request.getfixturevalue("outage")
    past.wait_for_reports("warehouse", "daily_export", DAYS_AWAY)
    federation.wait_for_ticks()
    federation.wait_until_idle("warehouse", "daily_archive", "daily_export")
    federation.wait_until_idle("metrics", "daily_report", "daily_clicks")
    return past


def assert_have_dates(
    runs: Sequence[DagRun],
    days: Sequence[date],
    zone: tzinfo = timezone.utc,
    *,
    at_end: bool = False,
) -> None:
    """Check that each run is of its day."""
    for run, day in zip(runs, days, strict=True):
        begin, end = build_interval(day, zone)
        dates = run.logical_date, run.data_interval_start, run.data_interval_end
        assert dates == (end if at_end else begin, begin, end)


def test_a_backfill_in_airflow_2_leads_to_the_same_days_in_airflow_3_and_back(past: Past) -> None:
    runs = past.list_runs("metrics", "daily_report", DAYS_OF_AIRFLOW_2)
    assert_have_dates(runs, DAYS_OF_AIRFLOW_2, at_end=True)
    runs = past.list_runs("warehouse", "daily_export", DAYS_OF_AIRFLOW_2)
    assert_have_dates(runs, DAYS_OF_AIRFLOW_2)


def test_a_backfill_in_airflow_3_leads_to_the_same_days_in_airflow_2(past: Past) -> None:
    runs = past.list_runs("warehouse", "daily_archive", DAYS_OF_AIRFLOW_3)
    assert_have_dates(runs, DAYS_OF_AIRFLOW_3)


def test_a_backfill_in_dagster_leads_to_the_same_days_downstream(past: Past) -> None:
    runs = past.list_runs("metrics", "daily_report", DAYS_OF_DAGSTER)
    assert_have_dates(runs, DAYS_OF_DAGSTER, at_end=True)
    runs = past.list_runs("warehouse", "daily_export", DAYS_OF_DAGSTER)
    assert_have_dates(runs, DAYS_OF_DAGSTER)


def test_days_that_are_cleared_in_airflow_2_are_cleared_downstream_once(past: Past) -> None:
    chain = [
        ("warehouse", "daily_load"),
        ("metrics", "daily_report"),
        ("warehouse", "daily_export"),
    ]
    for name, dag_id in chain:
        past.list_runs(name, dag_id, DAYS_OF_TRIGGERS)
        reports = past.count_reports(name, dag_id)
        assert {reports[str(day)] for day in DAYS_OF_TRIGGERS} == {2}


def test_days_that_are_cleared_in_airflow_3_are_cleared_downstream_once(past: Past) -> None:
    twice = Counter({str(day): 2 for day in DAYS_OF_AIRFLOW_3})
    assert past.count_reports("metrics", "daily_measure") == twice
    assert past.count_reports("warehouse", "daily_archive") == twice


def test_days_of_23_and_25_hours_run_once_when_the_last_of_their_hours_has_ended(
    past: Past,
) -> None:
    assert past.before_last == []
    days = [SHORT_DAY[0], LONG_DAY[0]]
    runs = past.list_runs("metrics", "daily_clicks", days)
    assert_have_dates(runs, days, BERLIN)
    assert past.count_reports("metrics", "daily_clicks") == Counter(map(str, days))
    assert past.count_reports("warehouse", "hourly_clicks").total() == 48


def test_days_that_end_while_dagster_is_away_run_once_each(past: Past) -> None:
    assert_have_dates(past.list_runs("metrics", "daily_report", DAYS_AWAY), DAYS_AWAY, at_end=True)
    assert_have_dates(past.list_runs("warehouse", "daily_export", DAYS_AWAY), DAYS_AWAY)


@pytest.mark.parametrize(
    ("name", "dag_id"),
    [("metrics", "daily_report"), ("warehouse", "daily_export")],
)
def test_no_other_day_runs(past: Past, name: str, dag_id: str) -> None:
    days = [*DAYS_OF_AIRFLOW_2, *DAYS_OF_DAGSTER, *DAYS_OF_TRIGGERS, *DAYS_AWAY]
    assert past.count_reports(name, dag_id) == Counter(map(str, [*days, *DAYS_OF_TRIGGERS]))
    runs = fetch_runs(past.federation.clients[name], past.since, {dag_id})
    assert len(runs) == len(days)
