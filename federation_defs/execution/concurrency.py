"""`limits.max_active_runs`: counts the active runs in Airflow before one is launched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from threading import Lock

from federation_defs.airflow.api import SERVER_PAGE
from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun, RunKey
from federation_defs.declaration import DagDeclaration, TriggerDeclaration
from federation_defs.execution.polling import fetch_stuck_dags
from federation_defs.naming import RUN_ID_PREFIX, is_of_target
from federation_defs.timing import Timing

_MAX_RUNS = 10 * SERVER_PAGE


class ConcurrencyLimit:
    """Limits how many DAG runs of an instance Dagster has active. Thread-safe.

    A DAG run counts while Airflow shows it as queued or running and its run id begins with
    `RUN_ID_PREFIX`. It does not count while it is queued and its DAG is paused or gone, or once it
    is older than its `trigger.timeout`. Runs that this process launches, and that Airflow does not
    list yet, count as well, so one process never exceeds the limit by itself. Several processes
    that ask in the same second may exceed it.
    """

    def __init__(
        self,
        client: AirflowClient,
        dags: Mapping[str, DagDeclaration],
        max_active_runs: int,
        timing: Timing,
    ) -> None:
        self._client = client
        self._dags = dags
        self._max_active_runs = max_active_runs
        self._timing = timing
        # The monotonic time after which Airflow lists the run; infinite if that is unknown.
        self._reserved: dict[RunKey, float] = {}
        self._first_seen: dict[RunKey, datetime] = {}  # by Airflow's clock
        self._request_lock = Lock()  # held while Airflow answers
        self._lock = Lock()  # of `_reserved`

    def reserve(self, wanted: Sequence[RunKey]) -> set[RunKey]:
        """Reserve slots for runs that are about to be launched, the first ones first.

        Args:
            wanted: The DAG id and first run id of each. A run that is active already, or of whose
                target a later run (`…__retry_2`) is active, always gets a slot.

        Returns:
            The runs that may be launched now. Their slots are kept until `settle` or `release`.

        Raises:
            AirflowError: The active runs could not be read.
        """
        with self._request_lock:
            listed_at = self._timing.monotonic()
            found = self._client.fetch_active_runs(_MAX_RUNS, RUN_ID_PREFIX)
            if found is None or found.has_shrunk:  # there are more, or some may be missing
                return set()
            active, now = found.entries, found.server_time or self._timing.utc_now()
            # 2.x does not return when a run was queued.
            first_seen = {run.key: self._first_seen.get(run.key, now) for run in active}
            self._first_seen = first_seen
            launched = {key for key in wanted if any(_is_run_of(key, run) for run in active)}
            others = [key for key in wanted if key not in launched]
            counted = [run for run in active if not self._is_overdue(run, now)]
            with self._lock:  # Airflow's list has the other reserved runs by now
                self._reserved = {
                    key: visible_at
                    for key, visible_at in self._reserved.items()
                    if key not in first_seen and visible_at > listed_at
                }
                free = self._max_active_runs - len(counted) - len(self._reserved)
                free -= len(found.unreadable)
            if free < len(others):
                free += self._count_stuck(counted)
            launchable = others[: max(0, free)]
            with self._lock:
                self._reserved |= dict.fromkeys(launchable, math.inf)
            return launched.union(launchable)

    def settle(self, key: RunKey, run: DagRun, *, is_detached: bool) -> None:
        """Replace a reservation by the run that was launched.

        Airflow soon lists the run. But a run that was cleared or adopted, and whose id does not
        begin with `RUN_ID_PREFIX`, is not in that list. Its slot is kept until `release`, or, if
        the run is detached, for `timing.launch_visible_s`.
        """
        is_listed = is_detached or run.run_id.startswith(RUN_ID_PREFIX)
        visible_at = self._timing.monotonic() + self._timing.launch_visible_s
        with self._lock:
            self._reserved.pop(key, None)
            if not run.is_finished:
                self._reserved[run.key] = visible_at if is_listed else math.inf

    def release(self, *keys: RunKey) -> None:
        """Drop the reservations of runs that were not launched, or ended."""
        with self._lock:
            for key in keys:
                self._reserved.pop(key, None)

    def _is_overdue(self, run: DagRun, now: datetime) -> bool:
        dag = self._dags.get(run.dag_id)
        trigger = dag.trigger if dag else TriggerDeclaration()
        since = run.queued_at or run.start_date or self._first_seen[run.key]
        return (now - since).total_seconds() > trigger.timeout

    def _count_stuck(self, active: list[DagRun]) -> int:
        """Count queued runs that stay queued, because their DAG is paused or gone."""
        queued = [run.dag_id for run in active if run.state == "queued"]
        stuck = fetch_stuck_dags(self._client, queued)
        return sum(dag_id in stuck for dag_id in queued)


def _is_run_of(key: RunKey, run: DagRun) -> bool:
    dag_id, first_run_id = key
    return run.dag_id == dag_id and is_of_target(run.run_id, first_run_id)
