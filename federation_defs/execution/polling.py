"""The DAG runs that a step launches and waits for, polled together with few requests."""

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
    """A DAG run that a step launches and waits for. Times are in seconds of the monotonic clock.

    Attributes:
        first_key: The DAG id, and the run id of the first trigger.
        note: The note that the DAG run gets in Airflow.
        has_slot: Whether `limits.max_active_runs` leaves a slot for it.
        since: When the wait began, from which `trigger.timeout` counts.
        next_poll: When to launch it, to poll it, or to fetch its outcome.
        next_pause_check: When to check whether its DAG is paused, while it is queued.
        is_busy: Whether a request for it is under way.
        is_detached: Whether it was launched and is not waited for (`trigger.wait: false`).
        is_shared: Whether it was adopted or taken over: others may report it, too.
        error: Why the wait was given up.
        running_tasks: The names of its running tasks, as they were logged last.
        failing_since: When the instance began to give unexpected answers; None if it does not.
        unreachable_since: When the instance became unreachable; None if it is not.
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
        """Plan the next poll. Until the deadline, it is at the deadline at the latest."""
        self.next_poll = now + policy.poll_pause_s(now - self.since)
        if now < self.deadline:
            self.next_poll = min(self.next_poll, self.deadline)

    def plan_pause_check(self, policy: RetryPolicy, now: float) -> None:
        """Plan the next pause check. The pause before it is as long as the wait so far."""
        self.next_pause_check = now + min(policy.max_s, max(policy.first_s, now - self.since))

    def find_give_up_error(
        self, error: AirflowError, now: float, timing: Timing
    ) -> AirflowError | None:
        """Return the error that ends this wait, or None to keep waiting.

        An unreachable instance ends the wait at the deadline. A missing credential or a failed
        trigger ends it after `timing.unexpected_answer`. So does any other error, but at a launch
        it ends the wait at once. What only a person can change, such as a paused DAG, always ends
        it at once. While the run waits for a slot, there is no deadline and no launch.
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
            f"has not shown the end of run '{self.dag_run.run_id}' of DAG "
            f"'{self.dag_run.dag_id}' within {now - self.since:.0f} s (`trigger.timeout`): it was "
            f"{self.dag_run.state} when Dagster last read its state. ({error}) Observation reports "
            "its outcome when the instance can be read again.",
        )


def fetch_dag_runs(
    client: AirflowClient, keys: Sequence[RunKey]
) -> dict[RunKey, DagRun | AirflowError]:
    """Fetch DAG runs by key. A run that can't be read is an error: if deleted, a `RunLostError`.

    Raises:
        UnreachableError: The instance does not answer.
    """

    def fetch_active(at_most: int) -> dict[RunKey, DagRun]:
        active = client.fetch_active_runs(at_most)
        return {run.key: run for run in active.entries} if active else {}

    def fetch(key: RunKey) -> DagRun:
        if (run := client.fetch_run(*key)) is not None:
            return run
        message = f"no longer has run '{key[1]}' of DAG '{key[0]}': it was deleted meanwhile."
        raise RunLostError(client.instance, f"{message} {RUN_ANEW}")

    return _fetch_by_key(client, keys, fetch_active, fetch)


def fetch_stuck_dags(
    client: AirflowClient, dag_ids: Sequence[str]
) -> dict[str, Dag | DagNotFoundError]:
    """Fetch, by DAG id, the DAGs whose queued runs stay queued because the DAG is paused or gone.

    A DAG that is gone is a `DagNotFoundError`. DAGs that can't be read are left out.

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

    An object that is not in the list is fetched by itself, because the list may move while it is
    paged. An error about an object takes its place. An `UnreachableError` is raised.

    Args:
        fetch_list: Fetches the list, or an empty one if it is longer than its argument.
        fetch: Fetches one object.
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
