"""Whose turn it is to be started, where an instance's runs are limited."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta, timezone
from functools import partial

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import Dag, DagRun
from federation_defs.dagster_io.run_tags import Target
from federation_defs.declaration import DagDeclaration, TriggerDeclaration
from federation_defs.errors import AirflowError, DagNotFoundError
from federation_defs.execution.polling import Key, Looked, MonitoredRun, fetch_dags_of, fetch_waited
from federation_defs.execution.reporter import Reporter
from federation_defs.naming import build_pool_name, build_run_id, build_slot_key, parse_left_dag_id
from federation_defs.threads import CallPool

Holder = tuple[str, str]

_FIRST = 2**31 - 1  # the most that PostgreSQL takes for a priority


class Slots:
    """The slots that one Dagster run holds. Safe to share between threads.

    A holder of a slot is a run id, of a Dagster run or of a DAG run, and a step key.

    Args:
        airflow: The Airflow instance's name.
        limit: That is declared; None if it is whatever the pool in Dagster says, if anything.
    """

    def __init__(
        self, instance: dg.DagsterInstance, run: dg.DagsterRun, airflow: str, limit: int | None
    ) -> None:
        self._instance = instance
        self._storage = instance.event_log_storage
        self._run = run
        self._airflow = airflow
        self._pool = build_pool_name(airflow)
        self._limit = limit
        self._priority = _read_priority(run)
        self._is_lifted = False
        self._was_open = False
        self.is_limited = self._set_limit()
        if self.is_limited:
            self._free_dead()

    def claim(self, target: Target) -> bool:
        """Whether there is a slot for this; if not, it stays in the queue for one."""
        if not self.is_limited or self._is_lifted:
            return True
        holder = self._build_holder(target)
        if (left := self._find_left(target)) is not None:
            return self._move(left, holder)
        return self._claim(holder, self._priority)

    def free(self, target: Target) -> None:
        """Gives a slot back, or the place in the queue."""
        if self.is_limited:
            self._free(self._build_holder(target))

    def hand_over(self, target: Target, run: DagRun) -> None:
        """Gives a slot to a DAG run, which goes on when the Dagster run is over."""
        if self._is_lifted:
            self.free(target)
        elif self.is_limited:
            key = build_slot_key(self._airflow, run.dag_id, is_detached=True)
            self._move(self._build_holder(target), (run.run_id, key))

    def look_after(self, client: AirflowClient, dags: Mapping[str, DagDeclaration]) -> None:
        """Frees what dead Dagster runs hold, and DAG runs that are over, gone, past the time-out of
        their DAG, or not moved on, for that is paused or gone.

        Args:
            dags: What is declared of the instance's DAGs.

        Raises:
            AirflowError: Of a DAG run the instance was asked for, and did not say.
        """
        self._is_lifted = not self._set_limit()
        self._free_dead()
        self._wake_next()
        left = self._fetch_left()
        now = datetime.now(timezone.utc)
        for holder, (dag_id, since) in left.items():
            trigger = dags[dag_id].trigger if dag_id in dags else TriggerDeclaration()
            if now - since > timedelta(seconds=trigger.timeout):
                self._free(holder)
        holders = {(dag_id, holder[0]): holder for holder, (dag_id, _) in left.items()}
        if holders:
            runs = fetch_waited(client, list(holders))
            for key, run in runs.items():
                if run is None or (isinstance(run, DagRun) and run.is_finished):
                    self._free(holders[key])
            for key in _find_stuck(client, runs):
                self._free(holders[key])
            if errors := [run for run in runs.values() if isinstance(run, AirflowError)]:
                raise errors[0]

    def _set_limit(self) -> bool:
        """Has the pool be as it is declared, or else as Dagster's settings have it; whether it has
        a limit."""
        info = self._storage.get_concurrency_info(self._pool)
        is_new = info.limit is None or (info.using_default_limit and not info.slot_count)
        if is_new:  # or was deleted: who has a slot of it still has
            for holder in self._fetch_left():
                self._free(holder)
        if self._limit is not None and (is_new or info.limit != self._limit):
            self._storage.set_concurrency_slots(self._pool, self._limit)
        elif is_new and info.limit is not None:
            self._storage.initialize_concurrency_limit_to_default(self._pool)
        return self._limit is not None or info.limit is not None

    def _wake_next(self) -> None:
        """Has the next in the queue ask anew, if nobody gets the slot that there is: it came into
        the queue just as the slot was given back (dagster 1.13). To be sure, at the second look."""
        info = self._storage.get_concurrency_info(self._pool)
        queue = [one for one in info.pending_steps if one.assigned_timestamp is None]
        is_open = bool(queue) and info.assigned_step_count < info.slot_count
        if is_open and self._was_open:
            following = min(queue, key=lambda one: (-(one.priority or 0), one.enqueued_timestamp))
            self._free((following.run_id, following.step_key))
        self._was_open = is_open

    def _claim(self, holder: Holder, priority: int) -> bool:
        status = self._storage.claim_concurrency_slot(self._pool, *holder, priority)
        return status.is_claimed

    def _free(self, holder: Holder) -> None:
        self._storage.free_concurrency_slot_for_step(*holder)

    def _move(self, source: Holder, target: Holder) -> bool:
        """Has one's slot be another's: next in the queue before it is free."""
        self._claim(target, _FIRST)
        self._free(source)
        return self._claim(target, _FIRST)

    def _build_holder(self, target: Target) -> Holder:
        return self._run.run_id, build_slot_key(self._airflow, target.name)

    def _find_left(self, target: Target) -> Holder | None:
        """Who holds the slot of a run that an attempt before this one started, and left."""
        if self._run.parent_run_id is None:
            return None
        first = build_run_id(self._run.root_run_id or self._run.run_id, target.partition)
        for holder, (dag_id, _) in self._fetch_left().items():
            is_own = holder[0] == first or holder[0].startswith(f"{first}__retry_")
            if dag_id == target.dag_id and is_own:
                return holder
        return None

    def _free_dead(self) -> None:
        """Frees what runs hold whose worker died with it. Dagster does so only if it is told to
        (`run_monitoring.free_slots_after_run_end_seconds`), and some time after."""
        info = self._storage.get_concurrency_info(self._pool)
        holders = {(one.run_id, one.step_key) for one in (*info.claimed_slots, *info.pending_steps)}
        for run_id in {run_id for run_id, key in holders if parse_left_dag_id(key) is None}:
            run = self._instance.get_run_by_id(run_id)
            if run is None or run.is_finished:
                self._storage.free_concurrency_slots_for_run(run_id)

    def _fetch_left(self) -> dict[Holder, tuple[str, datetime]]:
        """The slots of DAG runs: of which DAG, and since when."""
        steps = self._storage.get_concurrency_info(self._pool).pending_steps
        return {
            (one.run_id, one.step_key): (dag_id, one.assigned_timestamp or one.enqueued_timestamp)
            for one in steps
            if (dag_id := parse_left_dag_id(one.step_key)) is not None
        }


def _find_stuck(client: AirflowClient, runs: Looked) -> set[Key]:
    """Runs that Airflow's scheduler moves on no more, before somebody unpauses their DAG or brings
    it back."""
    active = [key for key, run in runs.items() if isinstance(run, DagRun) and not run.is_finished]
    if not active:
        return set()
    dags = fetch_dags_of(client, list({dag_id: None for dag_id, _ in active}))
    return {
        key
        for key in active
        for dag in [dags[key[0]]]
        if isinstance(dag, DagNotFoundError) or (isinstance(dag, Dag) and dag.is_paused)
    }


def _read_priority(run: dg.DagsterRun) -> int:
    try:
        return min(_FIRST - 1, max(-_FIRST, int(run.tags.get("dagster/priority", 0))))
    except ValueError:  # a person may write anything there
        return 0


SLOT_S = 1.0

OTHERS_S = 5.0


class Admission:
    """Gives the waits of a step their slots, one after the other, as there are any.

    Args:
        dags: What is declared of the instance's DAGs.
    """

    def __init__(
        self,
        client: AirflowClient,
        dags: Mapping[str, DagDeclaration],
        slots: Slots,
        reporter: Reporter,
        calls: CallPool,
    ) -> None:
        self._client = client
        self._dags = dags
        self._slots = slots
        self._reporter = reporter
        self._calls = calls
        self._next_look = time.monotonic()
        self._is_looking = False

    def admit(self, one: MonitoredRun, waits: Collection[MonitoredRun], now: float) -> bool:
        """Whether a wait has a slot. If not, neither have those after it."""
        if one.is_claimed:
            return True
        if self._slots.claim(one.target):
            one.claim(now)
            return True
        self._reporter.log_queued(one)
        for other in waits:
            if not other.is_claimed:
                other.next_look = now + SLOT_S
        if now >= self._next_look and not self._is_looking:
            self._is_looking = True
            act = partial(self._slots.look_after, self._client, self._dags)
            self._calls.submit(act, self._on_looked)
        return False

    def dismiss(self, one: MonitoredRun) -> None:
        """Takes the slot back, or hands it over to a run that goes on and is not waited for."""
        if one.is_detached and one.run is not None and not one.run.is_finished:
            self._slots.hand_over(one.target, one.run)
        else:
            self._slots.free(one.target)

    def _on_looked(self, answer: AirflowError | None) -> None:
        """Whether slots became free is seen when the next one is asked for."""
        self._is_looking = False
        self._next_look = time.monotonic() + OTHERS_S
        if answer is not None:
            self._reporter.log_retry(answer)
