"""From an answer's JSON to records, of either API.

A field that we need and miss raises `MissingFieldError`, which the client turns into an error that
names the request and the server's version. Fields that we don't know are dropped.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from pydantic import TypeAdapter

from federation_defs.airflow.models import (
    AirflowAsset,
    AssetEvent,
    ComponentHealth,
    Dag,
    DagDetails,
    DagImportError,
    DagRun,
    DagWarning,
    Health,
    Task,
    TaskInstance,
)

Answer = Mapping[str, Any]

_TIME_SPAN = TypeAdapter(timedelta)


class MissingFieldError(Exception):
    """An answer lacks a field that we can't do without."""


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


def parse_dag_details(answer: Answer) -> DagDetails:
    timeout = answer.get("dag_run_timeout")
    return DagDetails(
        dag_id=_need(answer, "dag_id"),
        doc=answer.get("doc_md"),
        params=answer.get("params") or {},
        catchup=bool(answer.get("catchup")),
        max_active_runs=answer.get("max_active_runs"),
        start_date=_parse_time(answer.get("start_date")),
        end_date=_parse_time(answer.get("end_date")),
        run_timeout_s=_parse_seconds(timeout) if timeout is not None else None,
        timezone=answer.get("timezone"),
    )


def parse_task(answer: Answer) -> Task:
    return Task(
        task_id=_need(answer, "task_id"),
        operator=(answer.get("class_ref") or {}).get("class_name") or answer.get("operator_name"),
        is_mapped=bool(answer.get("is_mapped")),
        downstream_task_ids=tuple(answer.get("downstream_task_ids") or ()),
        trigger_rule=answer.get("trigger_rule"),
        owner=answer.get("owner"),
        retries=int(answer.get("retries") or 0),
        pool=answer.get("pool"),
        queue=answer.get("queue"),
    )


def parse_dag_run(answer: Answer) -> DagRun:
    """What is odd in a run is left out: one run must not hold up the list that it is in."""
    conf = answer.get("conf")
    return DagRun(
        dag_id=_need_text(answer, "dag_id"),
        run_id=_need_text(answer, "dag_run_id"),
        state=str(_need(answer, "state")),
        run_type=_parse_any_text(answer.get("run_type")),
        logical_date=_parse_any_time(answer.get("logical_date")),
        data_interval_start=_parse_any_time(answer.get("data_interval_start")),
        data_interval_end=_parse_any_time(answer.get("data_interval_end")),
        run_after=_parse_any_time(answer.get("run_after")),
        queued_at=_parse_any_time(answer.get("queued_at")),
        start_date=_parse_any_time(answer.get("start_date")),
        end_date=_parse_any_time(answer.get("end_date")),
        conf=conf if isinstance(conf, Mapping) else {},
        note=_parse_any_text(answer.get("note")),
        partition_key=_parse_any_text(answer.get("partition_key")),
    )


def parse_task_instance(answer: Answer) -> TaskInstance:
    return TaskInstance(
        task_id=_need(answer, "task_id"),
        map_index=int(answer.get("map_index", -1)),
        state=answer.get("state"),
        try_number=int(answer.get("try_number") or 0),
        max_tries=answer.get("max_tries"),
        operator=answer.get("operator"),
        queued_at=_parse_any_time(answer.get("queued_when")),
        start_date=_parse_any_time(answer.get("start_date")),
        end_date=_parse_any_time(answer.get("end_date")),
        duration_s=answer.get("duration"),
        pool=answer.get("pool"),
        queue=answer.get("queue"),
        hostname=answer.get("hostname") or None,
        rendered_map_index=answer.get("rendered_map_index"),
    )


def parse_log(answer: Answer) -> tuple[str, str | None]:
    """A page of a log as text, and the token of the next page; None after the last.

    3.x gives a list of structured lines; of tasks that 2.x ran, of text.
    """
    lines = answer.get("content") or []
    if isinstance(lines, str):
        lines = [lines]
    text = "".join(
        f"{line if isinstance(line, str) else _build_log_line(line)}\n" for line in lines
    )
    return text, answer.get("continuation_token")


def parse_asset(answer: Answer) -> AirflowAsset:
    uri = _need(answer, "uri")
    scheduled = answer.get("scheduled_dags", answer.get("consuming_dags"))
    return AirflowAsset(
        id=_need(answer, "id"),
        uri=uri,
        name=answer.get("name") or uri,
        group=answer.get("group"),
        extra=_parse_extra(answer.get("extra")),
        scheduled_dag_ids=tuple(dag["dag_id"] for dag in scheduled or ()),
        producing_tasks=_parse_pairs(answer.get("producing_tasks"), "task_id"),
        consuming_tasks=_parse_pairs(answer.get("consuming_tasks"), "task_id"),
    )


