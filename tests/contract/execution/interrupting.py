"""Interruptions of a run worker: a person cancels the run, or its machine goes away.

Dagster cancels a worker by a signal, which raises an error in its main thread. Here the test's
process is the worker. The signal comes during a request to the fake Airflow, so that the step is
surely running.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

import dagster as dg
from werkzeug import Response

from tests.contract.fakes.faults import Act, Fault


def interrupt() -> None:
    """As the end of the machine does; also as Dagster does it after a cancellation."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


def cancel(instance: dg.DagsterInstance) -> None:
    """As a person does, whose run goes on: the run is marked first."""
    (run,) = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    instance.report_run_canceling(run)
    interrupt()


def force_cancel(instance: dg.DagsterInstance) -> None:
    """As a person does who forces it: the run is marked, and its worker is sent no signal."""
    (run,) = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    instance.report_run_canceled(run)


def before_acting(happen: Callable[[], object]) -> Fault:
    """It happens, and then the request is dealt with as ever."""

    def fault(act: Act) -> Response:
        happen()
        return act()

    return fault


def before_answering(happen: Callable[[], object]) -> Fault:
    """What was asked is done, then it happens, and then it is answered."""

    def fault(act: Act) -> Response:
        response = act()
        happen()
        return response

    return fault


def instead_of_acting(happen: Callable[[], object]) -> Fault:
    """It happens, and the connection is closed: nothing is done."""

    def fault(_act: Act) -> None:
        happen()

    return fault


def after_acting(happen: Callable[[], object]) -> Fault:
    """What was asked is done, then it happens, and the answer gets lost."""

    def fault(act: Act) -> None:
        act()
        happen()

    return fault
