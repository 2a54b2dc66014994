"""The rows of a fake Airflow's database, and the changes that a test makes to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from itertools import count
from threading import RLock
from typing import Any
from uuid import uuid4


@dataclass(frozen=True)
class TaskSpec:
    """A task as its DAG defines it.

    Attributes:
        labels: One for each instance of a mapped task.
        says: The lines that it logs; "{label}" stands for its label.
    """

    task_id: str
    operator: str = "_PythonDecoratedOperator"
    labels: tuple[str, ...] = ()
    says: tuple[str, ...] = ("Done.",)


@dataclass
class DagRow:
    """A DAG, and how its runs go.

    Attributes:
        is_present: Whether its file exists; if not, it is stale (3.x) or inactive (2.x).
        last_parsed_at: When its file last defined it.
        has_import_errors: Whether its file can't be imported; it is listed as it was.
        plan: Fields of its answers about its schedule, in place of those of a DAG without one.
        params: By name, each with `value`, `description` and `schema`.
        file: The path of its file below the folder of DAGs.
        tasks: Its tasks or their ids, in the order in which they run. If a run fails, the last one
            fails.
        key_format: The format of its runs' partition keys, if it is partitioned (3.x).
        outcome: The state in which its runs end by themselves.
        polls: How often a run is polled until it ends by itself: 0 if it ends at once, infinity if
            it starts and never ends, None if it does not even start.
        refusal: The detail with which every trigger is refused (400), or None.
        needs_date: Its tasks use their run's dates, so that a run without a logical date fails.
    """

    dag_id: str
    is_paused: bool = False
    is_present: bool = True
    last_parsed_at: datetime | None = None
    has_import_errors: bool = False
    description: str | None = None
    owners: tuple[str, ...] = ("airflow",)
    tags: tuple[str, ...] = ()
    schedule: str | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    file: str = ""
    source: str = "# a DAG\n"
    tasks: tuple[str | TaskSpec, ...] = ("extract", "load")
    key_format: str | None = None
    outcome: str = "success"
    polls: float | None = None
    refusal: str | None = None
    needs_date: bool = False

    def __post_init__(self) -> None:
        self.file = self.file or f"{self.dag_id}.py"

    @property
    def specs(self) -> list[TaskSpec]:
        return [TaskSpec(task) if isinstance(task, str) else task for task in self.tasks]


@dataclass
class TaskRow:
    """A task instance.

    Attributes:
        log: The lines of its last try, without the error that ended it.
        earlier: Log and error of earlier tries, by their number.
    """

    task_id: str
    map_index: int = -1
    label: str | None = None
    operator: str = "_PythonDecoratedOperator"
    state: str | None = None
    try_number: int = 0
    log: list[str] = field(default_factory=list)
    error: str | None = None
    earlier: dict[int, tuple[list[str], str | None]] = field(default_factory=dict)
    start_date: datetime | None = None
    end_date: datetime | None = None

    def find_log(self, try_number: int) -> tuple[list[str], str | None] | None:
        """Return lines and error of a try, or None if there was none."""
        if try_number == self.try_number:
            return self.log, self.error
        return self.earlier.get(try_number)


@dataclass
class RunRow:
    """A DAG run.

    Attributes:
        id: The row's number. No API shows it, but lists are ordered by it.
        polls_left: How often it is polled until it ends by itself; None if it does not.
    """

    id: int
    dag_id: str
    run_id: str
    state: str
    conf: Mapping[str, Any]
    logical_date: datetime | None
    queued_at: datetime
    updated_at: datetime
    run_type: str = "manual"
    data_interval: tuple[datetime, datetime] | None = None
    note: str | None = None
    partition_key: str | None = None
    start_date: datetime | None = None
    end_date: datetime | None = None
    tasks: list[TaskRow] = field(default_factory=list)
    polls_left: float | None = None
    outcome: str = "success"

    @property
    def is_finished(self) -> bool:
        return self.state in {"success", "failed"}


@dataclass
class AssetRow:
    """An Airflow asset.

    Attributes:
        producers: The tasks that update it, as (DAG id, task id).
        scheduled: The ids of the DAGs that an update starts.
    """

    id: int
    uri: str
    created_at: datetime
    name: str = ""
    group: str = "asset"
    extra: Mapping[str, Any] = field(default_factory=dict)
    producers: tuple[tuple[str, str], ...] = ()
    scheduled: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImportErrorRow:
    """A DAG file that can't be imported."""

    id: int
    file: str
    stack_trace: str
    timestamp: datetime


