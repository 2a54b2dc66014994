"""The Dagster run that executes a step: the tags that the step reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import takewhile
from threading import Lock

import dagster as dg

from federation_defs.airflow.models import DagRun, RunKey
from federation_defs.dagster_io.run_tags import (
    ROOT_TAG,
    STARTED,
    Request,
    Target,
    add_run_tags,
    build_long_tags,
    fetch_dagster_runs,
    fetch_launching_runs,
    find_owners,
    is_from_condition,
    may_have_launched,
    read_detached,
    read_plans,
    read_request,
)
from federation_defs.naming import (
    build_dag_run_tag,
    build_detached_tag,
    build_plan_tag,
    build_run_id,
    parse_root_run_id,
)

_ADOPTED = "adopted"
_WRITES = 3


class CurrentRun:
    """The Dagster run that executes this step: a first attempt, or a re-execution. Thread-safe.

    Args:
        airflow: The Airflow instance's name.

    Attributes:
        is_first: The run is not a re-execution.
        is_dagster_retry: Dagster itself retried the run (`run_retries`).
    """

    def __init__(self, instance: dg.DagsterInstance, run: dg.DagsterRun, airflow: str) -> None:
        self.instance = instance
        self._run = run
        self._airflow = airflow
        self._root_run_id = run.root_run_id or run.run_id
        self.run_id = run.run_id
        self.is_first = run.parent_run_id is None
        self.is_dagster_retry = "dagster/retry_number" in run.tags
        self._plan_tag = build_plan_tag(airflow)
        # A re-execution from the UI need not have the tags of the attempt before it.
        self._parent = instance.get_run_by_id(run.parent_run_id) if run.parent_run_id else None
        parent = self._parent
        # An earlier step of this run may have written tags since the run was loaded.
        stored = instance.get_run_by_id(run.run_id) or run
        self._plans = {**read_plans(parent, airflow), **read_plans(stored, airflow)}
        if self._plans:
            self._tag(build_long_tags(self._plan_tag, self._plans))
        self._own_plans: set[str] = set()
        detached = read_detached(stored, airflow)
        is_inherited = parent is not None and detached == read_detached(parent, airflow)
        self._detached = [] if is_inherited else sorted(detached)
        self._lock = Lock()
        if is_inherited and detached:
            self.detach()  # clears the tag

    def build_run_id(self, target: Target, number: int = 1) -> str:
        return build_run_id(self._root_run_id, target.partition, number)

    def get_request(self, dag_id: str) -> Request | None:
        """Return the event sensor's request for a DAG, from this Dagster run or the attempt before
        it; None if the event sensor did not request the DAG."""
        requests = (read_request(run, self._airflow, dag_id) for run in (self._run, self._parent))
        return next(filter(None, requests), None)

    def owns(self, target: Target, run: DagRun) -> bool:
        """Whether this Dagster run, or an attempt before it, triggered or cleared the DAG run."""
        is_triggered = parse_root_run_id(run.run_id) == self._root_run_id
        run_id, mark = self._plans.get(target.name, ("", _ADOPTED))
        return is_triggered or (run_id == run.run_id and mark != _ADOPTED)

    def get_planned_run_id(self, target: Target) -> str | None:
        """Return the id of the DAG run that an attempt adopted, or planned to run again, for this
        target; None if there is none."""
        run_id, _ = self._plans.get(target.name, (None, ""))
        return run_id

    def is_clear_pending(self, target: Target, run: DagRun) -> bool:
        """Whether a clear was planned but not made: the run still has the state and the end that it
        had when the clear was planned."""
        return self._plans.get(target.name) == (run.run_id, _build_mark(run))

    def has_planned_clear(self, target: Target) -> bool:
        """Whether this attempt, and not an earlier one, planned to run the target's DAG run
        again."""
        return target.name in self._own_plans

    def plan_clear(self, target: Target, run: DagRun) -> None:
        """Record that a finished run is about to be cleared, or replaced by a new one
        (`on_retry: new_run`). Called before either happens."""
        self._own_plans.add(target.name)
        self._write_plan(target, run, _build_mark(run))

    def record_adoption(self, target: Target, run: DagRun) -> None:
        """Record that this Dagster run waits for a DAG run that it did not trigger, as the target's
        run."""
        self._write_plan(target, run, _ADOPTED)

    def detach(self, *runs: RunKey) -> None:
        """Leave DAG runs to observation, which reports them when they end."""
        with self._lock:
            self._detached += runs
            self._tag(build_long_tags(build_detached_tag(self._airflow), self._detached))

    def tag_dag_run(self, dag_id: str, run_ids: list[str]) -> None:
        """Tag this Dagster run with the first DAG run id, and the number of the others."""
        more = f" and {len(run_ids) - 1} more" if len(run_ids) > 1 else ""
        self._tag({build_dag_run_tag(self._airflow, dag_id): f"{run_ids[0]}{more}"})

    def find_launched(self, target: Target, run_ids: Iterable[str]) -> str | None:
        """Find the first of some Dagster runs that an automation condition requested, that is not a
        re-execution, and that has launched the target's DAG or may still launch it.

        Args:
            run_ids: The latest first. Those listed before this run were requested after it and
                don't count.
        """
        others = list(run_ids)
        if self.run_id in others:
            others = others[others.index(self.run_id) + 1 :]
        if not others:
            return None
        same = (
            run.run_id
            for run in fetch_dagster_runs(self.instance, run_ids=others)
            if is_from_condition(run)
            and run.parent_run_id is None
            and may_have_launched(run, self._airflow, target.dag_id)
        )
        return next(same, None)

    def fetch_run_group(self) -> list[dg.DagsterRun]:
        """Fetch the other runs of the group (the root run and its re-executions) that have started
        and have not ended."""
        root = self._root_run_id
        runs = fetch_dagster_runs(self.instance, run_ids=[root], statuses=STARTED)
        runs += fetch_dagster_runs(self.instance, tags={ROOT_TAG: root}, statuses=STARTED)
        return [run for run in runs if run.run_id != self.run_id]

    def find_earlier_owners(
        self, run: DagRun, is_alive: Callable[[dg.DagsterRun], bool]
    ) -> list[str]:
        """Find the ids of the living Dagster runs that report a DAG run instead of this one: the
        run that triggered it, and those that adopted it and have a smaller id."""
        owners = find_owners(self.instance, self._airflow, [run.key], is_alive)[run.key]
        return list(takewhile(lambda owner: owner != self.run_id, owners))

    def count_active_runs(self) -> int:
        """Count the started Dagster runs that launch DAG runs of this Airflow: at least 1, for this
        one, and at most 50."""
        return max(1, len(fetch_launching_runs(self.instance, self._airflow, limit=50)))

    def fetch_status(self) -> dg.DagsterRunStatus | None:
        """Fetch this run's status; None if a person has deleted the run."""
        run = self.instance.get_run_by_id(self.run_id)
        return run.status if run else None

    def _tag(self, tags: dict[str, str]) -> None:
        add_run_tags(self.instance, self.run_id, tags)

    def _write_plan(self, target: Target, run: DagRun, mark: str) -> None:
        with self._lock:
            self._plans[target.name] = (run.run_id, mark)
            tags = build_long_tags(self._plan_tag, self._plans)
            # A step in another process may write the run's tags at the same moment.
            for _ in range(_WRITES):
                self._tag(tags)
                written = self.instance.get_run_by_id(self.run_id)
                if written is None or tags.items() <= written.tags.items():
                    break


def _build_mark(run: DagRun) -> str:
    return f"{run.state} {run.end_date.isoformat() if run.end_date else ''}".rstrip()
