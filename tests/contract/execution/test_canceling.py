"""A Dagster run that is canceled, or interrupted, while its DAG runs go on."""

from __future__ import annotations

import gc
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial

import dagster as dg
import pytest
from werkzeug import Response

from federation_defs.dagster_io.current_run import CurrentRun
from federation_defs.dagster_io.run_tags import Request, Target
from federation_defs.errors import DagNotFoundError
from federation_defs.execution.cancellation import CancellationMonitor
from federation_defs.execution.launcher import Launcher, RunCanceledError
from federation_defs.naming import build_run_id
from tests.contract.conftest import Airflow
from tests.contract.dagster_plus import as_server
from tests.contract.execution.executing import (
    FAST,
    DagsterJob,
    build_context,
    materialize,
    meanwhile,
)
from tests.contract.execution.interrupting import (
    after_acting,
    before_acting,
    cancel,
    force_cancel,
    interrupt,
)
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.faults import Act, Stall, answer, hang_up, lag
from tests.contract.observation.daemon import Daemon
from tests.waiting import wait_for

DAG = "customer_metrics"
TRIGGER = f"/dags/{DAG}/dagRuns"
RUN = f"/dags/{DAG}/dagRuns/[^/]+"
LEAVE = {"trigger": {"on_cancel": "leave"}}
CANCELED, FAILURE = dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.FAILURE


def cancel_at(
    airflow: Airflow, instance: dg.DagsterInstance, method: str = "GET", pattern: str = RUN
) -> None:
    """Has the Dagster run canceled when this is asked for."""
    fault = before_acting(partial(cancel, instance))
    airflow.server.fail_next(asks(method, pattern), fault)


def test_the_dag_run_of_a_canceled_run_is_stopped(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG, polls=math.inf)
    cancel_at(airflow, instance)
    executed = materialize(airflow.client, [DAG], instance)
    assert executed.status is CANCELED
    (run,) = airflow.database.runs
    assert run.state == "failed"
    assert run.tasks[0].state == "failed"  # it was at work
    assert f"{DAG}: run {run.run_id} was stopped: failed." in executed.log


def test_a_dag_run_whose_stop_the_scheduler_overwrites_is_stopped_again(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG, polls=math.inf)
    cancel_at(airflow, instance)

    def overwrite(act: Act) -> Response:
        response = act()
        airflow.database.set_state(airflow.database.runs[0], "success")
        return response

    airflow.server.fail_next(asks("PATCH", RUN), overwrite)
    executed = materialize(airflow.client, [DAG], instance)
    assert executed.status is CANCELED
    assert airflow.database.runs[0].state == "failed"
    assert airflow.server.count("PATCH", ".*") == 2


