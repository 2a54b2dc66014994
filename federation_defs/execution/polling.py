"""A DAG run that a step launches and waits for, and polls of many such runs with few requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from federation_defs.airflow.api import SERVER_PAGE
from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import Dag, DagRun, RunKey
from federation_defs.dagster_io.run_tags import Target
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
from federation_defs.outcome import Outcome, name_task
from federation_defs.timing import RetryPolicy, Timing

_MAX_RUNNING_TASKS = 500
_FINAL_ERRORS = (DagNotFoundError, DagPausedError, DagBrokenError, RunLostError)
_RETRIED_AT_LAUNCH = (UnreachableError, CredentialError, RunNotStartedError)


@dataclass
class MonitoredRun:
    """A DAG run that is to be launched, or is waited for. Moments are of the monotonic clock.

    Attributes:
        note: The note that the DAG run gets in Airflow.
        since: When the wait began, from which `timeout_s` counts.
        next_poll: When to launch it, to poll it, or to fetch its outcome.
        is_admitted: `limits.max_active_runs` leaves room for it.
        is_busy: A request for it is under way.
        is_over: It needs no monitoring any more.
        is_detached: It was launched and is not waited for (`trigger.wait: false`).
        error: Why the wait was given up.
        running_tasks: As they were logged last.
        failing_since: Since when the instance gives unexpected answers.
        unreachable_since: Since when it gives none.
    """

    target: Target
    timeout_s: float
    note: str
    since: float
    next_poll: float
    next_pause_check: float
    pause_checks: int = 1
    is_admitted: bool = False
    is_busy: bool = False
    is_over: bool = False
    is_detached: bool = False
    dag_run: DagRun | None = None
    outcome: Outcome | None = None
    error: AirflowError | None = None
    running_tasks: str = ""
    failing_since: float | None = None
    unreachable_since: float | None = None

    @property
    def deadline(self) -> float:
        return self.since + self.timeout_s

    @property
    def key(self) -> RunKey:
        assert self.dag_run is not None  # noqa: S101
        return self.dag_run.dag_id, self.dag_run.run_id

    @property
    def is_active(self) -> bool:
        """Whether it was queued or running at the last poll."""
        return self.dag_run is not None and not self.dag_run.is_finished and not self.is_over

    @property
    def is_queued(self) -> bool:
        return self.dag_run is not None and self.dag_run.state == "queued"

    def restart_clock(self, now: float) -> None:
        """Begin the wait anew: time without a free place does not count."""
        self.since = self.next_poll = now
        self.failing_since = self.unreachable_since = None

    def plan_poll(self, policy: RetryPolicy, now: float) -> None:
        """Plan the next poll, at the deadline at the latest."""
        self.next_poll = now + policy.poll_pause_s(now - self.since)
        if now < self.deadline:
            self.next_poll = min(self.next_poll, self.deadline)

    def plan_pause_check(self, policy: RetryPolicy, now: float) -> None:
        self.pause_checks += 1
        self.next_pause_check = now + policy.pause_s(self.pause_checks)

    def find_give_up_error(
        self, error: AirflowError, now: float, timing: Timing
    ) -> AirflowError | None:
        """Return the error that ends this wait, or None to keep waiting.

        An unreachable instance is waited for until the deadline. Unexpected answers, a missing
        credential and failing triggers end the wait after `timing.unexpected_answer`, and at once
        if they refuse a trigger. What only a person can change ends it at once.
        """
        if isinstance(error, _FINAL_ERRORS):
            return error
        is_unreachable = isinstance(error, UnreachableError)
        if not is_unreachable:
            self.unreachable_since = None
            self.failing_since = now if self.failing_since is None else self.failing_since
        elif self.unreachable_since is None:
            self.unreachable_since = now
        elif now - self.unreachable_since > timing.forgive_after_s:
            self.failing_since = None
        if self.dag_run is None and not isinstance(error, _RETRIED_AT_LAUNCH):
            return error
        failing_s = 0.0 if self.failing_since is None else now - self.failing_since
        if not is_unreachable and timing.unexpected_answer.is_over(failing_s):
            return error
        if now < self.deadline:
            return None
        if self.dag_run is None or not self.is_active:
            return error
        return RunLostError(
            error.instance,
            f"does not say what became of run '{self.dag_run.run_id}' of DAG "
            f"'{self.dag_run.dag_id}' in the {now - self.since:.0f} s of its `trigger.timeout`: it "
            f"was {self.dag_run.state} when we heard of it last. ({error}) What it ends as is "
            "reported when the instance is back.",
        )


def fetch_runs(
    client: AirflowClient, keys: Sequence[RunKey]
) -> dict[RunKey, DagRun | AirflowError | None]:
    """Fetch the states of runs, in one request for all that are active.

    The list of all active runs of the instance has most of them. A run that is not in it ended,
    was deleted (None) or was missed while the list moved, and is fetched by itself. Where the list
    would take more requests than the runs, each run is fetched by itself.

    Raises:
        UnreachableError: The instance does not answer.
    """
    active = _fetch_active(client, at_most=SERVER_PAGE * (len(keys) - 1)) if len(keys) > 1 else {}
    missing = [key for key in keys if key not in active]
    found = {key: active[key] for key in keys if key in active}
    return {**found, **_fetch_each(client, missing)}


def _fetch_active(client: AirflowClient, at_most: int) -> dict[RunKey, DagRun]:
    try:
        active = client.fetch_active_runs(at_most)
    except UnreachableError:
        raise
    except AirflowError:  # fetching each run by itself tells what is wrong
        return {}
    return {run.key: run for run in active.entries} if active else {}


def _fetch_each(
    client: AirflowClient, keys: list[RunKey]
) -> dict[RunKey, DagRun | AirflowError | None]:
    try:
        runs = client.fetch_runs(keys)
        return {key: runs.get(key) for key in keys}
    except UnreachableError:
        raise
    except AirflowError as error:
        if len(keys) == 1:
            return {keys[0]: error}
    return {key: answer for key in keys for answer in _fetch_each(client, [key]).values()}


def fetch_dags(client: AirflowClient, dag_ids: Sequence[str]) -> dict[str, Dag | AirflowError]:
    """Fetch DAGs by id, from the list of all DAGs if that takes fewer requests.

    Raises:
        AirflowError: The list could not be read.
    """
    at_most = SERVER_PAGE * (len(dag_ids) - 1)
    listed = client.fetch_dags_by_id(at_most) if at_most > 0 else None
    found: dict[str, Dag | AirflowError] = {}
    for dag_id in dag_ids:
        try:
            # A DAG may be missing from the list because the list moved while it was paged.
            dag = listed.get(dag_id) if listed else None
            found[dag_id] = dag if dag and dag.is_present else client.fetch_dag(dag_id)
        except AirflowError as error:
            found[dag_id] = error
    return found


def fetch_running_tasks(client: AirflowClient) -> dict[RunKey, str] | None:
    """Fetch the names of the tasks that run now, by run; None if there are too many or the
    instance does not tell."""
    try:
        running = client.fetch_running_tasks(_MAX_RUNNING_TASKS)
    except AirflowError:  # only for the log
        return None
    if running is None:
        return None
    return {key: ", ".join(sorted(map(name_task, tasks))) for key, tasks in running.items()}
