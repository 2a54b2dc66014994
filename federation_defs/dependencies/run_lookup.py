"""Finds the active runs of DAGs, and the runs that an upstream run has led to already."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import TypeVar

import dagster as dg

from federation_defs.airflow.api import SERVER_PAGE
from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun
from federation_defs.airflow.pages import Page
from federation_defs.dagster_io.event_log import (
    AssetEvent,
    fetch_event,
    fetch_planned_partitions,
    fetch_run_order,
)
from federation_defs.dagster_io.run_tags import (
    NOT_ENDED,
    fetch_launching_runs,
    find_run_after,
    get_partition,
    read_request,
)
from federation_defs.dependencies.decider import Cause, Downstream, Due
from federation_defs.errors import AirflowError
from federation_defs.naming import RUN_ID_PREFIX, build_run_id, is_of_target
from federation_defs.outcome import join_names
from federation_defs.partitions import Partitioning
from federation_defs.threads import run_in_threads
from federation_defs.timing import Timing

T = TypeVar("T")
_MAX_RUNS = 10 * SERVER_PAGE


class DueCache:
    """A finding about each due run, kept while the causes of the run are the same. It only saves
    queries."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str | None], tuple[tuple[Cause, ...], str]] = {}

    def get(self, dag: Downstream, due: Due) -> str | None:
        causes, found = self._found.get((dag.dag_id, due.partition), ((), None))
        return found if causes == due.causes else None

    def keep(self, dag: Downstream, due: Due, found: str | None) -> None:
        """Remember what was found. None is not remembered."""
        self._found.pop((dag.dag_id, due.partition), None)
        if found is not None:
            self._found[dag.dag_id, due.partition] = due.causes, found


@dataclass
class Hang:
    """Whether an Airflow hangs.

    Attributes:
        failures: The number of requests in a row that it did not answer.
        ends_at: When to send the next request, in seconds of the monotonic clock.
    """

    failures: int = 0
    ends_at: float = -math.inf


