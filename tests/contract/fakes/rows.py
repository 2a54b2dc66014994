"""The rows of a fake Airflow's database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any


@dataclass(frozen=True)
class TaskSpec:
    """A task as its DAG defines it.

    Attributes:
        labels: Of each of its instances, if it is mapped.
        says: What it logs; "{label}" stands for its label.
    """

    task_id: str
    downstream: tuple[str, ...] = ()
    operator: str = "_PythonDecoratedOperator"
    trigger_rule: str = "all_success"
    retries: int = 0
    labels: tuple[str, ...] = ()
    says: tuple[str, ...] = ("Done.",)


@dataclass
class DagRow:
    """A DAG, and how its runs go.

    Attributes:
        is_present: Its file is there; else it is stale (3.x), or inactive (2.x).
        has_import_errors: Its file does not parse any more; the DAG is listed as it was.
        params: By name, each with `value`, `description` and `schema`.
        file: Below the folder of DAGs; its own if not said.
        tasks: Its tasks; of those told by their ids, each comes after the one before it. The last
            one fails when a run fails.
        key_format: Of its runs' partition keys, if it is partitioned (3.x).
        outcome: The state in which its runs end by themselves.
        polls: How often a run is read on its own until it ends by itself, 0 if it ends at once,
            infinity if it starts and goes on; None if it does not even start.
        refusal: Airflow's words when it refuses every trigger with 400; None if it takes them.
    """

    dag_id: str
    is_paused: bool = False
    is_present: bool = True
    has_import_errors: bool = False
    description: str | None = None
    doc: str | None = None
    owners: tuple[str, ...] = ("airflow",)
    tags: tuple[str, ...] = ()
    schedule: str | None = None
    start_date: datetime | None = None
    catchup: bool = False
    max_active_runs: int = 16
    run_timeout: timedelta | None = None
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    file: str = ""
    source: str = "# a DAG\n"
    tasks: tuple[str | TaskSpec, ...] = ("extract", "load")
    key_format: str | None = None
    outcome: str = "success"
    polls: float | None = None
    refusal: str | None = None

    def __post_init__(self) -> None:
        self.file = self.file or f"{self.dag_id}.py"

    @property
    def specs(self) -> list[TaskSpec]:
        following = [*(_get_id(task) for task in self.tasks[1:]), None]
        return [
            TaskSpec(task, (after,) if after else ()) if isinstance(task, str) else task
            for task, after in zip(self.tasks, following, strict=True)
        ]


def _get_id(task: str | TaskSpec) -> str:
    return task if isinstance(task, str) else task.task_id


@dataclass
class TaskRow:
    """One task instance.

    Attributes:
        log: Of its last try, without the error that ended it.
        earlier: Log and error of the tries before, by their number.
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
        """Lines and error of a try; None if there was none."""
        if try_number == self.try_number:
            return self.log, self.error
        return self.earlier.get(try_number)


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
        producers: Tasks as (DAG id, task id), each of which updates it when its run succeeds.
        scheduled: Ids of the DAGs that an update starts.
    """

    id: int
    uri: str
    created_at: datetime
    name: str = ""
    group: str = "asset"
    extra: Mapping[str, Any] = field(default_factory=dict)
    producers: tuple[tuple[str, str], ...] = ()
    scheduled: tuple[str, ...] = ()
    event_extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class AssetEventRow:
    """An update of an Airflow asset; `source` is None if no task made it."""

    id: int
    asset: AssetRow
    timestamp: datetime
    source: tuple[RunRow, TaskRow] | None
    extra: Mapping[str, Any]
    created_runs: list[RunRow]


@dataclass(frozen=True)
class ImportErrorRow:
    """A DAG file that does not parse."""

    id: int
    file: str
    stack_trace: str
    timestamp: datetime


@dataclass(frozen=True)
class WarningRow:
    """What there is to say against a DAG."""

    dag_id: str
    kind: str
    message: str
    timestamp: datetime
