"""The DAG runs of a step, from launch to outcome."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from random import uniform
from typing import TypeVar

from federation_defs.airflow.models import Dag, DagRun, RunKey, TaskInstance
from federation_defs.dagster_io.heartbeat import HeartbeatMonitor
from federation_defs.dagster_io.reports import fetch_reported_runs
from federation_defs.dagster_io.run_tags import Target, fetch_launching_runs
from federation_defs.errors import (
    AirflowError,
    DagNotFoundError,
    DagPausedError,
    RunLostError,
    RunNotStartedError,
)
from federation_defs.execution.concurrency import ConcurrencyLimit
from federation_defs.execution.launcher import Launcher, StepContext
from federation_defs.execution.polling import MonitoredRun, fetch_dag_runs, fetch_stuck_dags
from federation_defs.outcome import Outcome, add_log_tails, fetch_outcome, name_task
from federation_defs.threads import CallbackPool

T = TypeVar("T")

_MAX_RUNNING_TASKS = 500

# The result of a poll: the DAGs whose queued runs stay queued, and the runs.
_Polled = tuple[dict[str, Dag | DagNotFoundError], dict[RunKey, DagRun | AirflowError]]


class Monitor:
    """Launches targets, polls their DAG runs and fetches their outcomes.

    All requests are made in threads. The main thread only waits, so Dagster can interrupt it while
    a trigger is under way. `CancellationMonitor` then waits for the trigger and stops its run.

    Args:
        limit: The instance's `limits.max_active_runs`, if it has one.
    """

    def __init__(
        self, context: StepContext, launcher: Launcher, limit: ConcurrencyLimit | None
    ) -> None:
        self._client = client = context.client
        self._current_run = context.current_run
        self._dags = context.dags
        self._log = context.log
        self._timing = context.timing
        self._launcher = launcher
        self._limit = limit
        self._runs: dict[Target, MonitoredRun] = {}
        self._launched: list[tuple[MonitoredRun, DagRun]] = []
        self._ended: list[MonitoredRun] = []
        self._pool = CallbackPool(client.max_connections, f"airflow-{client.instance}")
        self._next_task_list = self._timing.monotonic() + self._timing.list_tasks_s
        self._heartbeats = HeartbeatMonitor(client.instance, self._timing, self._timing.run_group_s)
        self._is_closed = False
        self._logged_waiting: set[Target] = set()  # for a slot
        self._logged_problems: dict[tuple[type, Target | None], float] = {}  # monotonic time

    def add(self, target: Target, note: str) -> None:
        """Queue a target. `wait` launches it, and monitors its run.

        Args:
            note: The note that a new DAG run gets.
        """
        now = self._timing.monotonic()
        first_key = target.dag_id, self._current_run.build_run_id(target)
        trigger, has_slot = self._dags[target.dag_id].trigger, self._limit is None
        self._runs[target] = MonitoredRun(target, first_key, trigger, note, has_slot, now, now)

    def wait(self) -> tuple[list[tuple[MonitoredRun, DagRun]], list[MonitoredRun]]:
        """Do what is due, and wait until a request is answered or something else is due.

        Returns:
            The runs that were launched since the last call, each with the DAG run as it was then;
            and the runs whose monitoring has ended: each has an outcome or an error, or is
            detached.
        """
        now = self._timing.monotonic()
        self._launch_due(now)
        self._poll_due(now)
        self._fetch_outcomes_due(now)
        self._pool.run_callbacks(self._get_pause_s())
        launched, ended = self._launched, self._ended
        self._launched, self._ended = [], []
        return launched, ended

    def close(self) -> None:
        """End all monitoring. DAG runs stay active, and triggers under way are not interrupted."""
        self._is_closed = True
        for run in self._runs.values():
            self._release(run)
        self._pool.close()

    def _get_pause_s(self) -> float:
        """Return the seconds until something is due, at most `timing.poll_run.max_s`; 0 if nothing
        is monitored."""
        if not self._runs:
            return 0.0
        idle = [run for run in self._runs.values() if not run.is_busy]
        if self._is_polling():
            idle = [run for run in idle if not run.is_active]
        if self._is_reserving():
            idle = [run for run in idle if run.has_slot]
        soonest = min((run.next_poll for run in idle), default=math.inf) - self._timing.monotonic()
        return min(self._timing.poll_run.max_s, max(0.0, soonest))

    def _submit(
        self, function: Callable[[], T], callback: Callable[[T], None], *runs: MonitoredRun
    ) -> None:
        """Run a function for some runs in a thread. An `AirflowError` counts for each of them."""

        def on_answer(answer: T | AirflowError) -> None:
            for run in runs:
                run.is_busy = False
                if isinstance(answer, AirflowError):
                    self._handle_error(run, answer)
            if not isinstance(answer, AirflowError):
                callback(answer)

        for run in runs:
            run.is_busy = True
        self._pool.submit(function, on_answer)

    # Launching

    def _is_reserving(self) -> bool:
        return any(run.is_busy and not run.has_slot for run in self._runs.values())

    def _launch_due(self, now: float) -> None:
        due = [run for run in self._runs.values() if run.dag_run is None and now >= run.next_poll]
        if self._limit and not self._is_reserving() and not all(run.has_slot for run in due):
            waiting = [run for run in self._runs.values() if not run.has_slot]
            reserve = partial(self._reserve, self._limit, [run.first_key for run in waiting])
            self._submit(reserve, partial(self._on_reserved, waiting), *waiting)
        for run in due:
            if run.has_slot and not run.is_busy:
                launch = partial(self._launcher.launch, run.target, run.note)
                self._submit(launch, partial(self._on_launched, run), run)

    def _reserve(self, limit: ConcurrencyLimit, keys: list[RunKey]) -> set[RunKey]:
        reserved = limit.reserve(keys)
        if self._is_closed:  # they won't be launched
            limit.release(*reserved)
        return reserved

    def _on_reserved(self, waiting: list[MonitoredRun], reserved: set[RunKey]) -> None:
        now, policy = self._timing.monotonic(), self._timing.ask_for_slot
        for run in waiting:
            run.since = run.next_poll = now  # the timeout excludes the wait for a slot
            run.failing_since = run.unreachable_since = None
            run.has_slot = run.first_key in reserved
        if not (others := [run for run in waiting if not run.has_slot]):
            return
        pause_s = min(policy.max_s, policy.first_s * self._current_run.count_active_runs())
        next_poll = now + pause_s * uniform(0.5, 1.5)  # noqa: S311 - to spread requests
        for run in others:
            run.next_poll = next_poll
            if run.target not in self._logged_waiting:
                self._logged_waiting.add(run.target)
                self._log.info(
                    f"{run.target.name} waits for a slot: Airflow '{self._client.instance}' has as "
                    "many active DAG runs as `limits.max_active_runs` allows."
                )

    def _release(self, run: MonitoredRun) -> None:
        """Release a run's slot, unless it is detached, and let waiting runs ask for it at once."""
        if self._limit is None:
            return
        if not run.is_detached:
            self._limit.release(run.first_key, run.key)
        for other in self._runs.values():
            if not other.has_slot:
                other.next_poll = self._timing.monotonic()

    def _on_launched(self, run: MonitoredRun, dag_run: DagRun) -> None:
        if self._limit is not None:
            is_detached = not run.trigger.wait
            self._limit.settle(run.first_key, dag_run, is_detached=is_detached)
        self._launched.append((run, dag_run))
        self._update(run, dag_run)
        if not run.trigger.wait:
            run.is_detached = True
            self._current_run.detach(run.key)
            self._log.info(
                f"{run.target.name} in {self._client.instance} is not waited for (`trigger.wait: "
                "false`): when its run ends, observation reports it."
            )
            self._end(run)

    # Polling

    def _is_polling(self) -> bool:
        return any(run.is_active and run.is_busy for run in self._runs.values())

    def _poll_due(self, now: float) -> None:
        active = [run for run in self._runs.values() if run.is_active]
        # All active runs are polled together.
        if not self._is_polling() and any(now >= run.next_poll for run in active):
            queued = [run for run in active if run.is_queued]
            if not any(now >= run.next_pause_check for run in queued):
                queued = []
            for run in queued:
                run.plan_pause_check(self._timing.check_paused, now)
            keys, dag_ids = [run.key for run in active], [run.target.dag_id for run in queued]
            poll = partial(self._poll, keys, dag_ids)
            self._submit(poll, partial(self._on_polled, active), *active)
        if active and now >= self._next_task_list:
            self._next_task_list = math.inf  # one list at a time: answers may overtake each other
            fetch = partial(self._client.fetch_running_tasks, _MAX_RUNNING_TASKS)
            self._pool.submit(fetch, self._on_tasks_listed)

    def _poll(self, keys: list[RunKey], queued_dag_ids: list[str]) -> _Polled:
        # The DAGs first: a run that is queued after its DAG was seen paused has not started.
        stuck = fetch_stuck_dags(self._client, queued_dag_ids)
        return stuck, fetch_dag_runs(self._client, keys)

    def _on_polled(self, polled: list[MonitoredRun], answer: _Polled) -> None:
        stuck, found = answer
        for run in polled:
            dag_run = found[run.key]
            dag = stuck.get(run.target.dag_id)
            if isinstance(dag_run, AirflowError):
                self._handle_error(run, dag_run)
            elif dag is None or dag_run.state != "queued":
                self._update(run, dag_run)
            elif isinstance(dag, DagNotFoundError):
                self._give_up(run, dag)
            else:
                url, airflow = self._client.build_dag_url(dag.dag_id), self._client.instance
                self._give_up(run, DagPausedError(airflow, dag.dag_id, url, dag_run.run_id))

    def _update(self, run: MonitoredRun, dag_run: DagRun) -> None:
        """Record a run's state, log a change, and plan the next poll."""
        now, name = self._timing.monotonic(), run.target.name
        run.failing_since = run.unreachable_since = None
        current_run = self._current_run
        run.is_shared = not (current_run.is_first and current_run.owns(run.target, dag_run))
        is_taken_over = run.dag_run is None and run.is_shared
        if run.dag_run is None:
            url = self._client.build_run_url(dag_run.dag_id, dag_run.run_id)
            self._log.info(f"{name} is {dag_run.state} in {self._client.instance}: {url}")
            run.next_pause_check = now + self._timing.check_paused.first_s
        elif run.dag_run.state != dag_run.state:
            self._log.info(f"{name} is {dag_run.state} in {self._client.instance}.")
        run.dag_run = dag_run
        run.plan_poll(self._timing.poll_run, now)
        if dag_run.is_finished:
            # Observation may be about to report the run: a moment ago, it had no owner.
            run.next_poll = now + self._timing.takeover_s if is_taken_over else now
        elif now >= run.deadline and run.trigger.wait:
            self._time_out(run, dag_run)

    def _on_tasks_listed(
        self, answer: dict[RunKey, list[TaskInstance]] | AirflowError | None
    ) -> None:
        self._next_task_list = self._timing.monotonic() + self._timing.list_tasks_s
        if not isinstance(answer, dict):  # too many, or unreadable; they are only for the log
            return
        for run in [run for run in self._runs.values() if run.is_active]:
            tasks = ", ".join(sorted(map(name_task, answer.get(run.key, ()))))
            if tasks and tasks != run.running_tasks:
                self._log.info(f"{run.target.name} runs {tasks}.")
            run.running_tasks = tasks

    # Ending

    def _fetch_outcomes_due(self, now: float) -> None:
        for run in self._runs.values():
            dag_run = run.dag_run
            if dag_run and dag_run.is_finished and not run.is_busy and now >= run.next_poll:
                if run.is_shared and self._is_reported_by_another(dag_run):
                    run.next_poll = now + self._timing.run_group_s
                    continue
                fetch = partial(self._fetch_outcome, dag_run)
                self._submit(fetch, partial(self._on_outcome_fetched, run), run)

    def _is_reported_by_another(self, dag_run: DagRun) -> bool:
        """Return whether another Dagster run has to report a DAG run first, and has not yet."""
        instance, airflow = self._current_run.instance, self._client.instance
        self._heartbeats.measure(fetch_launching_runs(instance, airflow))
        # Attempts that wait for this one are not at work.
        owners = self._current_run.find_earlier_owners(dag_run, self._heartbeats.is_at_work)
        reported = fetch_reported_runs(instance, airflow, [dag_run])
        return bool(owners) and not reported.is_end_reported_by(owners, dag_run)

    def _fetch_outcome(self, dag_run: DagRun) -> Outcome:
        rule = self._dags[dag_run.dag_id].success_when
        outcome = fetch_outcome(self._client, dag_run, rule)
        return outcome if outcome.is_success else add_log_tails(self._client, outcome)

    def _on_outcome_fetched(self, run: MonitoredRun, outcome: Outcome) -> None:
        run.outcome = outcome
        self._end(run)

    def _time_out(self, run: MonitoredRun, dag_run: DagRun) -> None:
        url = self._client.build_run_url(*dag_run.key)
        message = (
            f"still has run '{dag_run.run_id}' of DAG '{dag_run.dag_id}' {dag_run.state} after "
            f"{run.trigger.timeout:.0f} s, which is its `trigger.timeout`: raise that if it needs "
            "longer."
        )
        goes_on = RunLostError(self._client.instance, f"{message} The run stays active: {url}")
        is_stopped = RunLostError(self._client.instance, f"{message} It was stopped: {url}")

        def on_stopped(answer: DagRun | AirflowError) -> None:
            run.is_busy = False
            if isinstance(answer, AirflowError):
                self._log.warning(f"{run.target.name} could not be stopped: {answer}")
                self._give_up(run, goes_on)
            elif answer.is_success:  # it ended after the last poll
                self._update(run, answer)
            else:
                self._give_up(run, is_stopped)

        if run.trigger.on_timeout == "leave" or not self._current_run.owns(run.target, dag_run):
            self._give_up(run, goes_on)
        else:
            run.is_busy = True
            self._pool.submit(partial(self._stop, dag_run), on_stopped)

    def _stop(self, dag_run: DagRun) -> DagRun:
        stopped = self._client.stop_run(*dag_run.key)
        if stopped.is_success:  # it ended after the last poll
            return stopped
        self._timing.sleep(self._timing.repeat_stop_s)
        return self._client.stop_run(*dag_run.key, again=True)

    def _handle_error(self, run: MonitoredRun, error: AirflowError) -> None:
        now = self._timing.monotonic()
        if (end := run.find_give_up_error(error, now, self._timing)) is not None:
            self._give_up(run, end)
            return
        # A failed trigger is a problem of one target. Others are the instance's, and logged once.
        problem = type(error), run.target if isinstance(error, RunNotStartedError) else None
        if now - self._logged_problems.get(problem, -math.inf) >= self._timing.log_again_s:
            self._logged_problems[problem] = now
            self._log.warning(f"{error} Dagster keeps waiting.")
        timing = self._timing
        run.plan_poll(timing.unexpected_answer if run.has_slot else timing.ask_for_slot, now)

    def _give_up(self, run: MonitoredRun, error: AirflowError) -> None:
        run.error = error
        self._current_run.detach(run.key)
        self._log.error(str(error))
        self._end(run)

    def _end(self, run: MonitoredRun) -> None:
        self._ended.append(self._runs.pop(run.target))
        self._release(run)
        self._launcher.forget(run.target)
