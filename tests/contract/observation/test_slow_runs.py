"""Runs that take longer than `max_duration`."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import dagster as dg
import pytest

from federation_defs.dagster_io.event_log import build_upstream_event, fetch_events
from federation_defs.declaration import DagDeclaration, DeadlineDeclaration
from federation_defs.events import ReportEvent
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


class ObservedDag:
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
    def signaled(self) -> list[str]:
        found = fetch_signals(self.instance, KEY)
        assert {str(metadata["Signal"].value) for metadata in found} <= {"slow"}
        return [str(metadata["Run ID"].value) for metadata in found]

    @property
    def evaluations(self) -> list[tuple[str, bool]]:
        found = fetch_evaluations(self.instance, KEY, MAX_DURATION_CHECK_NAME)
        return [(str(each.metadata["Run ID"].value), bool(each.passed)) for each in found]


@pytest.fixture
def observed(airflow: Airflow, instance: dg.DagsterInstance) -> ObservedDag:
    return ObservedDag(airflow, instance)


@pytest.fixture
def observed_v2(airflow_v2: Airflow, instance: dg.DagsterInstance) -> ObservedDag:
    return ObservedDag(airflow_v2, instance)


def test_a_run_that_takes_too_long_is_signaled_once_while_it_runs(observed: ObservedDag) -> None:
    observed.start("quick", LIMIT - timedelta(minutes=1))
    slow = observed.start("slow", LIMIT + timedelta(minutes=1))
    for _ in range(3):
        observed.tick()
    assert observed.signaled == ["slow"]
    assert observed.evaluations == [("slow", False)]
    (metadata,) = fetch_signals(observed.instance, KEY)
    assert slow.start_date is not None
    assert metadata["Start"].value == slow.start_date.timestamp()
    assert metadata["Link to run"].value == observed.airflow.client.build_run_url(DAG, "slow")
    assert metadata["State"].value == "running"
    (evaluation,) = fetch_evaluations(observed.instance, KEY, MAX_DURATION_CHECK_NAME)
    assert re.fullmatch(
        r"Run slow has been running for 36\d\d s, longer than `max_duration` \(3600 s\)\.",
        evaluation.description or "",
    )


def test_dags_that_depend_on_slow_runs_get_all_that_is_known_of_them(
    observed_v2: ObservedDag,
) -> None:
    slow = observed_v2.start("slow", LIMIT * 2)
    slow.conf = {"day": "2026-01-02"}
    observed_v2.tick()
    read, _ = fetch_events(observed_v2.instance, after=0, limit=10)
    (event,) = [each for each in read if each.state in ("slow", "late")]
    record = build_upstream_event(event, f"metrics/{DAG}", "metrics/clean_up")
    assert (record.state, record.run_id, record.conf) == ("slow", "slow", slow.conf)
    assert (record.start, record.end) == (slow.start_date, None)
    assert record.link == observed_v2.airflow.client.build_run_url(DAG, "slow")


def test_the_next_run_that_ends_in_time_passes_the_check(observed: ObservedDag) -> None:
    slow = observed.start("slow", LIMIT * 2)
    observed.tick()
    observed.database.finish_run(slow)
    observed.tick()
    quick = observed.start("quick", timedelta(minutes=5))
    observed.tick()
    assert observed.evaluations == [("slow", False), ("slow", False)]
    observed.database.finish_run(quick)
    observed.tick()
    assert observed.evaluations[2:] == [("quick", True)]
    assert observed.signaled == ["slow"]


@pytest.mark.parametrize("how", ["restart", "lost cursor", "lost cursor and restart"])
def test_a_slow_run_is_not_signaled_again_after_a(observed_v2: ObservedDag, how: str) -> None:
    observed_v2.start("slow", LIMIT * 2)
    observed_v2.tick()
    if "cursor" in how:
        observed_v2.daemon.cursor = None
    if "restart" in how:
        observed_v2.daemon.restart()
    observed_v2.tick()
    assert observed_v2.signaled == ["slow"]
    assert observed_v2.evaluations == [("slow", False)]


@pytest.mark.parametrize("killed_after", [0, 1, 2])
def test_a_crash_while_it_is_signaled_neither_loses_nor_repeats_it(
    observed_v2: ObservedDag, killed_after: int
) -> None:
    observed_v2.start("slow", LIMIT * 2)
    observed_v2.clock.advance(61)
    observed_v2.daemon.tick(killed_after=killed_after)
    observed_v2.tick()
    assert observed_v2.signaled == ["slow"]


def test_two_processes_signal_it_once(observed_v2: ObservedDag) -> None:
    other = Daemon(
        observed_v2.airflow.client, [DAG], observed_v2.instance, timing=observed_v2.clock.timing
    )
    other.dags = observed_v2.daemon.dags
    other.restart()
    observed_v2.start("slow", LIMIT * 2)
    observed_v2.tick()
    other.tick()
    assert observed_v2.signaled == ["slow"]


def test_a_slow_run_that_is_cleared_and_runs_again_is_another_one(observed: ObservedDag) -> None:
    run = observed.start("mine", LIMIT * 2)
    observed.tick()
    observed.database.finish_run(run)
    observed.database.clear(run)
    observed.tick()
    assert observed.signaled == ["mine"]
    run.state, run.start_date = "running", observed.database.now() - LIMIT * 1.5
    observed.tick()
    assert observed.signaled == ["mine", "mine"]


def test_a_run_that_was_slow_between_two_ticks_is_signaled_when_it_has_ended(
    observed_v2: ObservedDag,
) -> None:
    for number, taken in enumerate([LIMIT * 2, LIMIT / 2]):
        observed_v2.database.finish_run(observed_v2.start(f"run_{number}", taken))
    observed_v2.tick()
    observed_v2.tick()
    assert observed_v2.signaled == ["run_0"]
    assert observed_v2.evaluations == [("run_1", True)]


def test_time_is_measured_by_the_clock_of_the_airflow(observed_v2: ObservedDag) -> None:
    observed_v2.database.skew = -timedelta(minutes=50)
    observed_v2.start("quick", LIMIT - timedelta(minutes=20))
    observed_v2.start("slow", LIMIT + timedelta(minutes=1))
    observed_v2.tick()
    assert observed_v2.signaled == ["slow"]


def test_with_an_airflow_whose_clock_is_ahead_no_run_is_signaled_too_early(
    observed_v2: ObservedDag,
) -> None:
    """Its answers may carry the clock of a proxy, which is ahead of that of the database."""
    observed_v2.database.skew = timedelta(minutes=30)
    observed_v2.start("quick", LIMIT - timedelta(minutes=1))
    observed_v2.tick()
    assert observed_v2.signaled == []


def test_slow_runs_of_other_dags_are_not_signaled(observed_v2: ObservedDag) -> None:
    observed_v2.database.add_dag("other")
    observed_v2.database.start_run("other").start_date = observed_v2.database.now() - LIMIT * 9
    observed_v2.tick()
    assert fetch_signals(observed_v2.instance, dg.AssetKey(["metrics", "dag", "other"])) == []


def test_a_slow_run_of_dagster_is_signaled_by_observation(observed_v2: ObservedDag) -> None:
    observed_v2.database.dags[DAG].polls = 0
    observed_v2.tick()
    materialize(observed_v2.airflow.client, [DAG], observed_v2.instance)
    (run,) = observed_v2.database.runs
    assert run.end_date is not None
    run.start_date = run.end_date - LIMIT * 2
    observed_v2.tick()
    assert observed_v2.signaled == [run.run_id]


def test_running_runs_are_listed_rarely_and_only_for_dags_with_a_limit(
    observed_v2: ObservedDag,
) -> None:
    server = observed_v2.airflow.server
    observed_v2.daemon.tick()
    before = len(server.requests)
    for _ in range(6):
        observed_v2.clock.advance(10)
        observed_v2.daemon.tick()
    assert len(server.requests) == before + 6 + 1
    observed_v2.daemon.dags = {DAG: DagDeclaration(max_duration="200s")}  # pyright: ignore[reportArgumentType]
    observed_v2.daemon.restart()
    observed_v2.daemon.tick()
    before = len(server.requests)
    for _ in range(6):
        observed_v2.clock.advance(10)
        observed_v2.daemon.tick()
    assert len(server.requests) == before + 6 + 6
    observed_v2.daemon.dags = {DAG: DagDeclaration()}
    observed_v2.daemon.restart()
    before = len(server.requests)
    observed_v2.tick()
    assert len(server.requests) == before + 1


def test_a_list_of_running_runs_that_fails_delays_no_report(observed_v2: ObservedDag) -> None:
    forbidden = answer(403, {"detail": "Forbidden"})
    is_list = lambda request: request.query.get("state") == "running"  # noqa: E731
    observed_v2.airflow.server.fail_next(is_list, forbidden)
    observed_v2.start("slow", LIMIT * 2)
    observed_v2.database.finish_run(observed_v2.start("mine", timedelta(minutes=1)))
    observed_v2.clock.advance(61)
    assert observed_v2.daemon.tick() == ["mine"]
    assert observed_v2.signaled == []
    observed_v2.tick()
    assert observed_v2.signaled == ["slow"]


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


def test_a_run_that_ends_in_time_hides_no_slow_run_that_is_still_running(
    observed_v2: ObservedDag,
) -> None:
    slow = observed_v2.start("slow", LIMIT * 2)
    observed_v2.tick()
    observed_v2.database.finish_run(observed_v2.start("quick", timedelta(minutes=1)))
    observed_v2.tick()
    assert observed_v2.evaluations == [("slow", False)]
    observed_v2.database.finish_run(slow)
    observed_v2.tick()
    observed_v2.database.finish_run(observed_v2.start("next", timedelta(minutes=1)))
    observed_v2.tick()
    assert observed_v2.evaluations == [("slow", False), ("slow", False), ("next", True)]


def test_after_a_lost_cursor_no_old_run_that_was_reported_is_signaled(
    observed_v2: ObservedDag,
) -> None:
    """It ended before there was a `max_duration`."""
    declared = observed_v2.daemon.dags
    observed_v2.daemon.dags = {DAG: DagDeclaration()}
    observed_v2.daemon.restart()
    observed_v2.tick()
    observed_v2.database.finish_run(observed_v2.start("old", LIMIT * 2))
    observed_v2.tick()
    observed_v2.daemon.dags = declared
    observed_v2.daemon.restart()
    observed_v2.daemon.cursor = None
    observed_v2.tick()
    observed_v2.tick()
    assert observed_v2.signaled == []


@pytest.mark.parametrize("is_stored", [True, False], ids=["", "with the cursor"])
def test_a_slow_run_that_ended_while_the_database_failed_is_signaled_by_the_next_tick(
    observed_v2: ObservedDag, *, is_stored: bool
) -> None:
    observed_v2.tick()
    run = observed_v2.start("slow", 2 * LIMIT)
    observed_v2.database.finish_run(run)
    instance, errors = observed_v2.instance, [OSError("the server closed the connection")]
    store = instance.report_runless_asset_event

    def fail_once(event: ReportEvent) -> None:
        if isinstance(event, dg.AssetObservation) and errors:
            raise errors.pop()
        store(event)

    vars(instance)["report_runless_asset_event"] = fail_once
    cursor = observed_v2.daemon.cursor
    observed_v2.tick()
    assert (observed_v2.signaled, errors) == ([], [])
    if not is_stored:
        observed_v2.daemon.cursor = cursor
    observed_v2.tick()
    assert observed_v2.signaled == ["slow"]
    observed_v2.tick()
    assert observed_v2.signaled == ["slow"]
