"""Late rows, wrong clocks, crashes, lost cursors and unreachable instances."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg
import pytest

from tests.contract.fakes.airflow import asks
from tests.contract.fakes.faults import LOGIN_PAGE, answer, hang_up, say_no_time
from tests.contract.observation.daemon import (
    DAG,
    KEY,
    Observed,
    fetch_evaluations,
    fetch_reported_observations,
)


def test_a_row_that_appears_late_is_reported(observed: Observed) -> None:
    observed.add_run("in time")
    assert observed.daemon.tick() == ["in time"]
    late = observed.database.start_run(DAG, "late")
    before = observed.database.now() - timedelta(seconds=90)
    observed.database.finish_run(late, end_date=before, updated_at=before)
    assert observed.daemon.tick() == ["late"]
    assert observed.daemon.tick() == []


def test_a_run_that_left_the_overlap_is_not_reported_again(observed: Observed) -> None:
    run = observed.add_run("old")
    assert observed.daemon.tick() == ["old"]
    for _ in range(3):
        run.updated_at -= timedelta(seconds=100)
        assert observed.daemon.tick() == []
    observed.add_run("new")
    assert observed.daemon.tick() == ["new"]


@pytest.mark.parametrize("skew_minutes", [-50, -10, 10, 50])
def test_the_servers_clock_may_be_wrong(observed: Observed, skew_minutes: int) -> None:
    observed.database.skew = timedelta(minutes=skew_minutes)
    observed.add_run("first")
    assert observed.daemon.tick() == ["first"]
    observed.add_run("second")
    assert observed.daemon.tick() == ["second"]
    assert observed.daemon.tick() == []


def test_no_run_is_lost_if_the_server_sends_no_date(observed: Observed) -> None:
    observed.server.fail_next(asks("GET", ".*dagRuns"), say_no_time, times=2)
    observed.add_run("first")
    assert observed.daemon.tick() == ["first"]
    observed.add_run("second")
    assert observed.daemon.tick() == ["second"]


@pytest.mark.parametrize("skew_minutes", [0, -10, 10])
def test_a_crash_between_events_and_cursor_reports_nothing_twice(
    observed: Observed, skew_minutes: int
) -> None:
    observed.database.skew = timedelta(minutes=skew_minutes)
    for number in range(3):
        observed.add_run(f"run {number}", ended_s_ago=10 - number)
    assert len(observed.daemon.tick(crashes=True)) == 3
    observed.add_run("run 3")
    assert observed.daemon.tick() == ["run 3"]
    assert observed.reported == ["run 0", "run 1", "run 2", "run 3"]


def test_after_a_crash_while_storing_events_only_the_rest_is_reported(observed: Observed) -> None:
    for number in range(3):
        observed.add_run(f"run {number}", ended_s_ago=10 - number)
    observed.daemon.tick(killed_after=2)  # events: the evaluation and the materialization
    assert observed.reported == ["run 0"]
    assert observed.daemon.tick() == ["run 1", "run 2"]


@pytest.mark.parametrize("state", ["success", "failed"])
def test_a_crash_between_the_events_of_a_run_loses_neither(observed: Observed, state: str) -> None:
    observed.add_run("mine", state)
    observed.daemon.tick(killed_after=1)
    observed.daemon.tick()
    instance = observed.daemon.instance
    last = fetch_evaluations(instance, KEY)[-1]
    assert (last.passed, last.metadata["Run ID"].value) == (state == "success", "mine")
    assert observed.reported == (["mine"] if state == "success" else [])
    assert len(fetch_reported_observations(instance, KEY)) == (state == "failed")


@pytest.mark.parametrize(
    "cursor",
    [None, "", "no JSON", "null", "[1]", '{"version": 0}', '{"version": 99, "since": 5}'],
)
def test_a_lost_or_unreadable_cursor_reports_nothing_twice(
    observed: Observed, cursor: str | None
) -> None:
    observed.add_run("run")
    assert observed.daemon.tick() == ["run"]
    observed.daemon.cursor = cursor
    observed.add_run("another")
    assert observed.daemon.tick() == ["another"]
    assert observed.reported == ["run", "another"]


@pytest.mark.parametrize(
    "cursor",
    [
        '{"version": 1, "since": "2026-01-02T03:04:05+00:00"}',
        '{"version": 1, "since": "yesterday", "seen": [], "held": []}',
    ],
    ids=["parts missing", "no time"],
)
def test_a_cursor_edited_wrongly_by_hand_counts_as_lost(observed: Observed, cursor: str) -> None:
    """A person can edit it in Dagster's UI. An error would fail every tick from then on."""
    observed.daemon.cursor = cursor
    observed.add_run("run")
    assert observed.daemon.tick() == ["run"]


def test_the_cursor_forgets_runs_that_left_the_overlap(observed: Observed) -> None:
    for number in range(50):
        run = observed.database.start_run(DAG, f"run {number}")
        long_ago = observed.database.now() - timedelta(minutes=10)
        observed.database.finish_run(run, end_date=long_ago, updated_at=long_ago)
    observed.daemon.tick()
    full = len(observed.daemon.cursor or "")
    observed.daemon.tick()
    assert len(observed.daemon.cursor or "") < full / 5


def test_runs_that_end_while_the_instance_is_unreachable_are_reported_later(
    observed: Observed,
) -> None:
    observed.daemon.tick()
    cursor = observed.daemon.cursor
    observed.server.fail_next(asks("GET", ".*"), hang_up, times=4)
    skipped = observed.daemon.evaluate()
    assert isinstance(skipped, dg.SkipReason)
    assert "Airflow 'metrics' gave no usable answer at" in (skipped.skip_message or "")
    assert observed.daemon.cursor == cursor
    for number in range(3):
        observed.add_run(f"meanwhile {number}", ended_s_ago=10 - number)
    assert observed.daemon.tick() == ["meanwhile 0", "meanwhile 1", "meanwhile 2"]


def test_runs_that_end_during_a_long_outage_are_reported_after_it(observed: Observed) -> None:
    observed.daemon.tick()
    run = observed.database.start_run(DAG, "in the outage")
    observed.database.finish_run(run)
    observed.database.skew += timedelta(days=6)
    observed.add_run("just now")
    assert observed.daemon.tick() == ["in the outage", "just now"]


def test_a_tick_is_skipped_if_a_gateway_says_that_the_instance_is_unavailable(
    observed: Observed,
) -> None:
    observed.daemon.tick()
    unavailable = answer(503, LOGIN_PAGE)
    observed.server.fail_next(asks("GET", ".*"), unavailable, times=4)
    skipped = observed.daemon.evaluate()
    assert isinstance(skipped, dg.SkipReason)
    assert "503" in (skipped.skip_message or "")
