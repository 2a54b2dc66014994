"""The shapes of both APIs' answers, as Airflow 2.11.2 and 3.3.2 gave them when asked."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from tests.contract.fake_database import DagRow, RunRow, TaskRow

_ERRORS = "https://airflow.apache.org/docs/apache-airflow/2.11.2/stable-rest-api-ref.html#section/"


def build_dag(api: str, dag: DagRow) -> dict[str, Any]:
    both = {
        "dag_id": dag.dag_id,
        "dag_display_name": dag.dag_id,
        "description": dag.description,
        "file_token": f"token-of-{dag.dag_id}",
        "fileloc": f"/dags/{dag.dag_id}.py",
        "has_import_errors": False,
        "has_task_concurrency_limits": False,
        "is_paused": dag.is_paused,
        "last_expired": None,
        "last_parsed_time": None,
        "max_active_runs": 16,
        "max_active_tasks": 16,
        "max_consecutive_failed_dag_runs": 0,
        "next_dagrun_data_interval_end": None,
        "next_dagrun_data_interval_start": None,
        "owners": list(dag.owners),
        "tags": [{"name": tag} for tag in dag.tags],
        "timetable_description": "Never, external triggers only",
    }
    if api == "v1":
        cron = {"__type": "CronExpression", "value": dag.schedule}
        return both | {
            "default_view": "grid",
            "is_active": dag.is_present,
            "is_subdag": False,
            "last_pickled": None,
            "next_dagrun": None,
            "next_dagrun_create_after": None,
            "pickle_id": None,
            "root_dag_id": None,
            "schedule_interval": cron if dag.schedule else None,
            "scheduler_lock": None,
        }
    return both | {
        "allowed_run_types": None,
        "bundle_name": "dags-folder",
        "bundle_version": None,
        "is_backfillable": False,
        "is_stale": not dag.is_present,
        "last_parse_duration": 0.1,
        "next_dagrun_logical_date": None,
        "next_dagrun_run_after": None,
        "relative_fileloc": f"{dag.dag_id}.py",
        "tags": [
            {"name": tag, "dag_id": dag.dag_id, "dag_display_name": dag.dag_id} for tag in dag.tags
        ],
        "timetable_partitioned": False,
        "timetable_periodic": False,
        "timetable_summary": dag.schedule,
    }


def build_run(api: str, run: RunRow) -> dict[str, Any]:
    both = {
        "conf": dict(run.conf),
        "dag_id": run.dag_id,
        "dag_run_id": run.run_id,
        "data_interval_end": _time(api, run.logical_date),
        "data_interval_start": _time(api, run.logical_date),
        "end_date": _time(api, run.end_date),
        "last_scheduling_decision": None,
        "logical_date": _time(api, run.logical_date),
        "note": None,
        "run_type": "manual",
        "start_date": _time(api, run.start_date),
        "state": run.state,
    }
    if api == "v1":
        return both | {
            "execution_date": _time(api, run.logical_date),
            "external_trigger": True,
        }
    ran = run.start_date and run.end_date and run.end_date - run.start_date
    return both | {
        "bundle_version": None,
        "dag_display_name": run.dag_id,
        "dag_versions": [],
        "duration": ran.total_seconds() if ran else None,
        "partition_date": None,
        "partition_key": None,
        "queued_at": _time(api, run.queued_at),
        "run_after": _time(api, run.queued_at),
        "triggered_by": "rest_api",
        "triggering_user_name": "federation",
    }


def build_task(api: str, run: RunRow, task: TaskRow) -> dict[str, Any]:
    both = {
        "dag_id": run.dag_id,
        "dag_run_id": run.run_id,
        "duration": None,
        "end_date": None,
        "executor": None,
        "executor_config": "{}",
        "hostname": "",
        "map_index": task.map_index,
        "max_tries": 0,
        "note": None,
        "operator": "_PythonDecoratedOperator",
        "pid": None,
        "pool": "default_pool",
        "pool_slots": 1,
        "priority_weight": 1,
        "queue": "default",
        "queued_when": None,
        "rendered_fields": {},
        "rendered_map_index": None,
        "start_date": None,
        "state": task.state,
        "task_display_name": task.task_id,
        "task_id": task.task_id,
        "trigger": None,
        "triggerer_job": None,
        "try_number": task.try_number,
        "unixname": "airflow",
    }
    if api == "v1":
        return both | {"execution_date": _time(api, run.logical_date), "sla_miss": None}
    return both | {
        "dag_display_name": run.dag_id,
        "dag_version": None,
        "id": f"{run.id}-{task.task_id}-{task.map_index}",
        "logical_date": _time(api, run.logical_date),
        "operator_name": "@task",
        "run_after": _time(api, run.queued_at),
        "scheduled_when": None,
    }


def build_task_name(run: RunRow, task: TaskRow) -> dict[str, Any]:
    """What 2.x says of a task that it clears."""
    date = _time("v1", run.logical_date)
    return {
        "dag_id": run.dag_id,
        "dag_run_id": run.run_id,
        "execution_date": date,
        "task_id": task.task_id,
    }


def build_log_text(task: TaskRow) -> str:
    """A log of 2.x as text: the host first, and the error at the traceback's end."""
    error = [f"ValueError: {task.error}"] if task.error else []
    return "\n".join(["worker-1", *task.log, *error, ""])


def build_log_lines(task: TaskRow) -> dict[str, Any]:
    """A log of 3.x: the error is not in a line's text, but apart from it."""
    lines: list[dict[str, Any]] = [{"event": line, "level": "info"} for line in task.log]
    if task.error:
        error = {"exc_type": "ValueError", "exc_value": task.error, "frames": []}
        failed = {"event": "Task failed with exception", "level": "error"}
        lines.append(failed | {"error_detail": [error]})
    return {"content": lines, "continuation_token": None}


def build_list(api: str, field: str, entries: list[Any], total: int) -> dict[str, Any]:
    answer: dict[str, Any] = {field: entries, "total_entries": total}
    if api == "v1" or field == "dags":
        return answer
    return answer | {"total_entries_limit": None, "next_cursor": None, "previous_cursor": None}


def build_error(api: str, status: int, detail: Any, title: str | None) -> Mapping[str, Any]:
    """In 2.x a problem with a title, whose detail may be null; in 3.x a detail of any shape."""
    if api == "v2":
        return {"detail": detail}
    return {"detail": detail, "status": status, "title": title, "type": f"{_ERRORS}{status}"}


def _time(api: str, moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return moment.isoformat() if api == "v1" else moment.isoformat().replace("+00:00", "Z")
