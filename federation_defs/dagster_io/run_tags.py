"""Run tags: what outlives the worker of a Dagster run that launches DAGs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock

import dagster as dg

from federation_defs.airflow.models import DagRun
from federation_defs.naming import (
    build_dag_run_tag,
    build_detached_tag,
    build_plan_tag,
    build_run_id,
    parse_root_run_id,
)

_lock = Lock()


def add_run_tags(instance: dg.DagsterInstance, run_id: str, tags: Mapping[str, str]) -> None:
    """Adds tags to a Dagster run, one thread of this process at a time.

    Dagster reads all tags of the run, and writes them back with the new ones (1.13,
    `SqlRunStorage.add_run_tags`): of two threads that do so at once, one's would be lost.
    """
    with _lock:
        instance.add_run_tags(run_id, tags)


def read_planned_runs(run: dg.DagsterRun | None, tag: str) -> dict[str, tuple[str, str]]:
    """The DAG runs of somebody else's that a Dagster run took over, as its tag tells.

    By target (a DAG id, and maybe a partition): run id, and how the run was when that was decided.
    """
    try:
        plans = json.loads(run.tags.get(tag, "{}")) if run else {}
        return {name: (run_id, mark) for name, (run_id, mark) in plans.items()}
    except (AttributeError, TypeError, ValueError):  # a person may edit tags
        return {}


_ADOPTED = "adopted"

_WRITES = 3

_GOING_ON = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


@dataclass(frozen=True)
class Target:
    """A DAG run that is to be brought about: of a DAG, or of one of its partitions."""

    dag_id: str
    partition: str | None = None

    @property
    def name(self) -> str:
        return self.dag_id if self.partition is None else f"{self.dag_id} [{self.partition}]"


class CurrentRun:
    """A Dagster run: a first one, or a re-execution, which goes on where the one before it stopped.

    Safe to share between threads.

    Args:
        airflow: The Airflow instance's name.

    Attributes:
        is_first: There was none before it.
        is_automatic: It is a retry of Dagster's own.
        is_requested_by_automation: No person or backfill asked for it.
    """

    def __init__(self, instance: dg.DagsterInstance, run: dg.DagsterRun, airflow: str) -> None:
        self._instance = instance
        self._run = run
        self._airflow = airflow
        self._root_run_id = run.root_run_id or run.run_id
        self.is_first = run.parent_run_id is None
        self.is_automatic = "dagster/retry_number" in run.tags
        # A person may execute again what an automation requested.
        is_by_person = not self.is_first and not self.is_automatic
        self.is_requested_by_automation = is_automation(run) and not is_by_person
        self._plans = self._read_plans()
        if self._plans:  # the attempt after this one reads them here
            self._tag(build_plan_tag(airflow), json.dumps(self._plans))
        self._own_plans: set[str] = set()
        self._detached: list[tuple[str, str]] = []
        self._lock = Lock()
        if build_detached_tag(airflow) in run.tags:
            self.detach()  # nothing yet: a retry has the tags of the run before it

    def build_run_id(self, target: Target, number: int = 1) -> str:
        return build_run_id(self._root_run_id, target.partition, number)

    def owns(self, target: Target, run: DagRun) -> bool:
        """Whether the DAG run is of our making: started by us, or run again."""
        is_started = parse_root_run_id(run.run_id) == self._root_run_id
        run_id, mark = self._plans.get(target.name, ("", _ADOPTED))
        return is_started or (run_id == run.run_id and mark != _ADOPTED)

    def find_planned_run_id(self, target: Target) -> str | None:
        """The run of somebody else's that was adopted for this target, or was to be run again, by
        this attempt or one before."""
        planned = self._plans.get(target.name)
        return planned[0] if planned else None

    def is_still_planned(self, target: Target, run: DagRun) -> bool:
        """Whether a run that was to be run again has not been since: it ended when it had then."""
        return self._plans.get(target.name) == (run.run_id, _build_mark(run))

    def has_planned(self, target: Target) -> bool:
        """Whether it is this attempt that planned to have a run of the target run again."""
        return target.name in self._own_plans

    def plan(self, target: Target, run: DagRun) -> None:
        """Puts down that a finished run is about to be run again.

        Before it is done: whoever goes on after us sees by the run's end whether it was.
        """
        self._own_plans.add(target.name)
        self._write_plan(target, run, _build_mark(run))

    def adopt(self, target: Target, run: DagRun) -> None:
        """Puts down that a run of somebody else's is the target's, as it is."""
        self._write_plan(target, run, _ADOPTED)

    def _write_plan(self, target: Target, run: DagRun, mark: str) -> None:
        tag = build_plan_tag(self._airflow)
        with self._lock:
            self._plans[target.name] = (run.run_id, mark)
            # Again if a step of another process wrote the run's tags at the same moment.
            for _ in range(_WRITES):
                self._tag(tag, json.dumps(self._plans))
                written = self._instance.get_run_by_id(self._run.run_id)
                if written is None or written.tags.get(tag) == json.dumps(self._plans):
                    break

    def detach(self, *runs: tuple[str, str]) -> None:
        """Lets observation report these runs (DAG id, run id), which go on without us, or are not
        judged."""
        with self._lock:
            self._detached += runs
            self._tag(build_detached_tag(self._airflow), json.dumps(self._detached))

    def tag_dag_run(self, dag_id: str, run_ids: list[str]) -> None:
        """Has the Dagster run be found by its DAG run."""
        more = f" and {len(run_ids) - 1} more" if len(run_ids) > 1 else ""
        self._tag(build_dag_run_tag(self._airflow, dag_id), f"{run_ids[0]}{more}")

    def find_earlier_runs(self) -> list[str]:
        """Attempts at the same that began before this one and go on, as Dagster run ids.

        Dagster's own retry and a person's may come at the same time. Of two that report a DAG run
        at the same moment, neither would see that the other does.
        """
        root = dg.RunsFilter(run_ids=[self._root_run_id], statuses=_GOING_ON)
        retries = dg.RunsFilter(tags={"dagster/root_run_id": self._root_run_id}, statuses=_GOING_ON)
        records = [
            *self._instance.get_run_records(root),
            *self._instance.get_run_records(retries),
        ]
        began = {record.dagster_run.run_id: record.start_time or 0.0 for record in records}
        own_id = self._run.run_id
        own = (began.get(own_id, math.inf), own_id)
        return sorted(one for one, at in began.items() if one != own_id and (at, one) < own)

    def fetch_status(self) -> dg.DagsterRunStatus:
        """How the Dagster run is doing by Dagster's own account."""
        run = self._instance.get_run_by_id(self._run.run_id)
        return run.status if run else dg.DagsterRunStatus.CANCELED

    def _tag(self, key: str, value: str) -> None:
        add_run_tags(self._instance, self._run.run_id, {key: value})

    def _read_plans(self) -> dict[str, tuple[str, str]]:
        """With those of the attempt before, whose tags this one need not have."""
        parent_id = self._run.parent_run_id
        parent = self._instance.get_run_by_id(parent_id) if parent_id else None
        tag = build_plan_tag(self._airflow)
        return {**read_planned_runs(parent, tag), **read_planned_runs(self._run, tag)}


def _build_mark(run: DagRun) -> str:
    return f"{run.state} {run.end_date.isoformat() if run.end_date else ''}".rstrip()


def is_automation(run: dg.DagsterRun) -> bool:
    """Whether an automation condition requested the run, and no person did."""
    return "dagster/from_automation_condition" in run.tags
