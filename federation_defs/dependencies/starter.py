"""Requests runs of DAGs for the events that led to them: in order, not more than may run at a time,
and as `only_if` and `reruns` say."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property

import dagster as dg

from federation_defs.airflow.api import SERVER_PAGE
from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun
from federation_defs.dagster_io.event_log import fetch_event
from federation_defs.dagster_io.run_tags import (
    Request,
    fetch_active_requests,
    find_run_after,
    has_requested,
    read_request,
)
from federation_defs.declaration import DagDeclaration
from federation_defs.dependencies.decider import Cause, DagState, find_due, find_latched, settle
from federation_defs.dependencies.happenings import build_record
from federation_defs.dependencies.only_if import ask
from federation_defs.dependencies.record import Run, Skip
from federation_defs.errors import AirflowError, DecisionError
from federation_defs.events import build_decision_events
from federation_defs.naming import (
    RUN_ID_PREFIX,
    build_asset_key,
    build_cause_tag,
    build_check_key,
    build_monitor_tags,
    build_run_id,
)
from federation_defs.outcome import join_names
from federation_defs.redaction import has_secrets
from federation_defs.state import describe_problem
from federation_defs.timing import Timing

_MAX_RUNS = 10 * SERVER_PAGE
_MAX_FAILURES = 3  # of `only_if`, about one event
_DECIDE_S = 20.0  # for asking `only_if`; Dagster ends a tick after 60 s
# PostgreSQL's index of tags takes 2,700 bytes (dagster 1.13).
_MAX_CONF = 1000
_MAX_REFERENCES = 20

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

    def start(self, dag_id: str, dag: DagDeclaration, state: DagState) -> DagState:
        """Request as many of a DAG's due runs as may begin now, and return its state after that."""
        if not (due := find_due(dag, state)):
            self._note_latched(dag_id, dag, state)
            return state
        most = dag.trigger.at_once if dag.trigger.runs == "each" else 1
        problem = self._find_problem(dag_id)
        active = self._find_active(dag_id, dag)
        for number, causes in enumerate(due):
            if has_requested(self._instance, self._build_run_key(dag_id, causes)):
                state = settle(state, causes)  # the tick's cursor was not stored
                continue
            led = self._find_led(dag_id, dag, causes[-1])
            if led is not None and dag.trigger.reruns == "ignore":
                state = settle(state, causes)
                continue
            why = problem
            if isinstance(active, str):
                why = active
            elif len(active) >= most:
                why = f"runs of it go on: {join_names(sorted(active))}"
            elif led is not None and self._goes_on(dag_id, led, active):
                why = f"the run to clear goes on: {led}"
            if why is not None or isinstance(active, str):
                self._wait(dag_id, due[number:], why or "")
                break
            answer, state = self._decide(dag_id, dag, state, causes)
            if answer is None:
                self._wait(dag_id, due[number:], "`only_if` has not answered yet")
                break
            if isinstance(answer, Run):
                date = self._find_logical_date(dag, causes[-1])
                request = Request(_refer(causes), answer.conf, led, date)
                self._request(dag_id, causes, request)
                begun = led or self._build_run_key(dag_id, causes)  # its run id is not known yet
                active.add(begun)
                self._led[dag_id, causes[-1].label] = begun
            state = settle(state, causes)
        return state

    def settle_requested(self, dag_id: str, dag: DagDeclaration, state: DagState) -> DagState:
        """Return the state without what is due, if that was requested. The tick that did so may
        have failed before its cursor was stored. With `when: all`, the next event would otherwise
        lead to another run for the same causes."""
        for causes in find_due(dag, state):
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
        key = build_asset_key(airflow, dag_id)
        self._requests.append(
            dg.RunRequest(
                run_key=self._build_run_key(dag_id, causes),
                asset_selection=[key],
                # Of the others the step evaluates none, and Dagster would show them as pending.
                asset_check_keys=[build_check_key(key)],
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

    def _find_problem(self, dag_id: str) -> str | None:
        """Find why Airflow would not run a DAG at present; None if it would."""
        try:
            dag = self._client.fetch_dag(dag_id)
        except AirflowError as error:
            return str(error)
        return describe_problem(dag)

    def _find_active(self, dag_id: str, dag: DagDeclaration) -> set[str] | str:
        """Find the ids of a DAG's runs that Dagster has requested and that go on, or why they are
        not known.

        Airflow is asked, too: a DAG run goes on without a Dagster run if it is not waited for, or
        if a worker died. One that is older than its time-out does not count.
        """
        key = build_asset_key(self._client.instance, dag_id)
        active = {
            self._find_run_id(dag_id, run)
            for run in self._active_requests
            if key in (run.asset_selection or ())
        }
        if active and dag.trigger.runs == "latest":
            return active
        if isinstance(self._active_runs, str):
            return self._active_runs
        now = self._timing.utc_now()
        for run in self._active_runs:
            since = run.queued_at or run.start_date or now
            is_overdue = (now - since).total_seconds() > dag.trigger.timeout
            if run.dag_id == dag_id and not is_overdue:
                active.add(run.run_id)
        return active

    def _goes_on(self, dag_id: str, run_id: str, active: Collection[str]) -> bool:
        """Whether a DAG run goes on, also one that is older than its time-out."""
        runs = [] if isinstance(self._active_runs, str) else self._active_runs
        return run_id in active or any(run.key == (dag_id, run_id) for run in runs)

    # What an upstream run has led to

    def _find_led(self, dag_id: str, dag: DagDeclaration, cause: Cause) -> str | None:
        """Find the DAG run that an earlier end of the upstream run led to, if that matters."""
        if dag.trigger.reruns == "follow" or not cause.run_id:
            return None
        if (begun := self._led.get((dag_id, cause.label))) is not None:
            return begun
        run = find_run_after(self._instance, self._client.instance, dag_id, cause.label)
        return run and self._find_run_id(dag_id, run)

    def _find_logical_date(self, dag: DagDeclaration, cause: Cause) -> datetime | None:
        """Find the logical date of the upstream run, if the DAG's run is to have it."""
        if dag.trigger.logical_date != "upstream":
            return None
        event = fetch_event(self._instance, cause.edge.key, cause.position)
        return event and build_record(event, "", "").logical_date

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
            check_conf(dag.trigger.only_if, record.upstream, record.downstream, answer)
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

    def _note_latched(self, dag_id: str, dag: DagDeclaration, state: DagState) -> None:
        """Note which dependencies a DAG still waits for, if others have counted since its last
        run."""
        if latched := find_latched(dag, state):
            edges = [cause.edge for cause in latched]
            missing = [
                f"{edge.name} ({edge.state})" for edge in dag.depends_on if edge not in edges
            ]
            self._note(dag_id, f"waits for {join_names(missing)}")

    def _wait(self, dag_id: str, due: Sequence[Sequence[Cause]], why: str) -> None:
        first = due[0][-1]
        self._note(dag_id, f"{len(due)} wait, the first is {first.label}: {why}")

    def _note(self, dag_id: str, text: str) -> None:
        self._waiting.append(f"{self._client.instance}/{dag_id}: {text}")


def _refer(causes: Sequence[Cause]) -> list[tuple[dg.AssetKey, int]]:
    """Return the events to name in a tag: the newest ones, the newest last."""
    return [(cause.edge.key, cause.position) for cause in causes[-_MAX_REFERENCES:]]


def check_conf(function: str, upstream: str, downstream: str, answer: Run | Skip) -> None:
    """Refuse a conf that can't be stored in a tag of the Dagster run: too long, or with what looks
    like a secret.

    Raises:
        DecisionError: It does.
    """
    why = None
    if isinstance(answer, Run) and answer.conf and has_secrets(answer.conf):
        why = "a conf that seems to hold a secret, and that Dagster would show; keep secrets in an "
        why += "Airflow connection"
    elif isinstance(answer, Run) and (size := len(json.dumps(answer.conf))) > _MAX_CONF:
        why = f"a conf of {size} characters, and Dagster keeps it in a tag, which has {_MAX_CONF} "
        why += "at most; pass the name of what it is about"
    if why is not None:
        raise DecisionError(
            function, upstream=upstream, downstream=downstream, why=f"answered with {why}"
        )