class RunLookup:
    """The runs of an instance's DAGs during one tick. Each query is made once, when it is needed.

    Args:
        shared: The ids of Dagster runs that materialized an upstream and run the DAG as well.
            Updated here.
        hang: Whether the Airflow hangs. Updated here.
        deadline: For Airflow's answers, in seconds of the monotonic clock.
    """

    def __init__(
        self,
        client: AirflowClient,
        instance: dg.DagsterInstance,
        shared: DueCache,
        hang: Hang,
        timing: Timing,
        deadline: float,
    ) -> None:
        self._client = client
        self._instance = instance
        self._shared = shared
        self._hang = hang
        self._timing = timing
        self._deadline = deadline
        # The ids of the DAG runs that this tick requested, by DAG, partition and cause.
        self._requested: dict[tuple[str, str | None, str], str] = {}
        # The active runs of each DAG, as partitions by run id, or why they are not known.
        self._active: dict[str, dict[str, str | None] | str] = {}
        self._fetch_dagster_run = cache(instance.get_run_by_id)
        self._find_problem = cache(self._fetch_problem)
        self._list_active_runs = cache(self._fetch_active_runs)
        self._fetch_event = cache(partial(fetch_event, instance))
        self._fetch_run_order = cache(partial(fetch_run_order, instance))

    def add_requested(self, dag: Downstream, due: Due, run_id: str) -> None:
        """Add the DAG run that this tick has requested."""
        self._requested[dag.dag_id, due.partition, due.causes[-1].label] = run_id
        if isinstance(active := self._active.get(dag.dag_id), dict):
            active[run_id] = due.partition

    def fetch_event(self, cause: Cause) -> AssetEvent | None:
        """Fetch the event of a cause; None if it was deleted."""
        return self._fetch_event(cause.edge.key, cause.position)

    @cached_property
    def _active_requests(self) -> list[dg.DagsterRun]:
        return fetch_launching_runs(self._instance, self._client.instance, NOT_ENDED)

    def _fetch_active_runs(self, dag_id: str = "~") -> Page[DagRun] | str | None:
        """Fetch the active DAG runs that Dagster triggered, or why they are not known. Return None
        if there are too many, or if some ended while several pages were read."""
        client = self._client
        answer = self._ask(lambda: (client.fetch_active_runs(_MAX_RUNS, RUN_ID_PREFIX, dag_id),))
        if isinstance(answer, str):
            return answer
        (page,) = answer
        return None if page is None or page.has_shrunk else page

    def _find_active_runs(self, dag_id: str) -> Page[DagRun] | str:
        """Return the active DAG runs that Dagster triggered, or why they are not known. If there
        are too many, those of one DAG are fetched."""
        if (found := self._list_active_runs()) is None:
            found = self._list_active_runs(dag_id)
        too_many = f"Airflow '{self._client.instance}' has too many active runs of it to count them"
        return too_many if found is None else found

    def _fetch_problem(self, dag_id: str) -> str | None:
        """Fetch why Airflow would not run a DAG at present; None if it would."""
        dag = self._ask(lambda: self._client.fetch_dag(dag_id))
        return dag if isinstance(dag, str) else dag.problem

    def _ask(self, fetch: Callable[[], T]) -> T | str:
        """Return Airflow's answer, or why there is none. An Airflow that hangs gets the next
        request after a pause, because each one takes a part of the tick, and a thread."""
        now, hang, timing = self._timing.monotonic(), self._hang, self._timing
        late = f"Airflow '{self._client.instance}' has not answered in time"
        if now >= hang.ends_at:
            # Longer after each failure, up to four times: the Airflow may only be slow.
            timeout_s = timing.check_s * 2 ** min(hang.failures, 2)
            rest_s = max(0.0, timing.find_rest_s(self._deadline))
            try:
                (answer,) = run_in_threads([fetch], 1, min(timeout_s, rest_s))
            except AirflowError as error:
                answer = str(error)
            if answer is not None:
                hang.failures = 0
                return answer
            if rest_s < timing.check_s:  # it may not hang: the tick had too little time left
                return late
            hang.failures += 1
            hang.ends_at = now + timing.poll_unreachable.pause_s(hang.failures)
        return f"{late}; the next request is in {hang.ends_at - now:.0f} s"

    def find_obstacle(self, dag: Downstream, earlier: str | None) -> str | None:
        """Return why no run of a DAG may begin, in words; None if one may.

        Args:
            earlier: The id of the DAG run to clear, if there is one.
        """
        active = self._find_active(dag)
        if isinstance(active, str):
            return active
        is_bounded = dag.trigger.runs == "each" or dag.declaration.partitions is not None
        if len(active) >= (dag.trigger.at_once if is_bounded else 1):
            return f"it has active runs: {join_names(sorted(active))}"
        if earlier is not None and (earlier in active or self._is_active(dag, earlier)):
            return f"the run to clear is still active: {earlier}"
        return self._find_problem(dag.dag_id)

    def find_active_partitions(self, dag: Downstream) -> Collection[str | None]:
        """Return the partitions of a DAG that have active runs; empty if that is not known."""
        active = self._find_active(dag)
        return () if isinstance(active, str) else active.values()

    def _find_active(self, dag: Downstream) -> dict[str, str | None] | str:
        if dag.dag_id not in self._active:
            self._active[dag.dag_id] = self._fetch_active(dag)
        return self._active[dag.dag_id]

    def _fetch_active(self, dag: Downstream) -> dict[str, str | None] | str:
        """Fetch the active runs of a DAG that Dagster requested, or why they are not known.

        Airflow is asked, too: a DAG run is active without a Dagster run if it is not waited for, or
        if a worker died. A DAG run older than `trigger.timeout` does not count. (Airflow 2 does not
        return when a run was queued.)
        """
        partitions = dag.declaration.partitions
        active = {
            self._find_run_id(dag, run): get_partition(run)
            for run in self._active_requests
            if dag.key in (run.asset_selection or ())
            # A backfill is one Dagster run of several partitions: its DAG runs are counted below.
            and (partitions is None or get_partition(run) is not None)
        }
        if active and dag.trigger.runs == "latest" and partitions is None:
            return active
        page = self._find_active_runs(dag.dag_id)
        if isinstance(page, str):
            return page
        now = page.server_time or self._timing.utc_now()
        partitioning = partitions and Partitioning(partitions)
        for run in page.entries:
            since = run.queued_at or run.start_date or now
            is_overdue = (now - since).total_seconds() > dag.trigger.timeout
            if run.dag_id != dag.dag_id or is_overdue:
                continue
            if not any(is_of_target(run.run_id, known) for known in active):
                active[run.run_id] = partitioning.find_partition(run).key if partitioning else None
        return active

    def _is_active(self, dag: Downstream, run_id: str) -> bool:
        """Return whether a DAG run is active in Airflow, even if older than its time-out."""
        page = self._find_active_runs(dag.dag_id)
        runs = [] if isinstance(page, str) else page.entries
        return any(run.key == (dag.dag_id, run_id) for run in runs)

    def find_earlier_run(self, dag: Downstream, due: Due) -> str | None:
        """Find the id of the DAG run that an earlier end of the upstream run led to; None if there
        is none, or with `reruns: follow`."""
        label = due.causes[-1].label
        if dag.trigger.reruns == "follow" or not due.causes[-1].run_id:
            return None
        if (begun := self._requested.get((dag.dag_id, due.partition, label))) is not None:
            return begun
        run = find_run_after(self._instance, dag.instance, dag.dag_id, label, due.partition)
        return run and self._find_run_id(dag, run)

    def find_shared_run(self, dag: Downstream, due: Due) -> dg.DagsterRun | None:
        """Find the Dagster run that materialized the upstream, if it runs or has run the DAG after
        that: a person selected both, or a backfill did."""
        cause = due.causes[-1]
        if (run_id := self._shared.get(dag, due)) is None:
            event = self.fetch_event(cause)
            run_id = event.record.run_id if event else ""
            if run_id and not self._is_planned(run_id, dag, due):
                run_id = ""
        run = self._fetch_dagster_run(run_id) if run_id else None
        goes_on = run is not None and not run.is_finished
        self._shared.keep(dag, due, run_id if goes_on else None)
        if run is None or goes_on:
            return run
        if (event := self.fetch_event(cause)) is None:
            return None
        order = self._fetch_run_order(run_id)
        return run if order.is_launched_after(event, dag.key, due.partition) else None

    def _is_planned(self, dagster_run_id: str, dag: Downstream, due: Due) -> bool:
        """Return whether a Dagster run was created to run the DAG, or this partition of it."""
        planned = fetch_planned_partitions(self._instance, dagster_run_id).get(dag.key, [])
        # Dagster (1.13) may name the partitions of another asset for a DAG that has none.
        return bool(planned) and (
            due.partition is None or any(due.partition in each for each in planned)
        )

    def _find_run_id(self, dag: Downstream, run: dg.DagsterRun) -> str:
        """Return the id of the DAG run that a Dagster run starts or clears."""
        request = read_request(run, dag.instance, dag.dag_id)
        cleared = request and request.clears
        return cleared or build_run_id(run.root_run_id or run.run_id, get_partition(run))