class Database:
    """All rows of one Airflow.

    Attributes:
        lock: Held while reading and writing; the server holds it for a whole answer.
        skew: How far its clock is ahead of ours.
        stopped_at: Where its clock stands still, if it does.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        self.dags: dict[str, DagRow] = {}
        self.runs: list[RunRow] = []
        self.assets: list[AssetRow] = []
        self.import_errors: list[ImportErrorRow] = []
        self.skew = timedelta()
        self.stopped_at: datetime | None = None
        self._ids = count(1)

    def now(self) -> datetime:
        return self.stopped_at or datetime.now(timezone.utc) + self.skew

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
        """Add a run, as the scheduler, a person or a trigger does."""
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
                outcome=_decide_outcome(dag, logical_date),
                **columns,
            )
            self.runs.append(run)
            return self.finish_run(run, run.outcome) if dag.polls == 0 else run

    def finish_run(
        self,
        run: RunRow,
        state: str = "success",
        end_date: datetime | None = None,
        updated_at: datetime | None = None,
    ) -> RunRow:
        """End a run by its tasks: those that are not over, or failed, run now."""
        with self.lock:
            pending = [task for task in run.tasks if task.state not in ("success", "skipped")]
            for task in pending:
                self._run_task(run, task, "success")
            if state == "failed" and pending:
                pending[-1].state = "failed"
                pending[-1].error = f"{pending[-1].task_id} could not read its table"
            run.state = state
            run.end_date = end_date or self.now()
            run.start_date = min(run.start_date or run.queued_at, run.end_date)
            run.updated_at = updated_at or self.now()
            run.polls_left = None
            return run

    def _run_task(self, run: RunRow, task: TaskRow, state: str) -> None:
        if task.state != "running":
            task.try_number += 1
            task.start_date = self.now()
        specs = {spec.task_id: spec for spec in self.dags[run.dag_id].specs}
        says = [line.format(label=task.label) for line in specs[task.task_id].says]
        task.log = [f"Starting attempt {task.try_number} of {task.task_id}", *says]
        task.state, task.error = state, None
        task.end_date = self.now() if state == "success" else None

    def finish_after(self, run: RunRow, polls: int, state: str = "success") -> None:
        """Let a run end when it is polled for the `polls`-th time from now on."""
        with self.lock:
            run.polls_left, run.outcome = polls, state

    def set_state(self, run: RunRow, state: str) -> None:
        """Set a run's state by hand: a finished run keeps its end, one that never started has no
        start. Its running tasks end, and the others never start."""
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
        """Clear a run, which goes back to the queue without its dates. Return the cleared tasks."""
        with self.lock:
            cleared = [task for task in run.tasks if task.state == "failed" or not only_failed]
            for task in cleared:
                task.earlier[task.try_number] = task.log, task.error
                task.state, task.start_date, task.end_date = None, None, None
            if cleared:
                run.state, run.start_date, run.end_date = "queued", None, None
                run.queued_at = run.updated_at = self.now()
                run.polls_left = self.dags[run.dag_id].polls
                run.outcome = _decide_outcome(self.dags[run.dag_id], run.logical_date)
            return cleared

    def delete_run(self, run: RunRow) -> None:
        with self.lock:
            self.runs.remove(run)

    def count_poll(self, run: RunRow) -> None:
        """Advance a run that ends by itself, since it was polled."""
        if run.polls_left is None or run.is_finished:
            return
        if run.state == "queued" and self.dags[run.dag_id].is_paused:
            return
        if run.logical_date is not None and run.logical_date > self.now():
            return
        run.polls_left -= 1
        if run.polls_left <= 0:
            self.finish_run(run, run.outcome)
        elif run.state == "queued":
            run.state, run.start_date, run.updated_at = "running", self.now(), self.now()
            for task in [task for task in run.tasks if task.state is None][:1]:
                self._run_task(run, task, "running")


def _decide_outcome(dag: DagRow, logical_date: datetime | None) -> str:
    return "failed" if dag.needs_date and logical_date is None else dag.outcome


def _build_tasks(spec: TaskSpec) -> list[TaskRow]:
    if not spec.labels:
        return [TaskRow(spec.task_id, operator=spec.operator)]
    return [
        TaskRow(spec.task_id, index, label, spec.operator)
        for index, label in enumerate(spec.labels)
    ]
