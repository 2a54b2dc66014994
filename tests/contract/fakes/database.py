"""What a fake Airflow has in its database, and what makes something happen there."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from itertools import count
from threading import RLock
from typing import Any
from uuid import uuid4

from tests.contract.fakes.rows import (
    AssetEventRow,
    AssetRow,
    DagRow,
    ImportErrorRow,
    RunRow,
    TaskRow,
    TaskSpec,
    WarningRow,
)


class Database:
    """All rows of one Airflow. Its clock runs `skew` ahead of ours.

    Attributes:
        lock: Held by whoever reads or writes; the server holds it for a whole answer.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        self.dags: dict[str, DagRow] = {}
        self.runs: list[RunRow] = []
        self.assets: list[AssetRow] = []
        self.events: list[AssetEventRow] = []
        self.import_errors: list[ImportErrorRow] = []
        self.warnings: list[WarningRow] = []
        self.skew = timedelta()
        self._ids = count(1)

    def now(self) -> datetime:
        return datetime.now(timezone.utc) + self.skew

    def add_dag(self, dag_id: str, **columns: Any) -> DagRow:
        with self.lock:
            self.dags[dag_id] = DagRow(dag_id, **columns)
            return self.dags[dag_id]

    def add_asset(self, uri: str, **columns: Any) -> AssetRow:
        with self.lock:
            self.assets.append(AssetRow(next(self._ids), uri, self.now(), **columns))
            return self.assets[-1]

    def add_import_error(self, file: str, stack_trace: str) -> None:
        with self.lock:
            row = ImportErrorRow(next(self._ids), file, stack_trace, self.now())
            self.import_errors.append(row)

    def add_warning(self, dag_id: str, kind: str, message: str) -> None:
        with self.lock:
            self.warnings.append(WarningRow(dag_id, kind, message, self.now()))

    def add_event(
        self,
        asset: AssetRow,
        source: tuple[RunRow, TaskRow] | None = None,
        timestamp: datetime | None = None,
    ) -> AssetEventRow:
        """An update of an asset, and the runs that it starts."""
        with self.lock:
            runs = [self.start_run(dag_id, run_type="asset") for dag_id in asset.scheduled]
            when, extra = timestamp or self.now(), asset.event_extra
            event = AssetEventRow(next(self._ids), asset, when, source, extra, runs)
            self.events.append(event)
            return event

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
        **columns: Any,
    ) -> RunRow:
        """A new run, as the scheduler, a person or a trigger makes it."""
        with self.lock:
            dag, now = self.dags[dag_id], self.now()
            run = RunRow(
                id=next(self._ids),
                dag_id=dag_id,
                run_id=run_id or f"{columns.get('run_type', 'manual')}__{uuid4()}",
                state=state,
                conf=conf or {},
                logical_date=logical_date,
                queued_at=now,
                updated_at=now,
                start_date=now if state == "running" else None,
                tasks=[task for spec in dag.specs for task in _build_tasks(spec)],
                polls_left=dag.polls,
                outcome=dag.outcome,
                **columns,
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
        """The run, ended by its tasks: all that are not over yet, or failed, ran just now."""
        with self.lock:
            left = [task for task in run.tasks if task.state not in ("success", "skipped")]
            for task in left:
                self._run_task(run, task, "success")
            if state == "failed" and left:
                left[-1].state = "failed"
                left[-1].error = f"{left[-1].task_id} could not read its table"
            run.state = state
            run.end_date = end_date or self.now()
            run.start_date = min(run.start_date or run.queued_at, run.end_date)
            run.updated_at = updated_at or self.now()
            run.polls_left = None
            for asset in self.assets:
                for task in left:
                    if task.state == "success" and (run.dag_id, task.task_id) in asset.producers:
                        self.add_event(asset, (run, task))
            return run

    def _run_task(self, run: RunRow, task: TaskRow, state: str) -> None:
        if task.state != "running":
            task.try_number += 1
            task.start_date = self.now()
        spec = next(one for one in self.dags[run.dag_id].specs if one.task_id == task.task_id)
        says = [line.format(label=task.label) for line in spec.says]
        task.log = [f"Starting attempt {task.try_number} of {task.task_id}", *says]
        task.state, task.error = state, None
        task.end_date = self.now() if state == "success" else None

    def finish_after(self, run: RunRow, polls: int, state: str = "success") -> None:
        """Has a run end when it is read on its own for the `polls`-th time from now on."""
        with self.lock:
            run.polls_left, run.outcome = polls, state

    def set_state(self, run: RunRow, state: str) -> None:
        """As a person sets it: a run that was over keeps its end, one never started no start. Its
        tasks end with it, and those that have not begun never do."""
        with self.lock:
            for task in run.tasks:
                if task.state == "running":
                    task.state, task.end_date = state, self.now()
                elif task.state is None:
                    task.state = "success" if state == "success" else "skipped"
                    task.start_date = task.end_date = self.now()
            run.state = state
            run.end_date = run.end_date or self.now()
            run.updated_at = self.now()
            run.polls_left = None

    def clear(self, run: RunRow, *, only_failed: bool = False) -> list[TaskRow]:
        """The tasks that are to run again; the run goes back to the queue without its dates."""
        with self.lock:
            cleared = [task for task in run.tasks if task.state == "failed" or not only_failed]
            for task in cleared:
                task.earlier[task.try_number] = task.log, task.error
                task.state, task.start_date, task.end_date = None, None, None
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
        if run.polls_left is None or run.is_finished:
            return
        if run.state == "queued" and self.dags[run.dag_id].is_paused:
            return
        run.polls_left -= 1
        if run.polls_left <= 0:
            self.finish_run(run, run.outcome)
        elif run.state == "queued":
            run.state, run.start_date, run.updated_at = "running", self.now(), self.now()
            for task in [task for task in run.tasks if task.state is None][:1]:
                self._run_task(run, task, "running")


def _build_tasks(spec: TaskSpec) -> list[TaskRow]:
    if not spec.labels:
        return [TaskRow(spec.task_id, operator=spec.operator)]
    return [
        TaskRow(spec.task_id, index, label, spec.operator)
        for index, label in enumerate(spec.labels)
    ]
