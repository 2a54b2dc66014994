"""Runs that take longer than `max_duration`."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import dagster as dg
import pytest

from federation_defs.dagster_io.event_log import build_upstream_event, fetch_events
from federation_defs.declaration import DagDeclaration, DeadlineDeclaration
from federation_defs.naming import MAX_DURATION_CHECK_NAME
from tests.contract.conftest import Airflow
from tests.contract.execution.executing import materialize
from tests.contract.fakes.database import Database, RunRow
from tests.contract.fakes.faults import answer, lag
from tests.contract.observation.daemon import (
    DAG,
    KEY,
    Daemon,
    FakeClock,
    fetch_evaluations,
    fetch_signals,
)

LIMIT = timedelta(hours=1)
LIST = "/dags/~/dagRuns"


class Watched:
    """A fake Airflow with a DAG whose runs may take an hour, and the daemon that observes it."""

    def __init__(self, airflow: Airflow, instance: dg.DagsterInstance) -> None:
        airflow.database.add_dag(DAG)
        self.airflow, self.instance, self.clock = airflow, instance, FakeClock()
        self.daemon = Daemon(airflow.client, [DAG], instance, timing=self.clock.timing)
        self.daemon.dags = {DAG: DagDeclaration(max_duration=LIMIT.total_seconds())}
        self.daemon.restart()

    @property
    def database(self) -> Database:
        return self.airflow.database

    def start(self, run_id: str, ago: timedelta) -> RunRow:
        run = self.database.start_run(DAG, run_id)
        run.start_date = self.database.now() - ago
        return run

    def tick(self) -> None:
        """Tick after the interval in which running runs are listed."""
        self.clock.advance(61)
        self.daemon.tick()

    @property
    def told(self) -> list[str]:
        found = fetch_signals(self.instance, KEY)
        assert {str(metadata["Signal"].value) for metadata in found} <= {"slow"}
        return [str(metadata["Run ID"].value) for metadata in found]

    @property
    def checked(self) -> list[tuple[str, bool]]:
        found = fetch_evaluations(self.instance, KEY, MAX_DURATION_CHECK_NAME)
        return [(str(each.metadata["Run ID"].value), bool(each.passed)) for each in found]


@pytest.fixture
def watched(airflow: Airflow, instance: dg.DagsterInstance) -> Watched:
    return Watched(airflow, instance)


@pytest.fixture
def watched_v2(airflow_v2: Airflow, instance: dg.DagsterInstance) -> Watched:
    return Watched(airflow_v2, instance)


def test_a_run_that_goes_on_for_too_long_is_told_once_while_it_does(watched: Watched) -> None:
    watched.start("quick", LIMIT - timedelta(minutes=1))
    slow = watched.start("slow", LIMIT + timedelta(minutes=1))
    for _ in range(3):
        watched.tick()
    assert watched.told == ["slow"]
    assert watched.checked == [("slow", False)]
    (metadata,) = fetch_signals(watched.instance, KEY)
    assert slow.start_date is not None
    assert metadata["Start"].value == slow.start_date.timestamp()
    assert metadata["Link to run"].value == watched.airflow.client.build_run_url(DAG, "slow")
    assert metadata["State"].value == "running"
    (evaluation,) = fetch_evaluations(watched.instance, KEY, MAX_DURATION_CHECK_NAME)
    assert re.fullmatch(
        r"Run slow has been running for 36\d\d s, longer than `max_duration` \(3600 s\)\.",
        evaluation.description or "",
    )


def test_dags_that_depend_on_slow_runs_are_told_all_about_them(watched_v2: Watched) -> None:
    slow = watched_v2.start("slow", LIMIT * 2)
    slow.conf = {"day": "2026-01-02"}
    watched_v2.tick()
    read, _ = fetch_events(watched_v2.instance, after=0, limit=10)
    (event,) = [each for each in read if each.state in ("slow", "late")]
    record = build_upstream_event(event, f"metrics/{DAG}", "metrics/clean_up")
    assert (record.state, record.run_id, record.conf) == ("slow", "slow", slow.conf)
    assert (record.start, record.end) == (slow.start_date, None)
    assert record.link == watched_v2.airflow.client.build_run_url(DAG, "slow")


def test_the_next_run_that_ends_in_time_passes_the_check(watched: Watched) -> None:
    slow = watched.start("slow", LIMIT * 2)
    watched.tick()
    watched.database.finish_run(slow)
    watched.tick()
    quick = watched.start("quick", timedelta(minutes=5))
    watched.tick()
    assert watched.checked == [("slow", False), ("slow", False)]
    watched.database.finish_run(quick)
    watched.tick()
    assert watched.checked[2:] == [("quick", True)]
    assert watched.told == ["slow"]


@pytest.mark.parametrize("how", ["restart", "lost cursor", "lost cursor and restart"])
def test_a_slow_run_is_not_told_again_after_a(watched_v2: Watched, how: str) -> None:
    watched_v2.start("slow", LIMIT * 2)
    watched_v2.tick()
    if "cursor" in how:
        watched_v2.daemon.cursor = None
    if "restart" in how:
        watched_v2.daemon.restart()
    watched_v2.tick()
    assert watched_v2.told == ["slow"]
    assert watched_v2.checked == [("slow", False)]


@pytest.mark.parametrize("killed_after", [0, 1, 2])
def test_a_crash_while_it_is_told_neither_loses_nor_repeats_it(
    watched_v2: Watched, killed_after: int
) -> None:
    watched_v2.start("slow", LIMIT * 2)
    watched_v2.clock.advance(61)
    watched_v2.daemon.tick(killed_after=killed_after)
    watched_v2.tick()
    assert watched_v2.told == ["slow"]


def test_two_processes_tell_it_once(watched_v2: Watched) -> None:
    other = Daemon(
        watched_v2.airflow.client, [DAG], watched_v2.instance, timing=watched_v2.clock.timing
    )
    other.dags = watched_v2.daemon.dags
    other.restart()
    watched_v2.start("slow", LIMIT * 2)
    watched_v2.tick()
    other.tick()
    assert watched_v2.told == ["slow"]


def test_a_slow_run_that_is_cleared_and_runs_again_is_another_one(watched: Watched) -> None:
    run = watched.start("mine", LIMIT * 2)
    watched.tick()
    watched.database.finish_run(run)
    watched.database.clear(run)
    watched.tick()
    assert watched.told == ["mine"]
    run.state, run.start_date = "running", watched.database.now() - LIMIT * 1.5
    watched.tick()
    assert watched.told == ["mine", "mine"]


def test_a_run_that_was_slow_while_nobody_looked_is_told_with_its_end(watched_v2: Watched) -> None:
    for number, taken in enumerate([LIMIT * 2, LIMIT / 2]):
        watched_v2.database.finish_run(watched_v2.start(f"run_{number}", taken))
    watched_v2.tick()
    watched_v2.tick()
    assert watched_v2.told == ["run_0"]
    assert watched_v2.checked == [("run_1", True)]


def test_time_is_measured_by_the_clock_of_the_airflow(watched_v2: Watched) -> None:
    watched_v2.database.skew = -timedelta(minutes=50)
    watched_v2.start("quick", LIMIT - timedelta(minutes=20))
    watched_v2.start("slow", LIMIT + timedelta(minutes=1))
    watched_v2.tick()
    assert watched_v2.told == ["slow"]


def test_an_airflow_whose_clock_is_ahead_is_told_no_run_too_early(watched_v2: Watched) -> None:
    """Its answers may carry the clock of a proxy, which is ahead of that of the database."""
    watched_v2.database.skew = timedelta(minutes=30)
    watched_v2.start("quick", LIMIT - timedelta(minutes=1))
    watched_v2.tick()
    assert watched_v2.told == []


def test_slow_runs_of_other_dags_are_not_told(watched_v2: Watched) -> None:
    watched_v2.database.add_dag("other")
    watched_v2.database.start_run("other").start_date = watched_v2.database.now() - LIMIT * 9
    watched_v2.tick()
    assert fetch_signals(watched_v2.instance, dg.AssetKey(["metrics", "dag", "other"])) == []


def test_a_slow_run_of_dagster_is_told_by_observation(watched_v2: Watched) -> None:
    watched_v2.database.dags[DAG].polls = 0
    watched_v2.tick()
    materialize(watched_v2.airflow.client, [DAG], watched_v2.instance)
    (run,) = watched_v2.database.runs
    assert run.end_date is not None
    run.start_date = run.end_date - LIMIT * 2
    watched_v2.tick()
    assert watched_v2.told == [run.run_id]


def test_running_runs_are_listed_rarely_and_only_for_dags_with_a_limit(watched_v2: Watched) -> None:
    server = watched_v2.airflow.server
    watched_v2.daemon.tick()
    before = len(server.requests)
    for _ in range(6):
        watched_v2.clock.advance(10)
        watched_v2.daemon.tick()
    assert len(server.requests) == before + 6 + 1
    watched_v2.daemon.dags = {DAG: DagDeclaration(max_duration="200s")}  # pyright: ignore[reportArgumentType]
    watched_v2.daemon.restart()
    watched_v2.daemon.tick()
    before = len(server.requests)
    for _ in range(6):
        watched_v2.clock.advance(10)
        watched_v2.daemon.tick()
    assert len(server.requests) == before + 6 + 6
    watched_v2.daemon.dags = {DAG: DagDeclaration()}
    watched_v2.daemon.restart()
    before = len(server.requests)
    watched_v2.tick()
    assert len(server.requests) == before + 1


def test_a_list_of_running_runs_that_fails_holds_up_no_report(watched_v2: Watched) -> None:
    forbidden = answer(403, {"detail": "Forbidden"})
    is_list = lambda request: request.query.get("state") == "running"  # noqa: E731
    watched_v2.airflow.server.fail_next(is_list, forbidden)
    watched_v2.start("slow", LIMIT * 2)
    watched_v2.database.finish_run(watched_v2.start("mine", timedelta(minutes=1)))
    watched_v2.clock.advance(61)
    assert watched_v2.daemon.tick() == ["mine"]
    assert watched_v2.told == []
    watched_v2.tick()
    assert watched_v2.told == ["slow"]


def test_a_list_of_running_runs_that_is_never_answered_delays_neither_deadlines_nor_every_tick(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    for dag_id in (DAG, "quick"):
        airflow_v2.database.add_dag(dag_id)
    clock = FakeClock()
    timing = replace(clock.timing, check_s=0.2, late_row_s=0.0, utc_now=airflow_v2.database.now)
    begin = datetime.now(timezone.utc).replace(minute=0, second=0) - timedelta(hours=1)
    airflow_v2.database.stopped_at = begin
    daemon = Daemon(airflow_v2.client, [DAG, "quick"], instance, timing=timing)
    every_minute = DeadlineDeclaration(cron="* * * * *", within=60)
    daemon.dags = {
        DAG: DagDeclaration(deadline=every_minute),
        "quick": DagDeclaration(max_duration=60),
    }
    daemon.restart()
    server = airflow_v2.server
    server.fail_next(lambda request: request.query.get("state") == "running", lag(60), times=1000)
    requests = list[int]()
    for number in range(14):
        clock.advance(5)
        airflow_v2.database.stopped_at = begin + timedelta(seconds=5 * number)
        before = len(server.requests)
        daemon.tick()
        requests.append(len(server.requests) - before)
    assert fetch_signals(instance, KEY) != []
    assert sum(requests[1:]) - len(requests[1:]) == 3  # after the sign-in


def test_a_run_that_ends_in_time_hides_no_slow_one_that_goes_on(watched_v2: Watched) -> None:
    slow = watched_v2.start("slow", LIMIT * 2)
    watched_v2.tick()
    watched_v2.database.finish_run(watched_v2.start("quick", timedelta(minutes=1)))
    watched_v2.tick()
    assert watched_v2.checked == [("slow", False)]
    watched_v2.database.finish_run(slow)
    watched_v2.tick()
    watched_v2.database.finish_run(watched_v2.start("next", timedelta(minutes=1)))
    watched_v2.tick()
    assert watched_v2.checked == [("slow", False), ("slow", False), ("next", True)]


def test_a_lost_cursor_tells_no_old_run_that_was_reported(watched_v2: Watched) -> None:
    """It ended before there was a `max_duration`."""
    declared = watched_v2.daemon.dags
    watched_v2.daemon.dags = {DAG: DagDeclaration()}
    watched_v2.daemon.restart()
    watched_v2.tick()
    watched_v2.database.finish_run(watched_v2.start("old", LIMIT * 2))
    watched_v2.tick()
    watched_v2.daemon.dags = declared
    watched_v2.daemon.restart()
    watched_v2.daemon.cursor = None
    watched_v2.tick()
    watched_v2.tick()
    assert watched_v2.told == []
