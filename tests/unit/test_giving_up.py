"""How long a wait is kept up when what comes back is no help."""

from __future__ import annotations

import pytest

from federation_defs.airflow.models import DagRun
from federation_defs.dagster_io.run_tags import Target
from federation_defs.errors import (
    AirflowError,
    CredentialError,
    DagPausedError,
    PermissionMissingError,
    RunLostError,
    RunNotStartedError,
    UnexpectedAnswerError,
    UnreachableError,
)
from federation_defs.execution.monitor import AWAY_S, TROUBLE_S, bear
from federation_defs.execution.polling import MonitoredRun
from tests.unit.build import build_run

HOUR_S = 3600.0
AWAY = UnreachableError("metrics", "http://127.0.0.1:1", "connection refused")
ODD = UnexpectedAnswerError("metrics", "GET /", "a login page")
FAILED = RunNotStartedError("metrics", "load", "run", "500")
NO_ACCOUNT = CredentialError("metrics", "the file is gone", "METRICS_PASSWORD")
REFUSED = PermissionMissingError("metrics", "POST /", "to trigger", "", "METRICS_PASSWORD")
PAUSED = DagPausedError("metrics", "load", "http://127.0.0.1:1")


def build_wait(run: DagRun | None = None) -> MonitoredRun:
    """One that began at 0 and has ten hours."""
    return MonitoredRun(Target("load"), 0.0, 10 * HOUR_S, 0.0, 0.0, run=run)


def bear_each(one: MonitoredRun, *errors: tuple[float, AirflowError]) -> list[AirflowError | None]:
    """What becomes of the wait at each of these, by hours."""
    return [bear(one, error, hours * HOUR_S) for hours, error in errors]


def test_an_instance_that_is_away_is_waited_for_until_the_time_out() -> None:
    one = build_wait()
    assert bear_each(one, (0, AWAY), (5, AWAY), (9.9, AWAY), (10, AWAY)) == [None] * 3 + [AWAY]


def test_of_a_run_that_goes_on_the_time_out_tells_how_it_was_when_last_seen() -> None:
    one = build_wait(build_run("load", "run", "running"))
    last = bear(one, AWAY, 10 * HOUR_S)
    assert isinstance(last, RunLostError)
    assert "it was running when we heard of it last" in str(last)


def test_of_a_run_that_is_over_the_time_out_tells_what_was_amiss() -> None:
    assert bear(build_wait(build_run("load", "run", "success")), AWAY, 10 * HOUR_S) is AWAY


@pytest.mark.parametrize("error", [FAILED, NO_ACCOUNT])
def test_a_trigger_that_may_yet_succeed_is_tried_for_some_minutes(error: AirflowError) -> None:
    one, minutes = build_wait(), TROUBLE_S / HOUR_S
    tries = bear_each(one, (1, error), (1 + minutes, error), (1.01 + minutes, error))
    assert tries == [None, None, error]


def test_odd_answers_are_borne_for_some_minutes_once_there_is_a_run() -> None:
    one, minutes = build_wait(build_run("load", "run", "running")), TROUBLE_S / HOUR_S
    assert bear_each(one, (1, ODD), (1.01 + minutes, ODD)) == [None, ODD]


@pytest.mark.parametrize("error", [REFUSED, ODD])
def test_a_trigger_that_was_refused_is_not_tried_again(error: AirflowError) -> None:
    assert bear(build_wait(), error, 1.0) is error


@pytest.mark.parametrize("run", [None, build_run("load", "run", "running")])
def test_what_nobody_mends_by_waiting_ends_it_at_once(run: DagRun | None) -> None:
    assert bear(build_wait(run), PAUSED, 1.0) is PAUSED


@pytest.mark.parametrize("error", [FAILED, NO_ACCOUNT])
def test_what_was_before_an_instance_was_away_does_not_count_when_it_is_back(
    error: AirflowError,
) -> None:
    """It may need a while before it can do everything."""
    one, minutes, away = build_wait(), TROUBLE_S / HOUR_S, 1.01 * AWAY_S / HOUR_S
    tries = bear_each(one, (0, error), (1, AWAY), (1 + away, AWAY), (5, error), (5.1, error))
    assert tries == [None] * 5
    assert bear_each(one, (5.01 + minutes, error)) == [error]


def test_now_away_and_now_failing_is_given_up_too() -> None:
    one = build_wait()
    tries = [bear(one, (FAILED, AWAY)[number % 2], 15.0 * number) for number in range(60)]
    assert next((15 * number, end) for number, end in enumerate(tries) if end) == (630, FAILED)
