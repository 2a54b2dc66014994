"""A DAG run that a step launches and waits for, and polls of many such runs with few requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from federation_defs.airflow.api import SERVER_PAGE
from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import Dag, DagRun, RunKey
from federation_defs.dagster_io.run_tags import Target
from federation_defs.declaration import TriggerDeclaration
from federation_defs.errors import (
    RUN_ANEW,
    AirflowError,
    CredentialError,
    DagBrokenError,
    DagNotFoundError,
    DagPausedError,
    RunLostError,
    RunNotStartedError,
    UnreachableError,
)
from federation_defs.outcome import Outcome
from federation_defs.threads import run_in_threads
from federation_defs.timing import RetryPolicy, Timing

_FINAL_ERRORS = (DagNotFoundError, DagPausedError, DagBrokenError, RunLostError)
_RETRIED_AT_LAUNCH = (UnreachableError, CredentialError, RunNotStartedError)

K = TypeVar("K", str, RunKey)
T = TypeVar("T")
A = TypeVar("A")
R = TypeVar("R")


@dataclass
class MonitoredRun:
    """A DAG run that is to be launched, or is waited for. Moments are of the monotonic clock.

    Attributes:
        first_key: The key that its first trigger gives it.
        note: The note that the DAG run gets in Airflow.
        has_slot: `limits.max_active_runs` leaves a slot for it.
        since: When the wait began, from which `trigger.timeout` counts.
        next_poll: When to launch it, to poll it, or to fetch its outcome.
        is_busy: A request for it is under way.
        is_detached: It was launched and is not waited for (`trigger.wait: false`).
        is_shared: It was adopted or taken over, so that others may report it too.
        error: Why the wait was given up.
        running_tasks: As they were logged last.
        failing_since: When the instance began to give unexpected answers.
    """

    target: Target
    first_key: RunKey
    trigger: TriggerDeclaration
    note: str
    has_slot: bool
    since: float
    next_poll: float
    next_pause_check: float = 0.0
    is_busy: bool = False
    is_detached: bool = False
    is_shared: bool = False
    dag_run: DagRun | None = None
    outcome: Outcome | None = None
    error: AirflowError | None = None
    running_tasks: str = ""
    failing_since: float | None = None
    unreachable_since: float | None = None

    @property
    def deadline(self) -> float:
        return self.since + self.trigger.timeout

    @property
    def key(self) -> RunKey:
        return self.dag_run.key if self.dag_run else self.first_key

    @property
    def is_active(self) -> bool:
        """Whether it was queued or running at the last poll."""
        return self.dag_run is not None and not self.dag_run.is_finished

    @property
    def is_queued(self) -> bool:
        return self.dag_run is not None and self.dag_run.state == "queued"

    def plan_poll(self, policy: RetryPolicy, now: float) -> None:
        """Plan the next poll, at the deadline at the latest."""
        self.next_poll = now + policy.poll_pause_s(now - self.since)
        if now < self.deadline:
            self.next_poll = min(self.next_poll, self.deadline)

    def plan_pause_check(self, policy: RetryPolicy, now: float) -> None:
        """Plan the next pause check: after as long as the wait has taken so far."""
        self.next_pause_check = now + min(policy.max_s, max(policy.first_s, now - self.since))

    def find_give_up_error(
        self, error: AirflowError, now: float, timing: Timing
    ) -> AirflowError | None:
        """Return the error that ends this wait, or None to keep waiting.

        An unreachable instance is waited for until the deadline. Unexpected answers, a missing
        credential and failing triggers end the wait after `timing.unexpected_answer`, and at once
        if they refuse a trigger. What only a person can change ends it at once. While the run
        waits for a slot there is no deadline, and no trigger to be refused.
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
        is_launching = self.dag_run is None and self.has_slot
        if is_launching and not isinstance(error, _RETRIED_AT_LAUNCH):
            return error
        failing_s = 0.0 if self.failing_since is None else now - self.failing_since
        if not is_unreachable and timing.unexpected_answer.is_over(failing_s):
            return error
        if now < self.deadline or not self.has_slot:
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


def fetch_dag_runs(
    client: AirflowClient, keys: Sequence[RunKey]
) -> dict[RunKey, DagRun | AirflowError]:
    """Fetch the states of runs, each a `RunLostError` if it was deleted.

    Raises:
        UnreachableError: The instance does not answer.
    """

    def fetch_active(at_most: int) -> dict[RunKey, DagRun]:
        active = client.fetch_active_runs(at_most)
        return {run.key: run for run in active.entries} if active else {}

    def fetch(key: RunKey) -> DagRun:
        if (run := client.fetch_run(*key)) is not None:
            return run
        message = f"no longer has run '{key[1]}' of DAG '{key[0]}': it was deleted while we waited."
        raise RunLostError(client.instance, f"{message} {RUN_ANEW}")

    return _fetch_by_key(client, keys, fetch_active, fetch)


def fetch_stuck_dags(
    client: AirflowClient, dag_ids: Sequence[str]
) -> dict[str, Dag | DagNotFoundError]:
    """Fetch those of the DAGs whose queued runs stay queued: they are paused, or gone.

    DAGs that can't be read are left out.

    Raises:
        UnreachableError: The instance does not answer.
    """

    def fetch_present(at_most: int) -> dict[str, Dag]:
        dags = client.fetch_dags_by_id(at_most) or {}
        return {dag_id: dag for dag_id, dag in dags.items() if dag.is_present}

    keys = list(dict.fromkeys(dag_ids))
    dags = _fetch_by_key(client, keys, fetch_present, client.fetch_dag)
    return {
        dag_id: dag
        for dag_id, dag in dags.items()
        if isinstance(dag, DagNotFoundError) or (isinstance(dag, Dag) and dag.is_paused)
    }


def _fetch_by_key(
    client: AirflowClient,
    keys: Sequence[K],
    fetch_list: Callable[[int], dict[K, T]],
    fetch: Callable[[K], T],
) -> dict[K, T | AirflowError]:
    """Fetch objects from the list of all, if that takes fewer requests than one for each.

    What is not in the list is fetched by itself: the list may move while it is paged. An error
    about an object takes its place. An `UnreachableError` is raised.

    Args:
        fetch_list: Fetches the list, or nothing if it has more entries than it is given.
    """

    def catch(function: Callable[[A], R], argument: A) -> R | AirflowError:
        try:
            return function(argument)
        except UnreachableError:
            raise
        except AirflowError as error:
            return error

    at_most = SERVER_PAGE * (len(keys) - 1)
    listed = catch(fetch_list, at_most) if at_most > 0 else {}
    found = {} if isinstance(listed, AirflowError) else listed
    missing = [key for key in keys if key not in found]
    threads = client.max_connections
    fetched = run_in_threads([partial(catch, fetch, key) for key in missing], threads)
    return {**found, **dict(zip(missing, fetched, strict=True))}
