"""DAGs of which no run succeeds by a `deadline`."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import dagster as dg
import pytest

from federation_defs.dagster_io.event_log import build_upstream_event, fetch_events
from federation_defs.declaration import DagDeclaration, DeadlineDeclaration, SuccessDeclaration
from federation_defs.naming import DEADLINE_CHECK_NAME
from tests.contract.conftest import Airflow
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.database import RunRow
from tests.contract.fakes.faults import answer, hang_up
from tests.contract.observation.daemon import (
    DAG,
    KEY,
    Daemon,
    FakeClock,
    fetch_evaluations,
    fetch_signals,
    recording_statements,
)

# In the past, as Dagster stores events with the time of its own clock.
SIX = datetime.now(timezone.utc).replace(hour=6, minute=0, second=0, microsecond=0) - timedelta(30)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
DEADLINE = DeadlineDeclaration(cron="0 6 * * *", within=3 * 3600)


class ObservedDag:
    """A fake Airflow with a DAG whose data is due at six, and the daemon that observes it. The
    clocks of both are set."""

    def __init__(self, airflow: Airflow, instance: dg.DagsterInstance) -> None:
        airflow.database.add_dag(DAG)
        self.database, self.instance = airflow.database, instance
        self.set_clocks(SIX - 6 * HOUR)
        timing = replace(FakeClock().timing, utc_now=self.database.now)
        self.daemon = Daemon(airflow.client, [DAG], instance, timing=timing)
        self.declare(DEADLINE)

    def declare(self, deadline: DeadlineDeclaration | None) -> None:
        self.daemon.dags = {DAG: DagDeclaration(deadline=deadline)}
        self.daemon.restart()

    def set_clocks(self, now: datetime) -> None:
        self.database.stopped_at = now

    def tick(self, now: datetime) -> None:
        """Tick until all that is known by then is reported."""
        self.set_clocks(now)
        self.daemon.tick()
        self.daemon.tick()

    def end(self, run_id: str, when: datetime, state: str = "success") -> RunRow:
        """Add a run that ends now, and whose row appears at once."""
        self.set_clocks(when)
        return self.database.finish_run(self.database.start_run(DAG, run_id), state)

    @property
    def late(self) -> list[datetime]:
        """The deadlines that were signaled as missed."""
        return find_late(self.instance)

    @property
    def evaluations(self) -> list[bool]:
        found = fetch_evaluations(self.instance, KEY, DEADLINE_CHECK_NAME)
        return [bool(each.passed) for each in found]

    @property
    def last_description(self) -> str:
        return fetch_evaluations(self.instance, KEY, DEADLINE_CHECK_NAME)[-1].description or ""


def find_late(instance: dg.DagsterInstance, key: dg.AssetKey = KEY) -> list[datetime]:
    found = fetch_signals(instance, key)
    assert {str(metadata["Signal"].value) for metadata in found} <= {"late"}
    return [
        datetime.fromtimestamp(float(str(metadata["Deadline"].value)), timezone.utc)
        for metadata in found
    ]


@pytest.fixture
def observed(airflow_v2: Airflow, instance: dg.DagsterInstance) -> ObservedDag:
    observed = ObservedDag(airflow_v2, instance)
    observed.tick(SIX - 5 * HOUR)
    return observed


def test_a_dag_without_a_success_is_late_once_at_the_deadline(observed: ObservedDag) -> None:
    observed.tick(SIX - MINUTE)
    assert (observed.late, observed.evaluations) == ([], [])
    for seconds in (6, 20, 3000):
        observed.tick(SIX + timedelta(seconds=seconds))
    assert (observed.late, observed.evaluations) == ([SIX], [False])
    begin = SIX - 3 * HOUR
    description = f"No run succeeded from {begin:%F %T} to the deadline of {SIX:%F %T} UTC."
    assert observed.last_description == description


def test_dags_that_depend_on_lateness_get_the_deadline(observed: ObservedDag) -> None:
    observed.tick(SIX + MINUTE)
    read, _ = fetch_events(observed.instance, after=0, limit=10)
    (event,) = [each for each in read if each.state in ("slow", "late")]
    record = build_upstream_event(event, f"metrics/{DAG}", "metrics/clean_up")
    assert (record.state, record.deadline, record.run_id) == ("late", SIX, None)


@pytest.mark.parametrize(
    ("ended_ago", "is_late"),
    [(4 * HOUR, True), (3 * HOUR, False), (HOUR, False), (timedelta(), False)],
)
def test_a_success_counts_that_ended_within_the_time_before_the_deadline(
    observed: ObservedDag, ended_ago: timedelta, *, is_late: bool
) -> None:
    observed.end("mine", SIX - ended_ago)
    observed.tick(SIX + MINUTE)
    assert observed.late == ([SIX] if is_late else [])
    assert observed.evaluations[-1] is not is_late


def test_a_failure_does_not_count(observed: ObservedDag) -> None:
    observed.end("mine", SIX - HOUR, "failed")
    observed.tick(SIX + MINUTE)
    assert observed.late == [SIX]


def test_the_check_passes_with_a_success_after_the_deadline(observed: ObservedDag) -> None:
    observed.tick(SIX + MINUTE)
    observed.end("failed", SIX + HOUR, "failed")
    observed.tick(SIX + HOUR)
    assert observed.evaluations == [False]
    observed.end("mine", SIX + 2 * HOUR)
    observed.tick(SIX + 2 * HOUR)
    assert observed.evaluations == [False, True]
    moment = SIX + 2 * HOUR
    description = f"Run mine succeeded at {moment:%F %T} UTC, after the deadline of {SIX:%F %T}."
    assert observed.last_description == description
    observed.tick(SIX + DAY + MINUTE)  # it does not count for the next one
    assert observed.late == [SIX, SIX + DAY]


def test_a_success_whose_row_appears_late_withdraws_no_signal_and_passes_the_check(
    observed: ObservedDag,
) -> None:
    observed.tick(SIX + MINUTE)
    run = observed.end("mine", SIX + 2 * MINUTE)
    run.end_date = SIX - MINUTE
    observed.tick(SIX + 2 * MINUTE)
    assert (observed.late, observed.evaluations) == ([SIX], [False, True])
    assert "in time for the deadline" in observed.last_description


def test_every_missed_deadline_of_an_outage_is_signaled_in_order(observed: ObservedDag) -> None:
    observed.end("mine", SIX + DAY - HOUR)
    observed.daemon.restart()
    observed.tick(SIX + 3 * DAY + MINUTE)
    assert observed.late == [SIX, SIX + 2 * DAY, SIX + 3 * DAY]
    assert observed.evaluations[-1] is False


def test_of_many_missed_deadlines_the_last_ones_within_the_lookback_are_signaled(
    observed: ObservedDag,
) -> None:
    observed.declare(DeadlineDeclaration(cron="0 * * * *", within=3600))
    observed.tick(SIX - 5 * HOUR)
    observed.tick(SIX + 3 * DAY + MINUTE)
    assert len(observed.late) == 24
    assert observed.late[-1] == SIX + 3 * DAY
    observed.declare(DeadlineDeclaration(cron="0 6 * * *", within=3600))
    observed.tick(SIX + 3 * DAY + 2 * MINUTE)
    observed.tick(SIX + 40 * DAY + MINUTE)
    assert observed.late[24:] == [SIX + number * DAY for number in range(34, 41)]


def test_deadlines_before_the_declaration_was_first_seen_are_not_signaled(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    observed = ObservedDag(airflow_v2, instance)
    observed.declare(None)
    observed.tick(SIX - HOUR)
    observed.declare(DEADLINE)
    observed.tick(SIX + HOUR)
    assert (observed.late, observed.evaluations) == ([], [])
    observed.declare(DeadlineDeclaration(cron="30 7 * * *", within=3600))  # a new one
    observed.tick(SIX + 2 * HOUR)
    assert observed.late == []
    observed.tick(SIX + 2 * DAY)
    assert observed.late == [SIX + DAY + 1.5 * HOUR]


@pytest.mark.parametrize("killed_after", [0, 1, 2])
def test_a_crash_while_it_is_signaled_neither_loses_nor_repeats_it(
    observed: ObservedDag, killed_after: int
) -> None:
    observed.set_clocks(SIX + MINUTE)
    observed.daemon.tick(killed_after=killed_after)
    observed.tick(SIX + 2 * MINUTE)
    assert observed.late == [SIX]


def test_a_crash_before_the_cursor_is_stored_repeats_nothing(observed: ObservedDag) -> None:
    observed.set_clocks(SIX + MINUTE)
    observed.daemon.tick(crashes=True)
    observed.tick(SIX + 2 * MINUTE)
    assert observed.late == [SIX]


def test_after_a_lost_cursor_deadlines_are_evaluated_from_then_on(observed: ObservedDag) -> None:
    observed.tick(SIX + MINUTE)
    observed.daemon.cursor = None
    observed.tick(SIX + 2 * MINUTE)
    assert observed.late == [SIX]
    observed.tick(SIX + DAY + MINUTE)
    assert observed.late == [SIX, SIX + DAY]


def test_the_deadline_of_an_airflow_that_does_not_answer_is_evaluated_when_it_does(
    airflow_v2: Airflow, observed: ObservedDag
) -> None:
    observed.end("mine", SIX - HOUR)
    airflow_v2.server.fail_next(lambda _: True, hang_up, times=100)
    observed.tick(SIX + MINUTE)
    assert (observed.late, observed.evaluations) == ([], [])
    airflow_v2.server.forget_faults()
    observed.daemon.restart()
    observed.tick(SIX + HOUR)
    assert (observed.late, observed.evaluations) == ([], [True])


def test_a_run_that_is_not_reported_yet_is_waited_for(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """Its tasks decide whether it is a success, and Airflow does not return them. DAGs of which
    everything is known are not held up."""
    observed = ObservedDag(airflow_v2, instance)
    airflow_v2.database.add_dag("other")
    declared = DagDeclaration(deadline=DEADLINE, success_when=SuccessDeclaration(tasks=["load"]))
    observed.daemon.rules = {DAG: declared.success_when, "other": None}
    observed.daemon.dags = {DAG: declared, "other": DagDeclaration(deadline=DEADLINE)}
    observed.daemon.restart()
    observed.tick(SIX - 5 * HOUR)
    observed.end("mine", SIX - HOUR)
    busy = answer(500, {"detail": "busy"})
    airflow_v2.server.fail_next(asks("GET", ".*/taskInstances"), busy, times=100)
    observed.set_clocks(SIX + MINUTE)
    observed.daemon.tick()
    other = dg.AssetKey(["metrics", "dag", "other"])
    assert (observed.late, observed.evaluations) == ([], [])
    assert find_late(instance, other) == [SIX]
    airflow_v2.server.forget_faults()
    observed.tick(SIX + 2 * MINUTE)
    assert (observed.late, observed.evaluations[-1]) == ([], True)
    assert find_late(instance, other) == [SIX]


def test_a_success_that_a_person_reports_counts(observed: ObservedDag) -> None:
    observed.tick(SIX + MINUTE)
    observed.instance.report_runless_asset_event(dg.AssetMaterialization(KEY))
    observed.end("mine", SIX + HOUR, "failed")
    observed.tick(SIX + HOUR)
    assert observed.evaluations[-1] is True


def test_until_a_deadline_is_over_it_costs_neither_requests_nor_queries(
    airflow_v2: Airflow, observed: ObservedDag
) -> None:
    for now in (SIX - HOUR, SIX - MINUTE):
        observed.set_clocks(now)
        requests = len(airflow_v2.server.requests)
        with recording_statements() as statements:
            observed.daemon.tick()
        assert len(statements) == 1  # for the Dagster runs of the instance
        assert len(airflow_v2.server.requests) == requests + 1


def test_an_end_that_is_no_time_delays_nothing(observed: ObservedDag) -> None:
    """The last moment of the year 9999 is stored as a number that rounds up to the year 10000, and
    a person may store milliseconds."""
    odd = observed.end("odd", SIX - 4 * HOUR)
    odd.end_date = datetime.max.replace(tzinfo=timezone.utc)
    observed.tick(SIX - 4 * HOUR)
    milliseconds = dg.AssetMaterialization(KEY, metadata={"End": SIX.timestamp() * 1000})
    observed.instance.report_runless_asset_event(milliseconds)
    observed.end("next", SIX - 2 * HOUR, "failed")
    before = observed.daemon.cursor
    observed.tick(SIX + MINUTE)
    assert observed.daemon.cursor != before
    assert observed.late == [SIX]


def test_an_error_in_evaluating_deadlines_delays_no_report(observed: ObservedDag) -> None:
    def fail() -> None:
        raise RuntimeError("the event log is busy")

    observed.set_clocks(SIX + MINUTE)
    observed.daemon.before_storing = fail
    before = observed.daemon.cursor
    observed.daemon.tick()
    assert observed.late == []
    assert observed.daemon.cursor != before
    observed.tick(SIX + 2 * MINUTE)
    assert observed.late == [SIX]


def test_deadlines_before_observation_began_are_not_evaluated(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    observed = ObservedDag(airflow_v2, instance)
    observed.end("in time", SIX - 2 * HOUR)
    observed.tick(SIX + HOUR)  # the first one
    observed.end("later", SIX + 2 * HOUR, "failed")
    observed.tick(SIX + 2 * HOUR)
    assert (observed.late, observed.evaluations) == ([], [])


def test_the_check_passes_though_reporting_took_all_the_time_of_the_tick(
    observed: ObservedDag,
) -> None:
    observed.tick(SIX + MINUTE)
    clock = FakeClock()
    timing = replace(clock.timing, utc_now=observed.database.now)
    slow = Daemon(observed.daemon.client, [DAG], observed.instance, timing=timing)
    slow.dags, slow.cursor = observed.daemon.dags, observed.daemon.cursor
    slow.restart()
    observed.end("mine", SIX + HOUR)
    slow.before_storing = lambda: clock.advance(20)
    slow.tick()
    assert observed.evaluations == [False]
    clock.advance(30)
    slow.tick()
    assert observed.evaluations == [False, True]


def test_a_run_that_ended_after_the_deadline_and_is_not_reported_yet_does_not_delay_it(
    airflow_v2: Airflow, observed: ObservedDag
) -> None:
    declared = DagDeclaration(deadline=DEADLINE, success_when=SuccessDeclaration(tasks=["load"]))
    observed.daemon.rules = {DAG: declared.success_when}
    observed.daemon.dags = {DAG: declared}
    observed.daemon.restart()
    busy = answer(500, {"detail": "busy"})
    airflow_v2.server.fail_next(asks("GET", ".*/taskInstances"), busy, times=100)
    observed.end("mine", SIX + timedelta(seconds=30))
    observed.set_clocks(SIX + MINUTE)
    observed.daemon.tick()
    assert observed.late == [SIX]
