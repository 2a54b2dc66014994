"""What a fake Airflow has in its database, and what makes something happen there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from itertools import count
from threading import RLock
from typing import Any
from uuid import uuid4


@dataclass
class DagRow:
    """A DAG, and how its runs go.

    Attributes:
        is_present: Its file is there; else it is stale (3.x), or inactive (2.x).
        tasks: Its task ids; the last one fails when a run fails.
        outcome: The state in which its runs end by themselves.
        polls: How often a run is read on its own until it ends by itself, 0 if it ends at once;
            None if it does not.
        refusal: Airflow's words when it refuses every trigger with 400; None if it takes them.
    """

    dag_id: str
    is_paused: bool = False
    is_present: bool = True
    description: str | None = None
    owners: tuple[str, ...] = ("airflow",)
    tags: tuple[str, ...] = ()
    schedule: str | None = None
    source: str = "# a DAG\n"
    tasks: tuple[str, ...] = ("extract", "load")
    outcome: str = "success"
    polls: int | None = None
    refusal: str | None = None


@dataclass
class TaskRow:
    """One task instance; its log is that of its last try."""

    task_id: str
    map_index: int = -1
    state: str | None = None
    try_number: int = 0
    log: list[str] = field(default_factory=list)
    error: str | None = None


@dataclass
class RunRow:
    """One DAG run.

    Attributes:
        id: The row's number; no API shows it, but lists are ordered by it.
        polls_left: How often it is read on its own until it ends by itself; None if it does not.
    """

    id: int
    dag_id: str
    run_id: str
    state: str
    conf: Mapping[str, Any]
    logical_date: datetime | None
    queued_at: datetime
    updated_at: datetime
    start_date: datetime | None = None
    end_date: datetime | None = None
    tasks: list[TaskRow] = field(default_factory=list)
    polls_left: int | None = None
    outcome: str = "success"


class Database:
    """All rows of one Airflow. Its clock runs `skew` ahead of ours.

    Attributes:
        lock: Held by whoever reads or writes; the server holds it for a whole answer.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        self.dags: dict[str, DagRow] = {}
        self.runs: list[RunRow] = []
        self.skew = timedelta()
        self._ids = count(1)

    def now(self) -> datetime:
        return datetime.now(timezone.utc) + self.skew

    def add_dag(self, dag_id: str, **columns: Any) -> DagRow:
        with self.lock:
            self.dags[dag_id] = DagRow(dag_id, **columns)
            return self.dags[dag_id]

    def find_run(self, dag_id: str, run_id: str) -> RunRow | None:
        with self.lock:
            found = [run for run in self.runs if (run.dag_id, run.run_id) == (dag_id, run_id)]
            return found[0] if found else None

    def start_run(
        self,
        dag_id: str,
        run_id: str | None = None,
        state: str = "running",
        conf: Mapping[str, Any] | None = None,
        logical_date: datetime | None = None,
    ) -> RunRow:
        """A new run, as the scheduler, a person or a trigger makes it."""
        with self.lock:
            dag, now = self.dags[dag_id], self.now()
            run = RunRow(
                id=next(self._ids),
                dag_id=dag_id,
                run_id=run_id or f"manual__{uuid4()}",
                state=state,
                conf=conf or {},
                logical_date=logical_date,
                queued_at=now,
                updated_at=now,
                start_date=now if state == "running" else None,
                tasks=[TaskRow(task_id) for task_id in dag.tasks],
                polls_left=dag.polls,
                outcome=dag.outcome,
            )
            self.runs.append(run)
            return self.finish_run(run, dag.outcome) if dag.polls == 0 else run

    def finish_run(
        self,
        run: RunRow,
        state: str = "success",
        end_date: datetime | None = None,
        updated_at: datetime | None = None,
    ) -> RunRow:
        """The run, ended by its tasks: all that have not succeeded yet ran just now."""
        with self.lock:
            left = [task for task in run.tasks if task.state != "success"]
            for task in left:
                task.state, task.error = "success", None
                task.try_number += 1
                task.log = [f"Starting attempt {task.try_number} of {task.task_id}", "Done."]
            if state == "failed" and left:
                left[-1].state = "failed"
                left[-1].error = f"{left[-1].task_id} could not read its table"
            run.state = state
            run.end_date = end_date or self.now()
            run.start_date = min(run.start_date or run.queued_at, run.end_date)
            run.updated_at = updated_at or self.now()
            run.polls_left = None
            return run

    def finish_after(self, run: RunRow, polls: int, state: str = "success") -> None:
        """Has a run end when it is read on its own for the `polls`-th time from now on."""
        with self.lock:
            run.polls_left, run.outcome = polls, state

    def set_state(self, run: RunRow, state: str) -> None:
        """As a person sets it: a run that was over keeps its end, one never started no start."""
        with self.lock:
            run.state = state
            run.end_date = run.end_date or self.now()
            run.updated_at = self.now()
            run.polls_left = None

    def clear(self, run: RunRow, *, only_failed: bool = False) -> list[TaskRow]:
        """The tasks that are to run again; the run goes back to the queue without its dates."""
        with self.lock:
            cleared = [task for task in run.tasks if task.state == "failed" or not only_failed]
            for task in cleared:
                task.state = None
            if cleared:
                run.state, run.start_date, run.end_date = "queued", None, None
                run.queued_at = run.updated_at = self.now()
                run.polls_left = self.dags[run.dag_id].polls
                run.outcome = self.dags[run.dag_id].outcome
            return cleared

    def delete_run(self, run: RunRow) -> None:
        with self.lock:
            self.runs.remove(run)

    def count_poll(self, run: RunRow) -> None:
        """Moves on a run that ends by itself, for it was read on its own."""
        if run.polls_left is None or run.state in {"success", "failed"}:
            return
        run.polls_left -= 1
        if run.polls_left <= 0:
            self.finish_run(run, run.outcome)
        elif run.state == "queued":
            run.state, run.start_date, run.updated_at = "running", self.now(), self.now()
