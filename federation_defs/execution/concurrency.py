"""`limits.max_active_runs`: Airflow is asked how many runs are active before one is launched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from threading import Lock

from federation_defs.airflow.api import SERVER_PAGE
from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import Dag, DagRun, RunKey
from federation_defs.declaration import DagDeclaration, TriggerDeclaration
from federation_defs.errors import DagNotFoundError
from federation_defs.execution.polling import fetch_dags
from federation_defs.naming import RUN_ID_PREFIX
from federation_defs.timing import Timing

_MAX_PAGES = 10


class ConcurrencyLimit:
    """The number of DAG runs of an instance that Dagster may have active. Thread-safe.

    A DAG run counts while Airflow shows it as queued or running and its run id is one of ours. It
    does not count while it is queued and its DAG is paused or gone, or once it is older than its
    `trigger.timeout`. Runs that this process launched a moment ago count as well, so one process
    never exceeds the limit by itself. Several processes that ask in the same second may.

    Args:
        dags: The declarations of the instance's DAGs.
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
        self._reserved: dict[RunKey, float] = {}  # the moment after which Airflow shows it
        self._first_seen: dict[RunKey, datetime] = {}
        self._asking = Lock()  # held by one question at a time, while Airflow answers
        self._lock = Lock()  # of `_reserved`

    def reserve(self, wanted: Sequence[RunKey]) -> set[RunKey]:
        """Reserve places for runs that are about to be launched, the first ones first.

        Args:
            wanted: DAG id and run id of each. One whose run, or a later run of the same target
                (`…__retry_2`), is active gets its place.

        Returns:
            Those that may be launched now. Their places are kept until `settle` or `release`.

        Raises:
            AirflowError: The active runs could not be read.
        """
        with self._asking:
            asked_at = self._timing.monotonic()
            active = self._fetch_active()
            if active is None:
                return set()
            admitted = {key for key in wanted if any(_is_run_of(key, run) for run in active)}
            others = [key for key in wanted if key not in admitted]
            counted = [run for run in active if not self._is_overdue(run)]
            free = self._max_active_runs - len(counted) - self._count_reserved(active, asked_at)
            if free < len(others):
                free += self._count_stuck(counted)
            launchable = others[: max(0, free)]
            with self._lock:
                self._reserved |= dict.fromkeys(launchable, math.inf)
            return admitted.union(launchable)

    def settle(self, key: RunKey, run: DagRun) -> None:
        """Turn a reservation into the run that was launched, which Airflow's list has soon."""
        with self._lock:
            self._reserved.pop(key, None)
            if not run.is_finished and run.run_id.startswith(RUN_ID_PREFIX):
                visible_at = self._timing.monotonic() + self._timing.launch_visible_s
                self._reserved[run.dag_id, run.run_id] = visible_at

    def release(self, *keys: RunKey) -> None:
        """Drop the reservations of runs that were not launched, or ended."""
        with self._lock:
            for key in keys:
                self._reserved.pop(key, None)

    def _fetch_active(self) -> list[DagRun] | None:
        """Fetch our active runs and note their ages; None if there are too many to read."""
        at_most = SERVER_PAGE * _MAX_PAGES
        found = self._client.fetch_active_runs(at_most, RUN_ID_PREFIX)
        if found is None:
            return None
        runs, now = found.entries, found.server_time or self._timing.utc_now()
        # 2.x does not tell since when a run is queued.
        first_seen = self._first_seen
        self._first_seen = {_build_key(run): first_seen.get(_build_key(run), now) for run in runs}
        self._asked_at = now
        return runs

    def _is_overdue(self, run: DagRun) -> bool:
        dag = self._dags.get(run.dag_id)
        trigger = dag.trigger if dag else TriggerDeclaration()
        since = run.queued_at or run.start_date or self._first_seen[_build_key(run)]
        return (self._asked_at - since).total_seconds() > trigger.timeout

    def _count_reserved(self, active: list[DagRun], asked_at: float) -> int:
        """Count reservations whose run is not in Airflow's list yet; drop the others."""
        seen = {_build_key(run) for run in active}
        with self._lock:
            self._reserved = {
                key: visible_at
                for key, visible_at in self._reserved.items()
                if key not in seen and visible_at > asked_at
            }
            return len(self._reserved)

    def _count_stuck(self, active: list[DagRun]) -> int:
        """Count queued runs that stay queued, because their DAG is paused or gone."""
        queued = [run for run in active if run.state == "queued"]
        if not queued:
            return 0
        dags = fetch_dags(self._client, list({run.dag_id: None for run in queued}))
        stuck = {
            dag_id
            for dag_id, dag in dags.items()
            if isinstance(dag, DagNotFoundError) or (isinstance(dag, Dag) and dag.is_paused)
        }
        return sum(run.dag_id in stuck for run in queued)


def _build_key(run: DagRun) -> RunKey:
    return run.dag_id, run.run_id


def _is_run_of(key: RunKey, run: DagRun) -> bool:
    dag_id, run_id = key
    is_same = run.run_id == run_id or run.run_id.startswith(f"{run_id}__retry_")
    return run.dag_id == dag_id and is_same
