"""Parses the JSON answers of both APIs into records.

Unknown fields are dropped. A required field that is missing raises `MissingFieldError`, which the
client turns into an error with the request and the server's version.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from federation_defs.airflow.models import (
    AirflowAsset,
    Dag,
    DagImportError,
    DagRun,
    TaskInstance,
)

Answer = Mapping[str, Any]


class MissingFieldError(Exception):
    """An answer lacks a required field."""


def parse_dag(answer: Answer, *, with_raw: bool = False) -> Dag:
    dag_id = _need(answer, "dag_id")
    bundle = answer.get("bundle_name")
    file = _need(answer, "fileloc")
    return Dag(
        dag_id=dag_id,
        is_paused=bool(_need(answer, "is_paused")),
        is_present=not answer.get("is_stale", False) and answer.get("is_active", True) is not False,
        has_import_errors=bool(answer.get("has_import_errors")),
        is_partitioned=bool(answer.get("timetable_partitioned")),
        description=answer.get("description"),
        owners=tuple(answer.get("owners") or ()),
        tags=tuple(tag["name"] for tag in answer.get("tags") or ()),
        schedule=_parse_schedule(answer),
        file_token=_need(answer, "file_token"),
        file=f"{bundle}:{file}" if bundle else file,
        raw=answer if with_raw else None,
    )


def parse_dag_run(answer: Answer) -> DagRun:
    """Parse a run. Optional fields of a wrong type become None, so that one odd run does not fail
    the list that it is in."""
    conf = answer.get("conf")
    return DagRun(
        dag_id=_need_text(answer, "dag_id"),
        run_id=_need_text(answer, "dag_run_id"),
        state=str(_need(answer, "state")),
        run_type=_parse_text(answer.get("run_type")),
        logical_date=_parse_time(answer.get("logical_date")),
        data_interval_start=_parse_time(answer.get("data_interval_start")),
        data_interval_end=_parse_time(answer.get("data_interval_end")),
        run_after=_parse_time(answer.get("run_after")),
        queued_at=_parse_time(answer.get("queued_at")),
        start_date=_parse_time(answer.get("start_date")),
        end_date=_parse_time(answer.get("end_date")),
        conf=conf if isinstance(conf, Mapping) else {},
        note=_parse_text(answer.get("note")),
        partition_key=_parse_text(answer.get("partition_key")),
    )


def parse_task_instance(answer: Answer) -> TaskInstance:
    return TaskInstance(
        task_id=_need(answer, "task_id"),
        map_index=int(answer.get("map_index", -1)),
        state=answer.get("state"),
        try_number=int(answer.get("try_number") or 0),
        max_tries=answer.get("max_tries"),
        operator=answer.get("operator"),
        queued_at=_parse_time(answer.get("queued_when")),
        start_date=_parse_time(answer.get("start_date")),
        end_date=_parse_time(answer.get("end_date")),
        duration_s=answer.get("duration"),
        pool=answer.get("pool"),
        queue=answer.get("queue"),
        hostname=answer.get("hostname") or None,
        rendered_map_index=answer.get("rendered_map_index"),
    )


def parse_log(answer: Answer) -> tuple[str, str | None]:
    """Return a page of a log as text and the token of the next page, None after the last.

    3.x has a list of structured lines, or of texts for tasks that 2.x ran.
    """
    lines = answer.get("content") or []
    if isinstance(lines, str):
        lines = [lines]
    text = "".join(
        f"{line if isinstance(line, str) else _format_log_line(line)}\n" for line in lines
    )
    return text, answer.get("continuation_token")


def parse_asset(answer: Answer) -> AirflowAsset:
    scheduled = answer.get("scheduled_dags", answer.get("consuming_dags"))  # 3.x, 2.x
    producing = answer.get("producing_tasks")
    return AirflowAsset(
        id=_need(answer, "id"),
        uri=_need(answer, "uri"),
        extra=_parse_extra(answer.get("extra")),
        scheduled_dag_ids=tuple(dag["dag_id"] for dag in scheduled or ()),
        producing_tasks=tuple((task["dag_id"], task["task_id"]) for task in producing or ()),
    )


def parse_import_error(answer: Answer) -> DagImportError:
    return DagImportError(
        file=_need(answer, "filename"), stack_trace=answer.get("stack_trace") or ""
    )


def _need(answer: Answer, name: str) -> Any:
    if answer.get(name) is None:
        raise MissingFieldError(f"no `{name}`")
    return answer[name]


def _need_text(answer: Answer, name: str) -> str:
    if not isinstance(text := _need(answer, name), str):
        raise MissingFieldError(f"no text for `{name}`")
    return text


def _parse_time(value: Any) -> datetime | None:
    """Return a time in UTC, or None for anything else."""
    try:
        moment = datetime.fromisoformat(value.replace("Z", "+00:00"))  # Python 3.10 reads no "Z"
        return moment.replace(tzinfo=moment.tzinfo or timezone.utc).astimezone(timezone.utc)
    except (AttributeError, OverflowError, TypeError, ValueError):
        return None


def _parse_text(value: Any) -> str | None:
    """Return a text, or None for anything else."""
    return value if isinstance(value, str) else None


def _parse_schedule(answer: Answer) -> str | None:
    if "timetable_summary" in answer:  # 3.x
        return answer["timetable_summary"]
    interval = answer.get("schedule_interval")  # 2.x: {"__type": "CronExpression", "value": "…"}
    if interval is None:
        return None
    if interval.get("__type") == "CronExpression":
        return interval["value"]
    return answer.get("timetable_description") or interval.get("__type")


def _parse_extra(extra: Any) -> Mapping[str, Any]:
    """Parse an object, or its text as JSON or as a Python literal (2.x)."""
    if not isinstance(extra, str):
        return extra or {}
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(extra)
        except (ValueError, SyntaxError):
            continue
        return value if isinstance(value, Mapping) else {}
    return {}


def _format_log_line(line: Answer) -> str:
    """Format a structured log line, followed by its error, which 3.x keeps apart."""
    text = str(line.get("event", ""))
    for error in line.get("error_detail") or ():
        text += f"\n{error.get('exc_type', 'Error')}: {error.get('exc_value', '')}"
    return text
