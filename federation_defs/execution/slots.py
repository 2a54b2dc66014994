"""How many DAG runs of an instance go on at a time by our doing, over all Dagster runs.

By a Dagster concurrency pool, whose slots are here DAG runs and not ops: they are kept in Dagster's
own storage, shown in its UI (Deployment, Concurrency), and given to the highest `dagster/priority`
first.

A slot is a Dagster run's. One of a DAG run that is not waited for is that DAG run's own, for it
outlives the Dagster run, and Dagster frees what runs hold that are over: whoever waits for a slot
frees it, once the DAG run has ended.
"""

from __future__ import annotations

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.records import Dag, DagRun
from federation_defs.errors import AirflowError
from federation_defs.execution.waiting import Key, Looked, fetch_dags_of, fetch_waited
from federation_defs.naming import build_pool_name

_FIRST = 2**31 - 1


class Slots:
    """The slots that one Dagster run holds. Safe to share between threads.

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
        self._pool = build_pool_name(airflow)
        known = self._storage.get_concurrency_info(self._pool).limit
        if limit is not None and known != limit:
            self._storage.set_concurrency_slots(self._pool, limit)
        self.is_limited = limit is not None or known is not None
        if self.is_limited:
            self._free_dead()
        self._priority = _read_priority(run)

    def claim(self, name: str) -> bool:
        """Whether there is a slot for this; if not, it stays in the queue for one."""
        if not self.is_limited:
            return True
        return self._claim(self._run.run_id, self._build_key(name), self._priority)

    def free(self, name: str) -> None:
        """Gives a slot back, or the place in the queue."""
        if self.is_limited:
            self._storage.free_concurrency_slot_for_step(self._run.run_id, self._build_key(name))

    def leave(self, name: str, run: DagRun) -> None:
        """Gives a slot to a DAG run, which goes on when the Dagster run is over."""
        if self.is_limited:
            holder = run.run_id, f"{self._left_prefix}{run.dag_id}"
            if not self._claim(*holder, _FIRST):  # there is but the one that it is to have
                self.free(name)
                self._claim(*holder, _FIRST)
            self.free(name)

    def free_left(self, client: AirflowClient) -> None:
        """Frees what is held by DAG runs that are over, or gone, or queued in a paused DAG.

        Raises:
            AirflowError: The instance was asked for them, and did not say.
        """
        holders = self._fetch_holders()
        left = {
            (step_key.removeprefix(self._left_prefix), run_id): step_key
            for run_id, step_key in holders
            if step_key.startswith(self._left_prefix)
        }
        if not left:
            return
        runs = fetch_waited(client, list(left))
        over = {key for key, run in runs.items() if run is None or _is_over(run)}
        for dag_id, run_id in over | _find_stuck(client, runs):
            self._storage.free_concurrency_slot_for_step(run_id, left[dag_id, run_id])

    def _claim(self, run_id: str, step_key: str, priority: int) -> bool:
        status = self._storage.claim_concurrency_slot(self._pool, run_id, step_key, priority)
        return status.is_claimed

    def _free_dead(self) -> None:
        """Frees what runs hold whose worker died with it. Dagster does so only if it is told to
        (`run_monitoring.free_slots_after_run_end_seconds`), and some time after."""
        holders = self._fetch_holders()
        for run_id in {one for one, key in holders if not key.startswith(self._left_prefix)}:
            holder = self._instance.get_run_by_id(run_id)
            if holder is None or holder.is_finished:
                self._storage.free_concurrency_slots_for_run(run_id)

    def _fetch_holders(self) -> set[tuple[str, str]]:
        """Who has a slot or waits for one: run id and step key."""
        info = self._storage.get_concurrency_info(self._pool)
        return {(one.run_id, one.step_key) for one in (*info.claimed_slots, *info.pending_steps)}

    @property
    def _left_prefix(self) -> str:
        return f"{self._pool}.left."

    def _build_key(self, name: str) -> str:
        return f"{self._pool}.of.{name}"


def _is_over(run: DagRun | AirflowError) -> bool:
    return isinstance(run, DagRun) and run.is_finished


def _find_stuck(client: AirflowClient, runs: Looked) -> set[Key]:
    """Those that do not begin before somebody unpauses their DAG."""
    queued = [key for key, run in runs.items() if isinstance(run, DagRun) and run.state == "queued"]
    dags = fetch_dags_of(client, list({dag_id: None for dag_id, _ in queued})) if queued else {}
    return {key for key in queued if isinstance(dag := dags[key[0]], Dag) and dag.is_paused}


def _read_priority(run: dg.DagsterRun) -> int:
    try:
        return int(run.tags.get("dagster/priority", 0))
    except ValueError:  # a person may write anything there
        return 0