def test_all_that_a_canceled_run_started_is_stopped(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    dag_ids = [f"dag_{number}" for number in range(20)]
    for dag_id in dag_ids:
        airflow_v2.database.add_dag(dag_id, polls=math.inf)
    runs = airflow_v2.database.runs

    def cancel_when_launched() -> None:
        wait_for(lambda: len(runs) == 20, "all are launched", interval_s=0.02)
        cancel(instance)

    with meanwhile(cancel_when_launched):
        executed = materialize(airflow_v2.client, dag_ids, instance)
    assert executed.status is CANCELED
    wait_for(lambda: all(run.state == "failed" for run in runs), "all are stopped")


@pytest.mark.parametrize("error", [OSError("no connection"), dg.DagsterExecutionInterruptedError()])
def test_the_dag_run_of_a_canceled_run_is_stopped_though_its_status_could_not_be_read_at_once(
    airflow_v2: Airflow, instance: dg.DagsterInstance, error: BaseException
) -> None:
    """The database was away for a moment, or a second signal came."""
    airflow_v2.database.add_dag(DAG, polls=math.inf)
    errors = [OSError("no connection"), OSError("starting up")]

    class CanceledRun(CurrentRun):
        def fetch_status(self) -> dg.DagsterRunStatus:
            if threading.current_thread() is threading.main_thread():
                raise error
            if errors:
                raise errors.pop()
            return dg.DagsterRunStatus.CANCELING

    current_run = CanceledRun(instance, dg.DagsterRun(job_name="a_job"), "metrics")
    context = build_context(airflow_v2.client, [DAG], current_run)
    launcher = Launcher(context)
    launcher.launch(Target(DAG), "a note")
    watcher = CancellationMonitor(context, launcher)
    try:
        with suppress(dg.DagsterExecutionInterruptedError):
            assert watcher.stop_if_canceled() is None  # as when Dagster's signal comes
        watcher.close()
        (run,) = airflow_v2.database.runs
        wait_for(lambda: run.state == "failed", "it is stopped", interval_s=0.02)
    finally:
        watcher.close()
    assert errors == []


def test_a_run_that_is_forced_to_be_canceled_stays_canceled_though_its_dag_run_is_lost(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=math.inf)

    def cancel_and_delete() -> None:
        force_cancel(instance)
        (run,) = airflow_v2.database.runs
        airflow_v2.database.delete_run(run)

    airflow_v2.server.fail_next(asks("GET", RUN), before_acting(cancel_and_delete))
    executed = materialize(airflow_v2.client, [DAG], instance)
    assert executed.status is CANCELED


def test_deleting_the_record_of_the_dagster_run_leaves_its_dag_run(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """Observation reports the DAG run then."""
    airflow_v2.database.add_dag(DAG, polls=math.inf)

    def delete_then_finish() -> None:
        run = wait_for(lambda: next(iter(airflow_v2.database.runs), None), "it is launched")
        wait_for(lambda: airflow_v2.server.count("GET", RUN) > 2, "it is polled", interval_s=0.02)
        (record,) = instance.get_run_records()
        # As the webserver does it, which Dagster+ does not refuse anything.
        as_server(instance.run_storage).delete_run(record.dagster_run.run_id)
        as_server(instance.event_log_storage).delete_events(record.dagster_run.run_id)
        requests = len(airflow_v2.server.requests)
        wait_for(lambda: len(airflow_v2.server.requests) > requests + 5, "it is polled on")
        assert run.state == "running"
        airflow_v2.database.finish_run(run)

    # Dagster has no result of a run that was deleted.
    with meanwhile(delete_then_finish), suppress(AttributeError):
        materialize(airflow_v2.client, [DAG], instance)
    (run,) = airflow_v2.database.runs
    assert Daemon(airflow_v2.client, [DAG], instance).tick() == [run.run_id]


def act_then_cancel(instance: dg.DagsterInstance, act: Act) -> Response:
    response = act()
    cancel(instance)
    return response


def cancel_then_act(instance: dg.DagsterInstance, act: Act) -> Response:
    cancel(instance)
    return act()


@pytest.mark.parametrize("fault", [act_then_cancel, cancel_then_act])
def test_a_dag_run_whose_trigger_is_under_way_is_stopped_too(
    airflow_v2: Airflow,
    instance: dg.DagsterInstance,
    fault: Callable[[dg.DagsterInstance, Act], Response],
) -> None:
    airflow_v2.database.add_dag(DAG, polls=math.inf)
    airflow_v2.server.fail_next(asks("POST", TRIGGER), partial(fault, instance))
    executed = materialize(airflow_v2.client, [DAG], instance)
    assert executed.status is CANCELED
    assert [run.state for run in airflow_v2.database.runs] == ["failed"]


def test_a_dag_run_whose_trigger_got_no_answer_is_stopped_too(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=math.inf)
    airflow_v2.server.fail_next(asks("POST", TRIGGER), after_acting(partial(cancel, instance)))
    airflow_v2.server.fail_next(asks("GET", RUN), hang_up, times=4)  # is it there after all?
    executed = materialize(airflow_v2.client, [DAG], instance)
    assert executed.status is CANCELED
    assert [run.state for run in airflow_v2.database.runs] == ["failed"]


def test_what_was_not_triggered_by_then_is_not_triggered_any_more(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """Launches under way when the Dagster run is canceled end before their trigger."""
    dag_ids = [f"dag_{number}" for number in range(4)]
    for dag_id in dag_ids:
        airflow_v2.database.add_dag(dag_id)
    current_run = CurrentRun(instance, dg.DagsterRun(job_name="a_job"), "metrics")
    launcher = Launcher(build_context(airflow_v2.client, dag_ids, current_run))

    def is_stopped() -> bool:
        with suppress(DagNotFoundError):
            try:
                launcher.launch(Target("never_was"), "a note")
            except RunCanceledError:
                return True
        return False

    with Stall() as stall, ThreadPoolExecutor(5) as threads:
        airflow_v2.server.fail_next(asks("GET", "/dags/dag_.*"), stall, times=4)
        launches = [threads.submit(launcher.launch, Target(dag_id), "") for dag_id in dag_ids]
        stall.wait_until_entered()
        stopped = threads.submit(launcher.stop)
        wait_for(is_stopped, "launches are refused", interval_s=0.02)
        stall.release()
        errors = [launch.exception(60) for launch in launches]
        assert stopped.result(60) == {}
    assert all(isinstance(error, RunCanceledError) for error in errors)
    assert airflow_v2.server.count("POST", ".*/dagRuns") == 0


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_a_launch_that_waits_for_an_older_run_ends_with_its_step(
    airflow_v2: Airflow, instance: dg.DagsterInstance, is_interrupted: bool
) -> None:
    """A repetition of the step waits in its place: both would clear the run."""
    airflow_v2.database.add_dag(DAG, polls=math.inf)
    older = airflow_v2.database.start_run(DAG, "older")
    request = Request([], clears=older.run_id).build_tags("metrics", DAG)
    dagster_run = instance.add_run(dg.DagsterRun(job_name="a_job", tags=request))
    context = build_context(airflow_v2.client, [DAG], CurrentRun(instance, dagster_run, "metrics"))
    launcher = Launcher(context)
    cancellation = CancellationMonitor(context, launcher)
    with ThreadPoolExecutor(1) as threads:
        launch = threads.submit(launcher.launch, Target(DAG), "a note")
        wait_for(lambda: airflow_v2.server.count("GET", RUN) > 2, "it waits", interval_s=0.02)
        is_closed = threading.Event()
        if is_interrupted:
            cancellation.keep(is_closed.set)
            assert is_closed.wait(60)
        else:
            cancellation.close()
        airflow_v2.database.finish_run(older)
        assert isinstance(launch.exception(60), RunCanceledError)
    instance.report_run_canceled(dagster_run)  # else it is polled on
    assert airflow_v2.server.count("POST", ".*/clear") == 0


def test_a_dag_run_goes_on_with_on_cancel_leave(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=math.inf)
    cancel_at(airflow_v2, instance)
    executed = materialize(airflow_v2.client, {DAG: LEAVE}, instance)
    assert executed.status is CANCELED
    (run,) = airflow_v2.database.runs
    assert run.state == "running"
    assert f"{DAG}: run {run.run_id} is not stopped (`trigger.on_cancel: leave`)." in executed.log
    airflow_v2.database.finish_run(run)
    assert Daemon(airflow_v2.client, [DAG], instance).tick() == [run.run_id]


def test_an_interruption_is_no_cancellation_and_leaves_the_dag_run_to_the_next_attempt(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """The machine of the worker is shut down, say."""
    dag = airflow_v2.database.add_dag(DAG, polls=math.inf)
    job = DagsterJob(airflow_v2.client, [DAG], instance)
    airflow_v2.server.fail_next(asks("GET", RUN), before_acting(interrupt))
    first = job.execute()
    assert first.status is FAILURE
    (run,) = airflow_v2.database.runs
    assert (run.state, airflow_v2.server.count("PATCH", ".*")) == ("running", 0)
    assert "Interrupted, but not canceled: DAG runs that were started stay active." in first.log
    airflow_v2.database.finish_after(run, polls=1)
    second = job.execute(first, {"dagster/retry_number": "1"})
    assert second.metadata[DAG]["Run ID"].value == build_run_id(first.run_id)
    assert (dag.outcome, len(airflow_v2.database.runs)) == ("success", 1)


def test_a_dag_run_that_goes_on_when_the_next_attempt_is_canceled_is_stopped(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=math.inf)
    job = DagsterJob(airflow_v2.client, [DAG], instance)
    airflow_v2.server.fail_next(asks("GET", RUN), before_acting(interrupt))
    first = job.execute()
    airflow_v2.server.fail_next(asks("GET", f"/dags/{DAG}/dagRuns/.*"), lag(0))  # finds it
    cancel_at(airflow_v2, instance)
    assert job.execute(first).status is CANCELED
    assert [run.state for run in airflow_v2.database.runs] == ["failed"]


def test_a_dag_run_that_succeeded_in_that_moment_is_reported_by_observation(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=math.inf)

    def end_and_cancel() -> None:
        airflow_v2.database.finish_run(airflow_v2.database.runs[0])
        cancel(instance)

    airflow_v2.server.fail_next(asks("GET", RUN), before_acting(end_and_cancel))
    executed = materialize(airflow_v2.client, [DAG], instance)
    (run,) = airflow_v2.database.runs
    assert (executed.status, run.state) == (CANCELED, "success")
    assert executed.materialized == []
    daemon = Daemon(airflow_v2.client, [DAG], instance)
    assert (daemon.tick(), daemon.tick()) == ([run.run_id], [])


def test_a_dag_run_that_can_not_be_stopped_is_logged_with_its_link(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=math.inf)
    cancel_at(airflow_v2, instance)
    airflow_v2.server.fail_next(asks("PATCH", RUN), answer(503, "down"))
    executed = materialize(airflow_v2.client, [DAG], instance)
    assert executed.status is CANCELED
    (run,) = airflow_v2.database.runs
    url = airflow_v2.client.build_run_url(DAG, run.run_id)
    (warning,) = [line for line in executed.log if f"may stay active: {url}" in line]
    assert "503" in warning


def on_first_observation(
    airflow: Airflow, instance: dg.DagsterInstance, dag_id: str, happen: Callable[[], object]
) -> list[dg.EventLogEntry]:
    """Let something happen while Dagster stores the first observation of a Dagster run. Return a
    list of it, which is empty until then."""
    stored: list[dg.EventLogEntry] = []

    def on_event(entry: dg.EventLogEntry) -> None:
        event = entry.dagster_event
        if event and event.event_type is dg.DagsterEventType.ASSET_OBSERVATION and not stored:
            stored.append(entry)
            happen()

    def listen() -> None:
        (run,) = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        instance.add_event_listener(run.run_id, on_event)

    airflow.server.fail_next(asks("GET", f"/dags/{dag_id}"), before_acting(listen))
    return stored


@pytest.mark.parametrize("collecting", ["MainThread", "cancellation", "heartbeat"])
def test_a_cancellation_between_two_events_of_the_step_stops_the_dag_run_too(
    airflow_v2: Airflow, instance: dg.DagsterInstance, collecting: str
) -> None:
    """Dagster holds the signal back while it stores an event, and then never enters the step
    again. The garbage collector closes the step, in any thread."""
    airflow_v2.database.add_dag(DAG, polls=math.inf)
    stored = on_first_observation(airflow_v2, instance, DAG, partial(cancel, instance))
    has_returned, is_collected = threading.Event(), threading.Event()

    def collect() -> None:
        if has_returned.is_set() and threading.current_thread().name == collecting:
            gc.collect()
            is_collected.set()

    def sleep(_seconds: float) -> None:  # of the thread that stops the DAG run
        has_returned.wait(30)
        collect()

    def utc_now() -> datetime:  # of each heartbeat
        collect()
        return datetime.now(timezone.utc)

    timing = replace(FAST, sleep=sleep, utc_now=utc_now, heartbeat_s=0.05)
    gc.disable()
    try:
        executed = materialize(airflow_v2.client, [DAG], instance, timing=timing)
        assert (executed.status, len(stored)) == (CANCELED, 1)
        has_returned.set()
        (run,) = airflow_v2.database.runs
        wait_for(lambda: run.state == "failed", "it is stopped", interval_s=0.05)
        collect()
        assert is_collected.wait(30)
    finally:
        gc.enable()


def test_a_step_that_is_interrupted_between_two_events_triggers_nothing_more(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """Not what waits for a thread: the process would end only after the last trigger."""
    dag_ids = [f"dag_{number:02}" for number in range(40)]
    for dag_id in dag_ids:
        airflow_v2.database.add_dag(dag_id, polls=math.inf)
    stored = on_first_observation(airflow_v2, instance, dag_ids[0], interrupt)

    def is_idle() -> bool:
        gc.collect()
        return not any(thread.name.startswith("airflow-") for thread in threading.enumerate())

    with Stall() as stall:
        all_but_first = asks("POST", r"/dags/dag_(?!00)\d+/dagRuns")
        airflow_v2.server.fail_next(all_but_first, stall, times=40)
        executed = materialize(airflow_v2.client, dag_ids, instance)
        assert (executed.status, len(stored)) == (FAILURE, 1)
        gc.collect()
    wait_for(is_idle, "what was under way has ended", interval_s=0.05)
    assert len(airflow_v2.database.runs) <= 1 + airflow_v2.client.max_connections < 40
