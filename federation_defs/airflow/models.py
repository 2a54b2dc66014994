"""Records of what Airflow answers, the same for both APIs.

Times are aware and in UTC. A value that is missing is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

ACTIVE_STATES = frozenset({"queued", "running"})
FINISHED_STATES = frozenset({"success", "failed"})

RunKey = tuple[str, str]  # DAG id and run id: run ids are unique per DAG only


@dataclass(frozen=True, slots=True)
class Dag:
    """A DAG as an instance lists it.

    Attributes:
        is_present: Whether its file exists. Airflow goes on listing a DAG for a while after its
            file was deleted (`is_active` in 2.x, `is_stale` in 3.x).
        has_import_errors: Whether its file can't be imported as it is now.
        is_partitioned: Whether its runs have partition keys instead of logical dates (3.2).
        schedule: Its schedule as text (a cron expression, "@daily"), or None.
        file_token: The id of its source in 2.x.
        file: The path of its file, the same for all DAGs in one file.
        raw: The whole answer if asked for, which is most of the memory that a long list takes.
    """

    dag_id: str
    is_paused: bool
    is_present: bool
    has_import_errors: bool
    is_partitioned: bool
    description: str | None
    owners: tuple[str, ...]
    tags: tuple[str, ...]
    schedule: str | None
    file_token: str
    file: str
    raw: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class DagRun:
    """One run of a DAG.

    Every date may be missing: in 3.x the logical date is optional, and a cleared run loses its
    start and end.

    Attributes:
        run_type: Such as "scheduled", "manual", "backfill", "asset_triggered" (3.x) or
            "dataset_triggered" (2.x).
        run_after: The earliest start (3.x).
        partition_key: For runs of partitioned DAGs (3.2).
    """

    dag_id: str
    run_id: str
    state: str
    run_type: str | None
    logical_date: datetime | None
    data_interval_start: datetime | None
    data_interval_end: datetime | None
    run_after: datetime | None
    queued_at: datetime | None
    start_date: datetime | None
    end_date: datetime | None
    conf: Mapping[str, Any]
    note: str | None
    partition_key: str | None

    @property
    def key(self) -> RunKey:
        return self.dag_id, self.run_id

    @property
    def is_finished(self) -> bool:
        return self.state in FINISHED_STATES

    @property
    def is_success(self) -> bool:
        return self.state == "success"


@dataclass(frozen=True, slots=True)
class TriggerOptions:
    """Options of a trigger.

    Attributes:
        logical_date: Defaults to the start of the data interval, if that is given.
        data_interval: Start and end (2.9). By default Airflow infers them from the logical date.
        partition_key: For a partitioned DAG (3.2), instead of a logical date.
    """

    logical_date: datetime | None = None
    data_interval: tuple[datetime, datetime] | None = None
    note: str | None = None
    partition_key: str | None = None


@dataclass(frozen=True, slots=True)
class TaskInstance:
    """The last try of one task in a DAG run.

    Attributes:
        map_index: -1 unless the task is mapped.
        state: None before it is scheduled.
    """

    task_id: str
    map_index: int
    state: str | None
    try_number: int
    max_tries: int | None = None
    operator: str | None = None
    queued_at: datetime | None = None
    start_date: datetime | None = None
    end_date: datetime | None = None
    duration_s: float | None = None
    pool: str | None = None
    queue: str | None = None
    hostname: str | None = None
    rendered_map_index: str | None = None


@dataclass(frozen=True, slots=True)
class AirflowAsset:
    """An asset of Airflow 3, or a dataset of Airflow 2.

    Attributes:
        id: The instance's own number for it.
        scheduled_dag_ids: The DAGs that its events start.
        producing_tasks: (DAG id, task id) pairs.
    """

    id: int
    uri: str
    extra: Mapping[str, Any]
    scheduled_dag_ids: tuple[str, ...]
    producing_tasks: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class DagImportError:
    """A DAG file that Airflow can't import.

    Attributes:
        file: Its path; in 3.x, below the bundle's folder.
    """

    file: str
    stack_trace: str