def parse_asset_event(answer: Answer) -> AssetEvent:
    timestamp = _parse_time(_need(answer, "timestamp"))
    assert timestamp is not None  # noqa: S101 - it was needed
    index = answer.get("source_map_index")
    runs = answer.get("created_dagruns")
    return AssetEvent(
        id=_need(answer, "id"),
        asset_id=_need(answer, "dataset_id" if "dataset_uri" in answer else "asset_id"),
        uri=answer.get("uri") or answer.get("dataset_uri"),
        timestamp=timestamp,
        source_dag_id=answer.get("source_dag_id"),
        source_task_id=answer.get("source_task_id"),
        source_run_id=answer.get("source_run_id"),
        source_map_index=-1 if index is None else index,
        extra=_parse_extra(answer.get("extra")),
        created_runs=tuple(
            (run["dag_id"], run.get("run_id") or run["dag_run_id"]) for run in runs or ()
        ),
        partition_key=answer.get("partition_key"),
    )


def parse_import_error(answer: Answer) -> DagImportError:
    return DagImportError(
        id=_need(answer, "import_error_id"),
        file=_need(answer, "filename"),
        bundle=answer.get("bundle_name"),
        stack_trace=answer.get("stack_trace") or "",
        timestamp=_parse_time(answer.get("timestamp")),
    )


def parse_dag_warning(answer: Answer) -> DagWarning:
    return DagWarning(
        dag_id=_need(answer, "dag_id"),
        kind=_need(answer, "warning_type"),
        message=answer.get("message") or "",
        timestamp=_parse_time(answer.get("timestamp")),
    )


def parse_health(answer: Answer) -> Health:
    return Health(
        {
            name: ComponentHealth(
                status=part.get("status"),
                latest_heartbeat=_parse_time(part.get(f"latest_{name}_heartbeat")),
            )
            for name, part in answer.items()
            if isinstance(part, Mapping)
        }
    )


def _need(answer: Answer, name: str) -> Any:
    if answer.get(name) is None:
        raise MissingFieldError(f"no `{name}`")
    return answer[name]


def _need_text(answer: Answer, name: str) -> str:
    if not isinstance(text := _need(answer, name), str):
        raise MissingFieldError(f"no text for `{name}`")
    return text


def _parse_time(value: str | None) -> datetime | None:
    if value is None:
        return None
    # Python 3.10 reads no "Z".
    moment = datetime.fromisoformat(value.replace("Z", "+00:00"))
    return moment.replace(tzinfo=moment.tzinfo or timezone.utc).astimezone(timezone.utc)


def _parse_any_time(value: Any) -> datetime | None:
    """A time; None for what is none."""
    try:
        return _parse_time(value)
    except (AttributeError, OverflowError, TypeError, ValueError):
        return None


def _parse_any_text(value: Any) -> str | None:
    """A text; None for what is none."""
    return value if isinstance(value, str) else None


def _parse_seconds(value: Any) -> float:
    """Of a time span: 2.x and 3.0 give its parts, later versions a number or an ISO 8601 span."""
    if isinstance(value, Mapping):
        parts = {name: value.get(name, 0) for name in ("days", "seconds", "microseconds")}
        return timedelta(**parts).total_seconds()
    return _TIME_SPAN.validate_python(value).total_seconds()


def _parse_schedule(answer: Answer) -> str | None:
    if "timetable_summary" in answer:  # 3.x; also in 2.x details
        return answer["timetable_summary"]
    interval = answer.get("schedule_interval")  # 2.x: {"__type": "CronExpression", "value": "…"}
    if interval is None:
        return None
    if interval.get("__type") == "CronExpression":
        return interval["value"]
    return answer.get("timetable_description") or interval.get("__type")


def _parse_pairs(entries: Iterable[Answer] | None, name: str) -> tuple[tuple[str, str], ...]:
    return tuple((entry["dag_id"], entry[name]) for entry in entries or ())


def _parse_extra(extra: Any) -> Mapping[str, Any]:
    """2.x gives an object as such, or as the text of a Python literal or of JSON."""
    if not isinstance(extra, str):
        return extra or {}
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(extra)
        except (ValueError, SyntaxError):
            continue
        return value if isinstance(value, Mapping) else {}
    return {}


def _build_log_line(line: Answer) -> str:
    """One structured log line; the traceback that 3.x keeps apart is put under it."""
    text = str(line.get("event", ""))
    for error in line.get("error_detail") or ():
        text += f"\n{error.get('exc_type', 'Error')}: {error.get('exc_value', '')}"
    return text
