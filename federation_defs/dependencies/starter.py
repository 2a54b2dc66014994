"""Requests runs of DAGs for the events that led to them: in order, not more than may run at a time,
and as `only_if` and `reruns` say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import dagster as dg

from federation_defs.airflow.api import SERVER_PAGE
from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun
from federation_defs.dagster_io.event_log import fetch_event, fetch_observed
from federation_defs.dagster_io.run_tags import (
    Request,
    fetch_active_requests,
    find_run_after,
    has_requested,
    read_request,
)
from federation_defs.declaration import DagDeclaration
from federation_defs.dependencies.decider import Cause, DagState, drop, find_due, settle
from federation_defs.dependencies.happenings import build_record
from federation_defs.dependencies.only_if import ask
from federation_defs.dependencies.record import Run, Skip
from federation_defs.errors import AirflowError, DecisionError
from federation_defs.events import build_decision_events
from federation_defs.naming import (
    RUN_ID_PREFIX,
    build_asset_key,
    build_cause_tag,
    build_dag_id,
    build_monitor_tags,
    build_run_id,
)
from federation_defs.redaction import redact
from federation_defs.timing import Timing

_MAX_RUNS = 10 * SERVER_PAGE
_MAX_FAILURES = 3  # of `only_if`, about one event
_DECIDE_S = 20.0  # for asking `only_if`; Dagster ends a tick after 60 s
_MAX_DROPS = 100

_Event = dg.AssetObservation | dg.AssetCheckEvaluation


class Starter:
    """Requests the runs of one tick."""

    def __init__(self, client: AirflowClient, instance: dg.DagsterInstance, timing: Timing) -> None:
        self._client = client
        self._instance = instance
        self._timing = timing
        self._decide_until = timing.monotonic() + _DECIDE_S
        self._requests: list[dg.RunRequest] = []
        self._events: list[_Event] = []
        self._waiting: list[str] = []
        self._led: dict[tuple[str, str], str] = {}  # by DAG and cause, what this tick requested

    def start(
        self, dag_id: str, dag: DagDeclaration, state: DagState, due: Sequence[tuple[Cause, ...]]
    ) -> DagState:
        """Request as many of a DAG's due runs as may begin now, and return its state after that."""
        if (dropped := self._find_drop(dag_id, due[0])) is not None:
            kept = [causes for causes in due if causes[-1].position > dropped]
            self._note(dag_id, f"{len(due) - len(kept)} were dropped")
            state, due = drop(state, dropped), kept
        most = dag.trigger.at_once if dag.trigger.runs == "each" else 1
        active, why = self._find_active(dag_id, dag)
        for number, causes in enumerate(due):
            if has_requested(self._instance, self._build_run_key(dag_id, causes)):
                state = settle(state, causes)  # the tick's cursor was not stored
                continue
            led = self._find_led(dag_id, dag, causes[-1])
            if led is not None and dag.trigger.reruns == "ignore":
                state = settle(state, causes)
                continue
            if active is None or len(active) >= most or led in active:
                self._wait(dag_id, due[number:], why)
                break
            answer, state = self._decide(dag_id, dag, state, causes)
            if answer is None:
                self._wait(dag_id, due[number:], "`only_if` gave no answer")
                break
            if isinstance(answer, Run):
                self._request(dag_id, causes, Request(_refer(causes), answer.conf, led))
                begun = led or self._build_run_key(dag_id, causes)  # its run id is not known yet
                active.add(begun)
                self._led[dag_id, causes[-1].label] = begun
            state = settle(state, causes)
        return state

    def settle_requested(self, dag_id: str, dag: DagDeclaration, state: DagState) -> DagState:
        """Return the state without what is due, if that was requested. The tick that did so may
        have failed before its cursor was stored. With `when: all`, the next event would otherwise
        lead to another run for the same causes."""
        for causes in find_due(dag, state, ()):
            if has_requested(self._instance, self._build_run_key(dag_id, causes)):
                state = settle(state, causes)
        return state

    def build_result(self, cursor: str) -> dg.SensorResult:
        """Build what the sensor returns."""
        summary = "; ".join(self._waiting) or "Nothing has happened upstream that starts a DAG."
        return dg.SensorResult(
            run_requests=self._requests,
            asset_events=self._events,
            skip_reason=None if self._requests or self._events else summary,
            cursor=cursor,
        )

    def _request(self, dag_id: str, causes: Sequence[Cause], request: Request) -> None:
        airflow, last = self._client.instance, causes[-1]
        self._requests.append(
            dg.RunRequest(
                run_key=self._build_run_key(dag_id, causes),
                asset_selection=[build_asset_key(airflow, dag_id)],
                tags={
                    **build_monitor_tags(airflow),
                    **request.build_tags(airflow, dag_id),
                    build_cause_tag(airflow, dag_id): last.label,
                },
            )
        )

    def _build_run_key(self, dag_id: str, causes: Sequence[Cause]) -> str:
        """Build the key by which Dagster creates one run for these causes, if a tick is repeated
        after a crash."""
        return f"{self._client.instance}/{dag_id} {causes[-1].position}"

    # What runs

    @cached_property
    def _active_requests(self) -> list[dg.DagsterRun]:
        return fetch_active_requests(self._instance, self._client.instance)

    @cached_property
    def _active_runs(self) -> list[DagRun] | str:
        """The active DAG runs with ids of ours, or why they are not known."""
        try:
            page = self._client.fetch_active_runs(_MAX_RUNS, RUN_ID_PREFIX)
        except AirflowError as error:
            return str(error)
        if page is None or page.has_shrunk:
            return f"Airflow '{self._client.instance}' has too many active runs to count them"
        return page.entries

    def _find_active(self, dag_id: str, dag: DagDeclaration) -> tuple[set[str] | None, str]:
        """Find the ids of a DAG's runs that Dagster has requested and that have not ended, and say
        so. None if that can't be told, and why.

        Airflow is asked, too: a DAG run goes on without a Dagster run if it is not waited for, or
        if a worker died. One that is older than its time-out does not count.
        """
        runs = [
            run
            for run in self._active_requests
            if any(
                build_dag_id(self._client.instance, key) == dag_id
                for key in run.asset_selection or ()
            )
        ]
        active = {self._find_run_id(dag_id, run) for run in runs}
        if runs and dag.trigger.runs == "latest":
            return active, "a run of it goes on"
        if isinstance(self._active_runs, str):
            return None, self._active_runs
        now = self._timing.utc_now()
        for run in self._active_runs:
            since = run.queued_at or run.start_date or now
            is_overdue = (now - since).total_seconds() > dag.trigger.timeout
            if run.dag_id == dag_id and not is_overdue:
                active.add(run.run_id)
        return active, f"{len(active)} runs of it go on"

    # What an upstream run has led to

    def _find_led(self, dag_id: str, dag: DagDeclaration, cause: Cause) -> str | None:
        """Find the DAG run that an earlier end of the upstream run led to, if that matters."""
        if dag.trigger.reruns == "follow" or not cause.run_id:
            return None
        if (begun := self._led.get((dag_id, cause.label))) is not None:
            return begun
        run = find_run_after(self._instance, self._client.instance, dag_id, cause.label)
        return run and self._find_run_id(dag_id, run)

    def _find_run_id(self, dag_id: str, run: dg.DagsterRun) -> str:
        """Return the id of the DAG run that a Dagster run starts or clears."""
        request = read_request(run, self._client.instance, dag_id)
        return (request and request.clears) or build_run_id(run.root_run_id or run.run_id)

    # What a function of the user decides

    def _decide(
        self, dag_id: str, dag: DagDeclaration, state: DagState, causes: Sequence[Cause]
    ) -> tuple[Run | Skip | None, DagState]:
        """Ask `only_if` about the newest event. No answer: it is asked again at the next tick."""
        if dag.trigger.only_if is None:
            return Run(), state
        if self._timing.monotonic() > self._decide_until:
            return None, state
        airflow, cause = self._client.instance, causes[-1]
        event = fetch_event(self._instance, cause.edge.key, cause.position)
        if event is None:
            return Skip("the event was deleted"), state
        try:
            record = build_record(event, cause.edge.name, f"{airflow}/{dag_id}")
            answer = ask(dag.trigger.only_if, record)
            _refuse_secrets(dag.trigger.only_if, record.upstream, record.downstream, answer)
        except DecisionError as error:
            failures = state.failures + 1
            is_final = failures >= _MAX_FAILURES
            self._report(dag_id, cause, str(error), is_error=True, is_final=is_final)
            if is_final:
                return Skip(str(error)), state
            return None, replace(state, failures=failures)
        said = answer.reason if isinstance(answer, Skip) else "run"
        self._report(dag_id, cause, f"`only_if` says: {said}", is_error=False, is_final=True)
        return answer, state

    def _report(
        self, dag_id: str, cause: Cause, answer: str, *, is_error: bool, is_final: bool
    ) -> None:
        key = build_asset_key(self._client.instance, dag_id)
        self._events += build_decision_events(
            key, cause.edge.name, cause.run_id, answer, is_error=is_error, is_final=is_final
        )

    # What waits

    def _find_drop(self, dag_id: str, first: Sequence[Cause]) -> int | None:
        """Find the position at which a person has dropped what waits, after the first of it."""
        key = build_asset_key(self._client.instance, dag_id)
        events, _ = fetch_observed(self._instance, key, first[0].position, _MAX_DROPS)
        return max((event.position for event in events if event.state == "drop"), default=None)

    def _wait(self, dag_id: str, due: Sequence[Sequence[Cause]], why: str) -> None:
        first = due[0][-1]
        self._note(dag_id, f"{len(due)} wait, the first is {first.label}: {why}")

    def _note(self, dag_id: str, text: str) -> None:
        self._waiting.append(f"{self._client.instance}/{dag_id}: {text}")


def _refer(causes: Sequence[Cause]) -> list[tuple[dg.AssetKey, int]]:
    return [(cause.edge.key, cause.position) for cause in causes]


def _refuse_secrets(function: str, upstream: str, downstream: str, answer: Run | Skip) -> None:
    """Refuse a conf that looks as if it held a secret: it is stored in a tag of the Dagster run.

    Raises:
        DecisionError: It does.
    """
    if isinstance(answer, Run) and answer.conf and redact(answer.conf) != answer.conf:
        raise DecisionError(
            function,
            upstream=upstream,
            downstream=downstream,
            why="answered with a conf that seems to hold a secret, and that Dagster would show; "
            "keep secrets in an Airflow connection",
        )
