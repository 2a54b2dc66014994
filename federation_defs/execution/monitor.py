"""The DAG runs of a step, from their trigger to their end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import Dag, DagRun
from federation_defs.dagster_io.run_tags import CurrentRun, Target
from federation_defs.declaration import DagDeclaration, TriggerDeclaration
from federation_defs.errors import (
    AirflowError,
    CredentialError,
    DagBrokenError,
    DagNotFoundError,
    DagPausedError,
    RunLostError,
    RunNotStartedError,
    UnreachableError,
)
from federation_defs.execution.cancellation import CancellationWatcher
from federation_defs.execution.concurrency import SLOT_S, Admission, Slots
from federation_defs.execution.launcher import Launcher
from federation_defs.execution.polling import (
    TASKS_S,
    Key,
    Looked,
    MonitoredRun,
    fetch_dags_of,
    fetch_tasks_told,
    fetch_waited,
)
from federation_defs.execution.reporter import (
    Reporter,
    build_deleted_error,
    build_silence_error,
    build_timeout_error,
)
from federation_defs.outcome import Outcome, add_log_tails, fetch_outcome
from federation_defs.threads import CallPool

# How long an answer that is none of Airflow's is borne: a gateway's, or one from an upgrade; and
# triggers that fail there, as they do while SQLite is locked.
TROUBLE_S = 600.0

# How long an instance has to be away to be forgiven what was before.
AWAY_S = 60.0

_FINAL = (DagNotFoundError, DagPausedError, DagBrokenError, RunLostError)

_MAY_PASS = (UnreachableError, CredentialError, RunNotStartedError)


def bear(one: MonitoredRun, error: AirflowError, now: float) -> AirflowError | None:
    """What to give a wait up with after this error; None if it goes on.

    It goes on until its time-out while the instance is away, and for ten minutes while that answers
    oddly, if now and then not at all, or there is nothing to sign in with. A trigger that was
    answered, if with a refusal, is not tried again.

    Args:
        now: By the monotonic clock, in seconds.
    """
    if isinstance(error, _FINAL):
        return error
    is_away = isinstance(error, UnreachableError)
    if not is_away:
        one.away_since = None
        one.odd_since = now if one.odd_since is None else one.odd_since
    elif one.away_since is None:
        one.away_since = now
    elif now - one.away_since > AWAY_S:
        one.odd_since = None
    is_refused = one.run is None and not isinstance(error, _MAY_PASS)
    is_odd_for_s = 0.0 if is_away or one.odd_since is None else now - one.odd_since
    if is_refused or is_odd_for_s > TROUBLE_S:
        return error
    if now < one.deadline:
        return None
    if one.run is not None and one.is_going_on:
        return build_silence_error(one.run, now - one.since, error)
    return error  # it was not started, or it is over and its tasks aren't told


STOP_S = 50.0  # Dagster gives a run that is canceled a minute (`cancel_timeout_seconds`)


class Monitor:
    """Looks after targets: starts each, asks how its run is doing, and what became of it.

    All that is asked of Airflow is asked in threads, so that this one is free to be interrupted:
    a trigger that is under way when the run is canceled is seen to its end, and then stopped
    (`stopping`).

    Args:
        dags: What is declared of the instance's DAGs.
    """

    def __init__(
        self,
        client: AirflowClient,
        current_run: CurrentRun,
        dags: Mapping[str, DagDeclaration],
        slots: Slots,
        reporter: Reporter,
    ) -> None:
        self._client = client
        self._current_run = current_run
        self._dags = dags
        self._reporter = reporter
        self._launcher = Launcher(client, current_run, dags)
        self._cancellation = CancellationWatcher(
            client, current_run, dags, self._launcher, reporter
        )
        self._waits: dict[Target, MonitoredRun] = {}
        self._over: list[MonitoredRun] = []
        self._calls = CallPool(
            client.session.transport.http.max_connections, f"airflow-{client.instance}"
        )
        self._admission = Admission(client, dags, slots, reporter, self._calls)
        self._next_tasks = time.monotonic() + TASKS_S
        self._is_looking = False

    def add(self, target: Target) -> None:
        """Looks after a target from now on."""
        trigger = self._get_trigger(target)
        self._reporter.warn_of_short_timeout(target, trigger.timeout)
        self._waits[target] = MonitoredRun.begin(target, trigger.timeout)

    def turn(self) -> list[MonitoredRun]:
        """Does what it is time for; returns when something was answered, with what is over.

        Each of those has a verdict, or an error, or is not waited for.
        """
        now = time.monotonic()
        self._start_due(now)
        self._look_if_due(now)
        self._judge_due(now)
        self._await()
        over, self._over = self._over, []
        for one in over:
            del self._waits[one.target]
            self._admission.dismiss(one)
        return over

    def close(self) -> None:
        """Ends it, whatever is going on."""
        for one in self._waits.values():
            self._admission.dismiss(one)
        self._calls.close()
        self._cancellation.close()

    def interrupt(self) -> None:
        """Has the runs stopped if the Dagster run is canceled. If it is interrupted and not
        canceled, as by the end of the machine that it ran on, they are left to its retry."""
        if not self._cancellation.stop_if_canceled(STOP_S):
            self._reporter.warn("Interrupted, and not canceled: DAG runs that were started go on.")

    def _get_trigger(self, target: Target) -> TriggerDeclaration:
        return self._dags[target.dag_id].trigger

    def _start_due(self, now: float) -> None:
        for one in self._waits.values():
            if one.run is not None or one.is_busy or now < one.next_look:
                continue
            if not self._admission.admit(one, self._waits.values(), now):
                break
            one.is_busy = True
            note = self._reporter.build_note(one.target)
            act = partial(self._launcher.start, one.target, note)
            self._calls.submit(act, partial(self._on_started, one))

    def _look_if_due(self, now: float) -> None:
        """Asks how all runs are doing that go on, if it is time for one of them."""
        going_on = [one for one in self._waits.values() if one.is_going_on and not one.is_busy]
        if not self._is_looking and any(now >= one.next_look for one in going_on):
            self._is_looking = True
            keys = [one.key for one in going_on]
            act = partial(fetch_waited, self._client, keys)
            self._calls.submit(act, partial(self._on_look, going_on))
        if going_on and now >= self._next_tasks:
            self._next_tasks = now + TASKS_S
            self._calls.submit(partial(fetch_tasks_told, self._client), self._on_tasks)
        queued = [one for one in going_on if one.is_queued]
        if any(now >= one.next_pause_check for one in queued):
            for one in queued:
                one.plan_next_pause_check(now)
            dag_ids = list({one.target.dag_id: None for one in queued})
            act = partial(fetch_dags_of, self._client, dag_ids)
            self._calls.submit(act, partial(self._on_dags, queued))

    def _await(self) -> None:
        """Returns when something was answered, or it is time for something."""
        due = [
            one.next_look
            for one in self._waits.values()
            if not one.is_busy and not (self._is_looking and one.is_going_on)
        ]
        now = time.monotonic()
        soonest = min(due, default=now + (SLOT_S if self._waits else 0))
        self._calls.run_callbacks(max(0.0, soonest - now))

    def _on_started(self, one: MonitoredRun, answer: DagRun | AirflowError) -> None:
        one.is_busy = False
        if isinstance(answer, AirflowError):
            self._bear(one, answer)
            return
        if self._get_trigger(one.target).wait:
            self._see(one, answer)
            return
        self._reporter.log_state(one, answer)
        one.run = answer
        one.is_detached = True
        self._reporter.log_detached(one.target)
        self._leave(one)
        self._finish(one)

    def _on_look(
        self,
        looked_after: list[MonitoredRun],
        answer: Looked | AirflowError,
    ) -> None:
        self._is_looking = False
        for one in looked_after:
            if one.is_over or one.is_busy or one.run is None:
                continue
            found = answer if isinstance(answer, AirflowError) else answer[one.key]
            if found is None:
                found = build_deleted_error(self._client, one.run)
            if isinstance(found, AirflowError):
                self._bear(one, found)
            else:
                self._see(one, found)

    def _see(self, one: MonitoredRun, run: DagRun) -> None:
        """Takes in how a run is doing."""
        now = time.monotonic()
        one.odd_since = one.away_since = None
        self._reporter.log_state(one, run)
        one.run = run
        one.plan_next_look(now)
        if run.is_finished:
            one.next_look = now
        elif now >= one.deadline:
            self._time_out(one, run, now - one.since)

    def _judge_due(self, now: float) -> None:
        """Asks what became of the runs that are over."""
        for one in self._waits.values():
            run = one.run
            if run is not None and run.is_finished and not one.is_busy and now >= one.next_look:
                one.is_busy = True
                self._calls.submit(partial(self._judge, run), partial(self._on_verdict, one))

    def _judge(self, run: DagRun) -> Outcome:
        """What became of a run; of one that failed with its logs."""
        outcome = fetch_outcome(self._client, run, self._dags[run.dag_id].success_when)
        return outcome if outcome.is_success else add_log_tails(self._client, outcome)

    def _on_verdict(self, one: MonitoredRun, answer: Outcome | AirflowError) -> None:
        one.is_busy = False
        if isinstance(answer, AirflowError):
            self._bear(one, answer)
            return
        one.outcome = answer
        self._finish(one)

    def _on_dags(
        self, queued: list[MonitoredRun], answer: dict[str, Dag | AirflowError] | AirflowError
    ) -> None:
        """Ends the wait for runs that stay queued, for their DAG is paused or gone."""
        if isinstance(answer, AirflowError):
            return  # who is away, or odd, is told by the looks
        for one in queued:
            dag = answer[one.target.dag_id]
            if one.is_over or one.is_busy or not one.is_queued or one.run is None:
                continue
            if isinstance(dag, DagNotFoundError):
                self._fail(one, dag)
            elif isinstance(dag, Dag) and dag.is_paused:
                url = self._client.build_dag_url(dag.dag_id)
                run_id = one.run.run_id
                self._fail(one, DagPausedError(self._client.instance, dag.dag_id, url, run_id))

    def _on_tasks(self, answer: dict[Key, str] | AirflowError | None) -> None:
        if isinstance(answer, dict):
            for one in self._waits.values():
                if one.is_going_on:
                    self._reporter.log_tasks(one, answer.get(one.key, ""))

    def _bear(self, one: MonitoredRun, error: AirflowError) -> None:
        """Goes on waiting for as long as it makes sense."""
        now = time.monotonic()
        if (end := bear(one, error, now)) is not None:
            self._fail(one, end)
            return
        self._reporter.log_retry(error, one.target)
        one.plan_next_look(now)

    def _time_out(self, one: MonitoredRun, run: DagRun, waited_s: float) -> None:
        on_timeout = self._get_trigger(one.target).on_timeout
        if on_timeout == "leave" or not self._current_run.owns(one.target, run):
            error = build_timeout_error(self._client, run, waited_s, is_stopped=False)
            self._fail(one, error)
            return
        one.is_busy = True
        act = partial(self._client.stop_run, run.dag_id, run.run_id)
        self._calls.submit(act, partial(self._on_stopped, one, run, waited_s))

    def _on_stopped(
        self, one: MonitoredRun, run: DagRun, waited_s: float, answer: DagRun | AirflowError
    ) -> None:
        one.is_busy = False
        if isinstance(answer, DagRun) and answer.is_success:  # it ended between our look and word
            self._see(one, answer)
            return
        is_stopped = isinstance(answer, DagRun)
        if isinstance(answer, AirflowError):
            self._reporter.warn(f"It could not be stopped: {answer}")
        self._fail(one, build_timeout_error(self._client, run, waited_s, is_stopped=is_stopped))

    def _fail(self, one: MonitoredRun, error: AirflowError) -> None:
        self._reporter.log_failure(error)
        one.error = error
        self._leave(one)
        self._finish(one)

    def _leave(self, one: MonitoredRun) -> None:
        """Lets observation report the run, which goes on without us, or was not judged."""
        run_id = one.run.run_id if one.run else self._current_run.build_run_id(one.target)
        self._current_run.detach((one.target.dag_id, run_id))

    def _finish(self, one: MonitoredRun) -> None:
        if not one.is_over:
            one.is_over = True
            self._over.append(one)
            self._launcher.forget(one.target)
