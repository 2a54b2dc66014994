"""How many DAG runs of an instance are waited for at a time, over all Dagster runs.

By a Dagster concurrency pool, whose slots are here DAG runs and not ops: they are kept in Dagster's
own storage, shown in its UI (Deployment, Concurrency), and given to the highest `dagster/priority`
first.
"""

from __future__ import annotations

import dagster as dg

from federation_defs.naming import build_pool_name


class Slots:
    """The slots that one Dagster run holds.

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
        status = self._storage.claim_concurrency_slot(
            self._pool, self._run.run_id, self._build_key(name), self._priority
        )
        return status.is_claimed

    def free(self, name: str) -> None:
        """Gives a slot back, or the place in the queue."""
        if self.is_limited:
            self._storage.free_concurrency_slot_for_step(self._run.run_id, self._build_key(name))

    def _free_dead(self) -> None:
        """Frees what runs hold whose worker died with it. Dagster does so only if it is told to
        (`run_monitoring.free_slots_after_run_end_seconds`), and some time after."""
        info = self._storage.get_concurrency_info(self._pool)
        held = {slot.run_id for slot in info.claimed_slots}
        for run_id in held | {step.run_id for step in info.pending_steps}:
            holder = self._instance.get_run_by_id(run_id)
            if holder is None or holder.is_finished:
                self._storage.free_concurrency_slots_for_run(run_id)

    def _build_key(self, name: str) -> str:
        return f"{self._pool}.{name}"


def _read_priority(run: dg.DagsterRun) -> int:
    try:
        return int(run.tags.get("dagster/priority", 0))
    except ValueError:  # a person may write anything there
        return 0
