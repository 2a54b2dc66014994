"""What we read from Airflow, parsed once.

Both APIs end in the same frozen records. Times are aware and in UTC. A field that we need and miss
raises `MissingFieldError`, which the client turns into an error that names the request; fields that
we don't know are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

FINISHED_STATES = frozenset({"success", "failed"})


class MissingFieldError(Exception):
    """An answer lacks a field that we can't do without."""


@dataclass(frozen=True)
class Dag:
    """A DAG as an instance lists it.

    Attributes:
        is_present: The DAG's file is there and parses. Airflow goes on listing a DAG for a while
            after its file has gone (`is_active` in 2.x, `is_stale` in 3.x).
        schedule: What a person calls its schedule (a cron expression, "@daily"), or None if it
            has none.
        raw: The answer as it came, for those who want more of it.
    """

    dag_id: str
    is_paused: bool
    is_present: bool
    description: str | None
    owners: tuple[str, ...]
    tags: tuple[str, ...]
    schedule: str | None
    raw: Mapping[str, Any]


@dataclass(frozen=True)
class DagRun:
    """One run of a DAG. Every date may be missing: 3.x runs need no logical date, and a cleared
    run loses its start and its end."""

    dag_id: str
    run_id: str
    state: str
    run_type: str | None
    logical_date: datetime | None
    start_date: datetime | None
    end_date: datetime | None
    conf: Mapping[str, Any]

    @property
    def is_finished(self) -> bool:
        return self.state in FINISHED_STATES

    @property
    def is_success(self) -> bool:
        return self.state == "success"


@dataclass(frozen=True)
class TaskInstance:
    """One try of one task in a DAG run; `map_index` is -1 for a task that is not mapped."""

    task_id: str
    map_index: int
    state: str | None
    try_number: int


def parse_dag(answer: Mapping[str, Any]) -> Dag:
    return Dag(
        dag_id=_need(answer, "dag_id"),
        is_paused=bool(_need(answer, "is_paused")),
        is_present=not answer.get("is_stale", False) and answer.get("is_active", True) is not False,
        description=answer.get("description"),
        owners=tuple(answer.get("owners") or ()),
        tags=tuple(tag["name"] for tag in answer.get("tags") or ()),
        schedule=_parse_schedule(answer),
        raw=answer,
    )


def parse_dag_run(answer: Mapping[str, Any]) -> DagRun:
    return DagRun(
        dag_id=_need(answer, "dag_id"),
        run_id=_need(answer, "dag_run_id"),
        state=_need(answer, "state"),
        run_type=answer.get("run_type"),
        logical_date=_parse_time(answer.get("logical_date")),
        start_date=_parse_time(answer.get("start_date")),
        end_date=_parse_time(answer.get("end_date")),
        conf=answer.get("conf") or {},
    )


def parse_task_instance(answer: Mapping[str, Any]) -> TaskInstance:
    return TaskInstance(
        task_id=_need(answer, "task_id"),
        map_index=answer.get("map_index", -1),
        state=answer.get("state"),
        try_number=answer.get("try_number") or 0,
    )


def _need(answer: Mapping[str, Any], field: str) -> Any:
    if answer.get(field) is None:
        raise MissingFieldError(f"no `{field}`")
    return answer[field]


def _parse_time(value: str | None) -> datetime | None:
    if value is None:
        return None
    # Python 3.10 reads no "Z".
    return datetime.fromisoformat(value.replace("Z", "+00:00")).astimezone(timezone.utc)


def _parse_schedule(answer: Mapping[str, Any]) -> str | None:
    if "timetable_summary" in answer:  # 3.x; also in 2.x details
        return answer["timetable_summary"]
    interval = answer.get("schedule_interval")  # 2.x: {"__type": "CronExpression", "value": "…"}
    if interval is None:
        return None
    if interval.get("__type") == "CronExpression":
        return interval["value"]
    return answer.get("timetable_description") or interval.get("__type")
