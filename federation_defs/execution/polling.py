"""Polling many DAG runs with few requests."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from federation_defs.airflow.api import SERVER_PAGE
from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import Dag, DagRun
from federation_defs.dagster_io.run_tags import Target
from federation_defs.errors import (
    AirflowError,
    UnreachableError,
)
from federation_defs.outcome import Outcome, name_task

MIN_LOOK_S = 1.0


MAX_LOOK_S = 15.0


TASKS_S = 15.0


PAUSE_CHECK_S = 10.0


MAX_PAUSE_CHECK_S = 300.0


MAX_RUNNING_TASKS = 500


Key = tuple[str, str]


Looked = dict[Key, DagRun | AirflowError | None]


@dataclass
class MonitoredRun:
    """A DAG run that is to be brought about, or is waited for; times by the monotonic clock, in
    seconds.

    Attributes:
        is_claimed: It has its slot.
        is_busy: Something is being asked or done for it.
        is_left: It was started, and is left to itself (`trigger.wait: false`).
        is_over: It needs no looking after any more, however it ended.
        error: Why it is given up.
        tasks: That ran when we looked last, as a person was told.
        odd_since: Since when the instance answers, and nothing that is a help.
        away_since: Since when it does not answer at all.
    """

    target: Target
    since: float
    deadline: float
    next_look: float
    next_pause_check: float
    pause_check_s: float = PAUSE_CHECK_S
    is_claimed: bool = False
    is_busy: bool = False
    is_over: bool = False
    run: DagRun | None = None
    outcome: Outcome | None = None
    error: AirflowError | None = None
    odd_since: float | None = None
    away_since: float | None = None
    is_detached: bool = False
    tasks: str = ""

    @classmethod
    def begin(cls, target: Target, timeout_s: float) -> MonitoredRun:
        """One that is to be started now."""
        now = time.monotonic()
        return cls(target, now, now + timeout_s, now, now + PAUSE_CHECK_S)

    @property
    def key(self) -> Key:
        """DAG id and run id of the run, which is there."""
        assert self.run is not None  # noqa: S101
        return self.run.dag_id, self.run.run_id

    @property
    def is_going_on(self) -> bool:
        """There is a run, and it was not over when we looked last."""
        return self.run is not None and not self.run.is_finished and not self.is_over

    @property
    def is_queued(self) -> bool:
        return self.run is not None and self.run.state == "queued"

    def claim(self, now: float) -> None:
        """It has its slot: its time begins."""
        self.is_claimed = True
        self.since, self.deadline = now, now + (self.deadline - self.since)

    def plan_next_pause_check(self, now: float) -> None:
        """The longer a run is queued, the less often its DAG is asked for: up to 5 minutes."""
        self.pause_check_s = min(MAX_PAUSE_CHECK_S, self.pause_check_s * 2)
        self.next_pause_check = now + self.pause_check_s

    def plan_next_look(self, now: float) -> None:
        """The longer a run takes, the less often it is asked for: from 1 s up to 15 s."""
        self.next_look = now + min(MAX_LOOK_S, max(MIN_LOOK_S, (now - self.since) / 20))
        if now < self.deadline:
            self.next_look = min(self.next_look, self.deadline)


def fetch_waited(client: AirflowClient, keys: Sequence[Key]) -> Looked:
    """How runs that go on are doing, in one request for nearly all of them.

    The list of all runs that go on in the instance has them, whichever their DAGs; what is not in
    it is asked for by itself: it ended, or is gone (None), or the list moved. Where that list is
    longer than asking for each would take, each is.

    Raises:
        UnreachableError: The instance is away.
    """
    active = _fetch_active(client, at_most=SERVER_PAGE * (len(keys) - 1)) if len(keys) > 1 else {}
    missing = [key for key in keys if key not in active]
    going_on = {key: active[key] for key in keys if key in active}
    return {**going_on, **_fetch_each(client, missing)}


def _fetch_active(client: AirflowClient, at_most: int) -> dict[Key, DagRun]:
    try:
        runs = client.fetch_active_runs(at_most)
    except UnreachableError:
        raise
    except AirflowError:  # each is asked for by itself, and says what is wrong
        return {}
    return {(run.dag_id, run.run_id): run for run in runs or ()}


def _fetch_each(client: AirflowClient, keys: list[Key]) -> Looked:
    try:
        runs = client.fetch_runs(keys)
        return {key: runs.get(key) for key in keys}
    except UnreachableError:
        raise
    except AirflowError as error:
        if len(keys) == 1:
            return {keys[0]: error}
    return {key: answer for key in keys for answer in _fetch_each(client, [key]).values()}


def fetch_dags_of(client: AirflowClient, dag_ids: Sequence[str]) -> dict[str, Dag | AirflowError]:
    """DAGs by id, from the list of all of them if that takes fewer requests than asking for each.

    Raises:
        AirflowError: The list could not be read.
    """
    at_most = SERVER_PAGE * (len(dag_ids) - 1)
    listed = client.fetch_dags_by_id(at_most) if at_most else None
    found: dict[str, Dag | AirflowError] = {}
    for dag_id in dag_ids:
        try:
            # One that is not in the list may have been hidden as that moved.
            dag = listed.get(dag_id) if listed else None
            found[dag_id] = dag if dag and dag.is_present else client.fetch_dag(dag_id)
        except AirflowError as error:
            found[dag_id] = error
    return found


def fetch_tasks_told(client: AirflowClient) -> dict[Key, str] | None:
    """The names of the tasks that run now, by run; None if they are too many, or can't be told."""
    try:
        running = client.fetch_running_tasks(MAX_RUNNING_TASKS)
    except AirflowError:  # it is good to know, and no more
        return None
    if running is None:
        return None
    return {key: ", ".join(sorted(map(name_task, tasks))) for key, tasks in running.items()}
