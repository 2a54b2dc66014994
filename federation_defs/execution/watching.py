"""The DAG runs of a step, from their trigger to their end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.records import Dag, DagRun
from federation_defs.declaration import DagDeclaration, TriggerDeclaration
from federation_defs.errors import (
    AirflowError,
    DagNotFoundError,
    DagPausedError,
)
from federation_defs.execution.admission import SLOT_S, Admission
from federation_defs.execution.attempt import Attempt, Target
from federation_defs.execution.calls import Calls
from federation_defs.execution.failures import (
    build_deleted_error,
    build_timeout_error,
)
from federation_defs.execution.patience import bear
from federation_defs.execution.slots import Slots
from federation_defs.execution.starting import Starter
from federation_defs.execution.stopping import Stopper
from federation_defs.execution.telling import Teller
from federation_defs.execution.waiting import (
    TASKS_S,
    Key,
    Looked,
    Wait,
    fetch_dags_of,
    fetch_tasks_told,
    fetch_waited,
)
from federation_defs.verdicts import Verdict, add_log_tails, fetch_verdict

STOP_S = 50.0  # Dagster gives a run that is canceled a minute (`cancel_timeout_seconds`)


class Watch:
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
        attempt: Attempt,
        dags: Mapping[str, DagDeclaration],
        slots: Slots,
        teller: Teller,
    ) -> None:
        self._client = client
        self._attempt = attempt
        self._dags = dags
        self._teller = teller
        self._starter = Starter(client, attempt, dags)
        self._stopper = Stopper(client, attempt, dags, self._starter, teller)
        self._waits: dict[Target, Wait] = {}
        self._over: list[Wait] = []
        self._calls = Calls(client)
        self._admission = Admission(client, dags, slots, teller, self._calls)
        self._next_tasks = time.monotonic() + TASKS_S
        self._is_looking = False

    def add(self, target: Target) -> None:
        """Looks after a target from now on."""
        trigger = self._get_trigger(target)
        self._teller.warn_of_short_timeout(target, trigger.timeout)
        self._waits[target] = Wait.begin(target, trigger.timeout)

    def turn(self) -> list[Wait]:
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
        self._stopper.close()

    def interrupt(self) -> None:
        """Has the runs stopped if the Dagster run is canceled. If it is interrupted and not
        canceled, as by the end of the machine that it ran on, they are left to its retry."""
        if not self._stopper.stop_if_canceled(STOP_S):
            self._teller.warn("Interrupted, and not canceled: DAG runs that were started go on.")

    def _get_trigger(self, target: Target) -> TriggerDeclaration:
        return self._dags[target.dag_id].trigger

    def _start_due(self, now: float) -> None:
        for one in self._waits.values():
            if one.run is not None or one.is_busy or now < one.next_look:
                continue
            if not self._admission.admit(one, self._waits.values(), now):
                break
            one.is_busy = True
            note = self._teller.build_note(one.target)
            act = partial(self._starter.start, one.target, note)
            self._calls.ask(act, partial(self._on_started, one))

    def _look_if_due(self, now: float) -> None:
        """Asks how all runs are doing that go on, if it is time for one of them."""
        going_on = [one for one in self._waits.values() if one.is_going_on and not one.is_busy]
        if not self._is_looking and any(now >= one.next_look for one in going_on):
            self._is_looking = True
            keys = [one.key for one in going_on]
            act = partial(fetch_waited, self._client, keys)
            self._calls.ask(act, partial(self._on_look, going_on))
        if going_on and now >= self._next_tasks:
            self._next_tasks = now + TASKS_S
            self._calls.ask(partial(fetch_tasks_told, self._client), self._on_tasks)
        queued = [one for one in going_on if one.is_queued]
        if any(now >= one.next_pause_check for one in queued):
            for one in queued:
                one.plan_next_pause_check(now)
            dag_ids = list({one.target.dag_id: None for one in queued})
            act = partial(fetch_dags_of, self._client, dag_ids)
            self._calls.ask(act, partial(self._on_dags, queued))

    def _await(self) -> None:
        """Returns when something was answered, or it is time for something."""
        due = [
            one.next_look
            for one in self._waits.values()
            if not one.is_busy and not (self._is_looking and one.is_going_on)
        ]
        now = time.monotonic()
        soonest = min(due, default=now + (SLOT_S if self._waits else 0))
        self._calls.tell_next(max(0.0, soonest - now))

    def _on_started(self, one: Wait, answer: DagRun | AirflowError) -> None:
        one.is_busy = False
        if isinstance(answer, AirflowError):
            self._bear(one, answer)
            return
        if self._get_trigger(one.target).wait:
            self._see(one, answer)
            return
        self._teller.tell_run(one, answer)
        one.run = answer
        one.is_left = True
        self._teller.tell_unwaited(one.target)
        self._leave(one)
        self._finish(one)

    def _on_look(
        self,
        looked_after: list[Wait],
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

    def _see(self, one: Wait, run: DagRun) -> None:
        """Takes in how a run is doing."""
        now = time.monotonic()
        one.odd_since = one.away_since = None
        self._teller.tell_run(one, run)
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
                self._calls.ask(partial(self._judge, run), partial(self._on_verdict, one))

    def _judge(self, run: DagRun) -> Verdict:
        """What became of a run; of one that failed with its logs."""
        verdict = fetch_verdict(self._client, run, self._dags[run.dag_id].success_when)
        return verdict if verdict.is_success else add_log_tails(self._client, verdict)

    def _on_verdict(self, one: Wait, answer: Verdict | AirflowError) -> None:
        one.is_busy = False
        if isinstance(answer, AirflowError):
            self._bear(one, answer)
            return
        one.verdict = answer
        self._finish(one)

    def _on_dags(
        self, queued: list[Wait], answer: dict[str, Dag | AirflowError] | AirflowError
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
                    self._teller.tell_tasks(one, answer.get(one.key, ""))

    def _bear(self, one: Wait, error: AirflowError) -> None:
        """Goes on waiting for as long as it makes sense."""
        now = time.monotonic()
        if (end := bear(one, error, now)) is not None:
            self._fail(one, end)
            return
        self._teller.tell_trouble(error, one.target)
        one.plan_next_look(now)

    def _time_out(self, one: Wait, run: DagRun, waited_s: float) -> None:
        on_timeout = self._get_trigger(one.target).on_timeout
        if on_timeout == "leave" or not self._attempt.owns(one.target, run):
            error = build_timeout_error(self._client, run, waited_s, is_stopped=False)
            self._fail(one, error)
            return
        one.is_busy = True
        act = partial(self._client.stop_run, run.dag_id, run.run_id)
        self._calls.ask(act, partial(self._on_stopped, one, run, waited_s))

    def _on_stopped(
        self, one: Wait, run: DagRun, waited_s: float, answer: DagRun | AirflowError
    ) -> None:
        one.is_busy = False
        if isinstance(answer, DagRun) and answer.is_success:  # it ended between our look and word
            self._see(one, answer)
            return
        is_stopped = isinstance(answer, DagRun)
        if isinstance(answer, AirflowError):
            self._teller.warn(f"It could not be stopped: {answer}")
        self._fail(one, build_timeout_error(self._client, run, waited_s, is_stopped=is_stopped))

    def _fail(self, one: Wait, error: AirflowError) -> None:
        self._teller.tell_failed(error)
        one.error = error
        self._leave(one)
        self._finish(one)

    def _leave(self, one: Wait) -> None:
        """Lets observation report the run, which goes on without us, or was not judged."""
        run_id = one.run.run_id if one.run else self._attempt.build_run_id(one.target)
        self._attempt.leave((one.target.dag_id, run_id))

    def _finish(self, one: Wait) -> None:
        if not one.is_over:
            one.is_over = True
            self._over.append(one)
            self._starter.forget(one.target)
