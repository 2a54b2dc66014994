"""The DAG runs of a step, from launch to outcome."""

from __future__ import annotations

import math
from functools import partial
from random import uniform

from federation_defs.airflow.models import Dag, DagRun, RunKey
from federation_defs.dagster_io.run_tags import Target
from federation_defs.errors import (
    AirflowError,
    DagNotFoundError,
    DagPausedError,
    RunLostError,
    RunNotStartedError,
)
from federation_defs.execution.concurrency import ConcurrencyLimit
from federation_defs.execution.context import StepContext
from federation_defs.execution.launcher import Launcher
from federation_defs.execution.polling import (
    MonitoredRun,
    fetch_dags,
    fetch_running_tasks,
    fetch_runs,
)
from federation_defs.outcome import Outcome, add_log_tails, fetch_outcome
from federation_defs.threads import CallPool


class Monitor:
    """Launches targets, polls their DAG runs and fetches their outcomes.

    All requests are made in threads. The main thread only waits, so Dagster can interrupt it while
    a trigger is under way. `CancellationWatcher` then waits for the trigger and stops its run.

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
        threads = client.max_connections
        self._calls = CallPool(threads, f"airflow-{client.instance}")
        self._next_task_list = self._timing.monotonic() + self._timing.list_tasks_s
        self._is_polling = False
        self._is_reserving = False
        self._queued: set[Target] = set()
        self._problems: dict[tuple[type, Target | None], float] = {}

    def add(self, target: Target, note: str) -> None:
        """Launch a target, and monitor its run from now on.

        Args:
            note: The note that a new DAG run gets.
        """
        now = self._timing.monotonic()
        timeout_s = self._dags[target.dag_id].trigger.timeout
        next_pause_check = now + self._timing.check_paused.pause_s(1)
        self._runs[target] = MonitoredRun(target, timeout_s, note, now, now, next_pause_check)

    def wait(self) -> tuple[list[tuple[MonitoredRun, DagRun]], list[MonitoredRun]]:
        """Do what is due, and wait until a request is answered or something else is due.

        Returns:
            The runs that were launched, each with its state then. And those that need no more
            monitoring: each has an outcome or an error, or is detached.
        """
        now = self._timing.monotonic()
        self._launch_due(now)
        self._poll_due(now)
        self._fetch_outcomes_due(now)
        self._calls.run_callbacks(self._get_pause_s())
        launched, self._launched = self._launched, []
        ended, self._ended = self._ended, []
        for run in ended:
            del self._runs[run.target]
            self._release(run)
        return launched, ended

    def close(self) -> None:
        """End all monitoring. DAG runs go on."""
        for run in self._runs.values():
            self._release(run)
        self._calls.close()

    def _get_pause_s(self) -> float:
        """Return the seconds until something is due; 0 if nothing is monitored."""
        if not self._runs:
            return 0.0
        due = [
            run.next_poll
            for run in self._runs.values()
            if not run.is_busy
            and not (self._is_polling and run.is_active)
            and not (self._is_reserving and not run.is_admitted)
        ]
        soonest = min(due, default=math.inf) - self._timing.monotonic()
        return min(self._timing.poll_run.max_s, max(0.0, soonest))

    # Launching

    def _launch_due(self, now: float) -> None:
        due = [
            run
            for run in self._runs.values()
            if run.dag_run is None and not run.is_busy and now >= run.next_poll
        ]
        if self._limit is not None and not all(run.is_admitted for run in due):
            self._reserve(self._limit)
        for run in due:
            if run.is_admitted or self._limit is None:
                run.is_busy = True
                launch = partial(self._launcher.launch, run.target, run.note)
                self._calls.submit(launch, partial(self._on_launched, run))

    def _reserve(self, limit: ConcurrencyLimit) -> None:
        """Ask which of the runs that wait for a free place may be launched."""
        if self._is_reserving:
            return
        self._is_reserving = True
        waiting = [run for run in self._runs.values() if not run.is_admitted]
        keys = [self._build_first_key(run.target) for run in waiting]
        self._calls.submit(partial(limit.reserve, keys), partial(self._on_reserved, waiting))

    def _on_reserved(self, waiting: list[MonitoredRun], answer: set[RunKey] | AirflowError) -> None:
        self._is_reserving = False
        if isinstance(answer, AirflowError):
            for run in waiting:
                self._handle_error(run, answer)
            return
        now = self._timing.monotonic()
        for run in waiting:
            run.restart_clock(now)
            run.is_admitted = self._build_first_key(run.target) in answer
        if not (queued := [run for run in waiting if not run.is_admitted]):
            return
        policy = self._timing.ask_for_slot
        pause_s = min(policy.max_s, policy.first_s * self._current_run.count_active_runs())
        next_poll = now + pause_s * uniform(0.5, 1.5)  # noqa: S311 - so that waiters ask apart
        for run in queued:
            run.next_poll = next_poll
            if run.target not in self._queued:
                self._queued.add(run.target)
                self._log.info(
                    f"{run.target.name} waits for its turn: as many DAG runs of Airflow "
                    f"'{self._client.instance}' as are allowed go on."
                )

    def _release(self, run: MonitoredRun) -> None:
        """Give back a run's place, unless it is detached, and ask anew for the others."""
        if self._limit is None:
            return
        self._limit.release(self._build_first_key(run.target))
        if run.dag_run is not None and not run.is_detached:
            self._limit.release(run.key)
        for other in self._runs.values():
            if not other.is_admitted:
                other.next_poll = self._timing.monotonic()

    def _build_first_key(self, target: Target) -> RunKey:
        return target.dag_id, self._current_run.build_run_id(target)

    def _on_launched(self, run: MonitoredRun, answer: DagRun | AirflowError) -> None:
        run.is_busy = False
        if isinstance(answer, AirflowError):
            self._handle_error(run, answer)
            return
        if self._limit is not None:
            self._limit.settle(self._build_first_key(run.target), answer)
        self._launched.append((run, answer))
        self._update(run, answer)
        if not self._dags[run.target.dag_id].trigger.wait:
            run.is_detached = True
            self._leave_to_observation(run)
            self._log.info(
                f"{run.target.name} is not waited for (`trigger.wait: false`): when its run ends, "
                "observation reports it."
            )
            self._end(run)

    # Polling

    def _poll_due(self, now: float) -> None:
        active = [run for run in self._runs.values() if run.is_active and not run.is_busy]
        # All at once, as one request tells of all of them.
        if not self._is_polling and any(now >= run.next_poll for run in active):
            self._is_polling = True
            fetch = partial(fetch_runs, self._client, [run.key for run in active])
            self._calls.submit(fetch, partial(self._on_polled, active))
        if active and now >= self._next_task_list:
            self._next_task_list = now + self._timing.list_tasks_s
            self._calls.submit(partial(fetch_running_tasks, self._client), self._on_tasks_listed)
        queued = [run for run in active if run.is_queued]
        if any(now >= run.next_pause_check for run in queued):
            for run in queued:
                run.plan_pause_check(self._timing.check_paused, now)
            dag_ids = list({run.target.dag_id: None for run in queued})
            fetch = partial(fetch_dags, self._client, dag_ids)
            self._calls.submit(fetch, partial(self._on_dags_fetched, queued))

    def _on_polled(
        self,
        polled: list[MonitoredRun],
        answer: dict[RunKey, DagRun | AirflowError | None] | AirflowError,
    ) -> None:
        self._is_polling = False
        for run in polled:
            if run.is_over or run.is_busy or run.dag_run is None:
                continue
            found = answer if isinstance(answer, AirflowError) else answer[run.key]
            if found is None:
                found = RunLostError(
                    self._client.instance,
                    f"no longer has run '{run.dag_run.run_id}' of DAG '{run.dag_run.dag_id}': it "
                    "was deleted while we waited. Materialize the asset again for a new run.",
                )
            if isinstance(found, AirflowError):
                self._handle_error(run, found)
            else:
                self._update(run, found)

    def _update(self, run: MonitoredRun, dag_run: DagRun) -> None:
        """Take over a run's state, and log it if it changed."""
        now, name = self._timing.monotonic(), run.target.name
        run.failing_since = run.unreachable_since = None
        if run.dag_run is None:
            url = self._client.build_run_url(dag_run.dag_id, dag_run.run_id)
            self._log.info(f"{name} is {dag_run.state} in {self._client.instance}: {url}")
        elif run.dag_run.state != dag_run.state:
            self._log.info(f"{name} is {dag_run.state} in {self._client.instance}.")
        run.dag_run = dag_run
        run.plan_poll(self._timing.poll_run, now)
        if dag_run.is_finished:
            run.next_poll = now
        elif now >= run.deadline and self._dags[dag_run.dag_id].trigger.wait:
            self._time_out(run, dag_run, now - run.since)

    def _on_dags_fetched(
        self, queued: list[MonitoredRun], answer: dict[str, Dag | AirflowError] | AirflowError
    ) -> None:
        """Give up runs that stay queued, because their DAG is paused or gone."""
        if isinstance(answer, AirflowError):
            return  # the polls handle it
        for run in queued:
            dag = answer[run.target.dag_id]
            if run.is_over or run.is_busy or not run.is_queued or run.dag_run is None:
                continue
            if isinstance(dag, DagNotFoundError):
                self._give_up(run, dag)
            elif isinstance(dag, Dag) and dag.is_paused:
                url, run_id = self._client.build_dag_url(dag.dag_id), run.dag_run.run_id
                error = DagPausedError(self._client.instance, dag.dag_id, url, run_id)
                self._give_up(run, error)

    def _on_tasks_listed(self, answer: dict[RunKey, str] | AirflowError | None) -> None:
        if not isinstance(answer, dict):
            return
        for run in [run for run in self._runs.values() if run.is_active]:
            tasks = answer.get(run.key, "")
            if tasks and tasks != run.running_tasks:
                self._log.info(f"{run.target.name} runs {tasks}.")
            run.running_tasks = tasks

    # Ending

    def _fetch_outcomes_due(self, now: float) -> None:
        for run in self._runs.values():
            dag_run = run.dag_run
            if dag_run is None or not dag_run.is_finished or run.is_busy or now < run.next_poll:
                continue
            run.is_busy = True
            fetch = partial(self._fetch_outcome, dag_run)
            self._calls.submit(fetch, partial(self._on_outcome_fetched, run))

    def _fetch_outcome(self, dag_run: DagRun) -> Outcome:
        rule = self._dags[dag_run.dag_id].success_when
        outcome = fetch_outcome(self._client, dag_run, rule)
        return outcome if outcome.is_success else add_log_tails(self._client, outcome)

    def _on_outcome_fetched(self, run: MonitoredRun, answer: Outcome | AirflowError) -> None:
        run.is_busy = False
        if isinstance(answer, AirflowError):
            self._handle_error(run, answer)
            return
        run.outcome = answer
        self._end(run)

    def _time_out(self, run: MonitoredRun, dag_run: DagRun, waited_s: float) -> None:
        on_timeout = self._dags[dag_run.dag_id].trigger.on_timeout
        if on_timeout == "leave" or not self._current_run.owns(run.target, dag_run):
            self._give_up(run, self._build_timeout_error(dag_run, waited_s, "The run goes on"))
            return
        run.is_busy = True
        stop = partial(self._stop, dag_run)
        self._calls.submit(stop, partial(self._on_stopped, run, dag_run, waited_s))

    def _stop(self, dag_run: DagRun) -> DagRun:
        stopped = self._client.stop_run(*dag_run.key)
        if stopped.is_success:  # it ended after the last poll
            return stopped
        self._timing.sleep(self._timing.repeat_stop_s)
        return self._client.stop_run(*dag_run.key, again=True)

    def _on_stopped(
        self, run: MonitoredRun, dag_run: DagRun, waited_s: float, answer: DagRun | AirflowError
    ) -> None:
        run.is_busy = False
        ending = "It was stopped"
        if isinstance(answer, AirflowError):
            self._log.warning(f"It could not be stopped: {answer}")
            ending = "The run goes on"
        elif answer.is_success:
            self._update(run, answer)
            return
        self._give_up(run, self._build_timeout_error(dag_run, waited_s, ending))

    def _build_timeout_error(self, dag_run: DagRun, waited_s: float, ending: str) -> RunLostError:
        url = self._client.build_run_url(dag_run.dag_id, dag_run.run_id)
        return RunLostError(
            self._client.instance,
            f"still has run '{dag_run.run_id}' of DAG '{dag_run.dag_id}' {dag_run.state} after "
            f"{waited_s:.0f} s, which is its `trigger.timeout`. {ending}: {url}",
        )

    def _handle_error(self, run: MonitoredRun, error: AirflowError) -> None:
        now = self._timing.monotonic()
        if (end := run.find_give_up_error(error, now, self._timing)) is not None:
            self._give_up(run, end)
            return
        # A trigger's error is the target's own; others are of the instance, and logged once.
        problem = type(error), run.target if isinstance(error, RunNotStartedError) else None
        if now - self._problems.get(problem, -math.inf) >= self._timing.log_again_s:
            self._problems[problem] = now
            self._log.warning(f"{error} Waiting on.")
        run.plan_poll(self._timing.unexpected_answer, now)

    def _give_up(self, run: MonitoredRun, error: AirflowError) -> None:
        run.error = error
        self._leave_to_observation(run)
        self._log.error(str(error))
        self._end(run)

    def _leave_to_observation(self, run: MonitoredRun) -> None:
        """Let observation report the run's end."""
        key = run.key if run.dag_run else self._build_first_key(run.target)
        self._current_run.detach(key)

    def _end(self, run: MonitoredRun) -> None:
        if not run.is_over:
            run.is_over = True
            self._ended.append(run)
            self._launcher.forget(run.target)
