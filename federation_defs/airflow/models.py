"""What we read from Airflow: frozen, typed, the same for both APIs.

Times are aware and in UTC. What may be missing is None; what we don't know is dropped (`parsing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

ACTIVE_STATES = frozenset({"queued", "running"})

FINISHED_STATES = frozenset({"success", "failed"})


@dataclass(frozen=True, slots=True)
class Dag:
    """A DAG as an instance lists it.

    Attributes:
        is_present: The DAG's file is there and parses. Airflow goes on listing a DAG for a while
            after its file has gone (`is_active` in 2.x, `is_stale` in 3.x).
        has_import_errors: Its file does not parse as it is now.
        is_partitioned: Its runs have partition keys in place of logical dates (3.2).
        schedule: What a person calls its schedule (a cron expression, "@daily"), or None if it
            has none.
        file_token: What 2.x gives its source for.
        file: Where its code is, the same for all DAGs of one file.
        raw: The answer as it came, if that was asked for; it is most of what a long list weighs.
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
class DagDetails:
    """What an instance tells only of one DAG at a time.

    Attributes:
        params: The DAG's params by name, each with `value`, `description` and `schema`.
        run_timeout_s: For its runs; None if there is none.
        timezone: Its name.
    """

    dag_id: str
    doc: str | None
    params: Mapping[str, Any]
    catchup: bool
    max_active_runs: int | None
    start_date: datetime | None
    end_date: datetime | None
    run_timeout_s: float | None
    timezone: str | None


@dataclass(frozen=True, slots=True)
class Task:
    """A task as its DAG defines it.

    Attributes:
        operator: Its class.
        is_mapped: Its runs have an instance per index.
    """

    task_id: str
    operator: str | None
    is_mapped: bool
    downstream_task_ids: tuple[str, ...]
    trigger_rule: str | None
    owner: str | None
    retries: int
    pool: str | None
    queue: str | None


@dataclass(frozen=True, slots=True)
class DagRun:
    """One run of a DAG. Every date may be missing: 3.x runs need no logical date, and a cleared
    run loses its start and its end.

    Attributes:
        run_type: "scheduled", "manual", "backfill", "asset_triggered" ("dataset_triggered" in 2.x)
            and what later versions add.
        run_after: Before it nothing runs (3.x).
        partition_key: Of a partitioned DAG's run (3.2).
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
    def is_finished(self) -> bool:
        return self.state in FINISHED_STATES

    @property
    def is_success(self) -> bool:
        return self.state == "success"


@dataclass(frozen=True, slots=True)
class TriggerOptions:
    """How a run is to be started, if not just now.

    Attributes:
        logical_date: If it is not given and a data interval is, the interval's start.
        data_interval: Its start and end (2.9); else Airflow infers them from the logical date.
        partition_key: For a partitioned DAG (3.2), in place of a logical date.
    """

    logical_date: datetime | None = None
    data_interval: tuple[datetime, datetime] | None = None
    note: str | None = None
    partition_key: str | None = None


@dataclass(frozen=True, slots=True)
class TaskInstance:
    """The last try of one task in a DAG run.

    Attributes:
        map_index: -1 for a task that is not mapped.
        state: None before it is scheduled.
        duration_s: Of the last try.
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
    """What Airflow 3 calls an asset, and Airflow 2 a dataset.

    Attributes:
        id: The instance's own number for it.
        name: In 2.x, its URI.
        scheduled_dag_ids: The DAGs that its events start.
        producing_tasks: Each as (DAG id, task id); so are the consuming ones, which 2.x can't
            tell.
    """

    id: int
    uri: str
    name: str
    group: str | None
    extra: Mapping[str, Any]
    scheduled_dag_ids: tuple[str, ...]
    producing_tasks: tuple[tuple[str, str], ...]
    consuming_tasks: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class AssetEvent:
    """An update of an Airflow asset.

    Attributes:
        uri: None if the asset is no longer there.
        source_map_index: -1 unless a mapped task made it.
        created_runs: The DAG runs that it had a part in starting, each as (DAG id, run id).
    """

    id: int
    asset_id: int
    uri: str | None
    timestamp: datetime
    source_dag_id: str | None
    source_task_id: str | None
    source_run_id: str | None
    source_map_index: int
    extra: Mapping[str, Any]
    created_runs: tuple[tuple[str, str], ...]
    partition_key: str | None


@dataclass(frozen=True, slots=True)
class DagImportError:
    """A DAG file that does not parse.

    Attributes:
        file: Its path, from the bundle's folder on in 3.x.
        bundle: The bundle that it is of (3.x).
    """

    id: int
    file: str
    bundle: str | None
    stack_trace: str
    timestamp: datetime | None


@dataclass(frozen=True, slots=True)
class DagWarning:
    """What Airflow has against a DAG that it runs nevertheless, such as a pool that is missing."""

    dag_id: str
    kind: str
    message: str
    timestamp: datetime | None


@dataclass(frozen=True, slots=True)
class ComponentHealth:
    """How a part of an instance is doing.

    Attributes:
        status: "healthy", "unhealthy"; None if it does not run, which for a triggerer may be right.
    """

    status: str | None
    latest_heartbeat: datetime | None


@dataclass(frozen=True, slots=True)
class Health:
    """How an instance says it is doing.

    Attributes:
        components: By name: metadatabase, scheduler, triggerer, dag_processor.
    """

    components: Mapping[str, ComponentHealth] = field(default_factory=dict)

    @property
    def is_healthy(self) -> bool:
        """No part is unhealthy. (Workers are not among them.)"""
        return all(part.status != "unhealthy" for part in self.components.values())


@dataclass(frozen=True, slots=True)
class Permissions:
    """What an account may do with a DAG, and to Airflow assets."""

    may_read: bool
    may_trigger: bool
    may_clear: bool
    may_post_asset_events: bool
