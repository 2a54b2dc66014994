"""How long a run is waited for while requests fail."""

from __future__ import annotations

import pytest

from federation_defs.airflow.models import DagRun
from federation_defs.dagster_io.run_tags import Target
from federation_defs.declaration import TriggerDeclaration
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
from federation_defs.execution.polling import MonitoredRun
from federation_defs.timing import Timing
from tests.unit.build import build_run

HOUR_S = 3600.0
TIMING = Timing()
GIVE_UP_H = TIMING.unexpected_answer.give_up_after_s / HOUR_S
FORGIVE_H = TIMING.forgive_after_s / HOUR_S
UNREACHABLE = UnreachableError("metrics", "http://127.0.0.1:1", "connection refused")
UNEXPECTED = UnexpectedAnswerError("metrics", "GET /", "a login page")
NOT_STARTED = RunNotStartedError("metrics", "load", "run", "500")
NO_CREDENTIAL = CredentialError("metrics", "the file is gone", "METRICS_PASSWORD")
REFUSED = PermissionMissingError("metrics", "POST /", "to trigger", "", "METRICS_PASSWORD")
PAUSED = DagPausedError("metrics", "load", "http://127.0.0.1:1")


def build_monitored(dag_run: DagRun | None = None) -> MonitoredRun:
    """A wait that began at 0 and has ten hours."""
    trigger = TriggerDeclaration.model_validate({"timeout": "10h"})
    key = ("load", "run")
    return MonitoredRun(Target("load"), key, trigger, "", True, 0.0, 0.0, dag_run=dag_run)


def fail(run: MonitoredRun, *errors: tuple[float, AirflowError]) -> list[AirflowError | None]:
    """The results of `find_give_up_error` for errors at these hours."""
    return [run.find_give_up_error(error, hours * HOUR_S, TIMING) for hours, error in errors]


def test_an_unreachable_instance_is_waited_for_until_the_deadline() -> None:
    hours = (0, 5, 9.9, 10)
    errors = fail(build_monitored(), *((hour, UNREACHABLE) for hour in hours))
    assert errors == [None, None, None, UNREACHABLE]


def test_at_the_deadline_an_active_run_is_reported_with_its_last_known_state() -> None:
    run = build_monitored(build_run("load", "run", "running"))
    (error,) = fail(run, (10, UNREACHABLE))
    assert isinstance(error, RunLostError)
    assert "it was running when Dagster last read its state" in str(error)


def test_at_the_deadline_a_finished_run_is_reported_with_the_error() -> None:
    run = build_monitored(build_run("load", "run", "success"))
    assert fail(run, (10, UNREACHABLE)) == [UNREACHABLE]


@pytest.mark.parametrize("error", [NOT_STARTED, NO_CREDENTIAL])
def test_a_trigger_that_may_yet_succeed_is_tried_for_some_minutes(error: AirflowError) -> None:
    hours = (1, 1 + GIVE_UP_H, 1.01 + GIVE_UP_H)
    assert fail(build_monitored(), *((hour, error) for hour in hours)) == [None, None, error]


def test_unexpected_answers_about_a_run_are_retried_for_some_minutes() -> None:
    run = build_monitored(build_run("load", "run", "running"))
    errors = fail(run, (1, UNEXPECTED), (1.01 + GIVE_UP_H, UNEXPECTED))
    assert errors == [None, UNEXPECTED]


@pytest.mark.parametrize("error", [REFUSED, UNEXPECTED])
def test_a_trigger_that_was_refused_is_not_tried_again(error: AirflowError) -> None:
    assert fail(build_monitored(), (0, error)) == [error]


@pytest.mark.parametrize("dag_run", [None, build_run("load", "run", "running")])
def test_an_error_that_only_a_person_can_end_ends_the_wait_at_once(dag_run: DagRun | None) -> None:
    assert fail(build_monitored(dag_run), (0, PAUSED)) == [PAUSED]


@pytest.mark.parametrize("error", [NOT_STARTED, NO_CREDENTIAL])
def test_errors_before_an_outage_do_not_count_after_it(error: AirflowError) -> None:
    """An instance that comes back may need a while before it can do everything."""
    run, back_at = build_monitored(), 1 + 1.01 * FORGIVE_H
    errors = ((0, error), (1, UNREACHABLE), (back_at, UNREACHABLE), (5, error), (5.1, error))
    assert fail(run, *errors) == [None] * 5
    assert fail(run, (5.01 + GIVE_UP_H, error)) == [error]


def test_a_trigger_that_is_now_unreachable_and_now_failing_is_given_up() -> None:
    run, errors = build_monitored(), (NOT_STARTED, UNREACHABLE)
    tries = [
        run.find_give_up_error(errors[number % 2], 15.0 * number, TIMING) for number in range(60)
    ]
    assert next((15 * number, end) for number, end in enumerate(tries) if end) == (630, NOT_STARTED)
