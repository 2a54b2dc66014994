"""The JSON that both APIs answer, in the shapes of Airflow 2.11.2 and 3.3.2."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from tests.contract.fakes.database import AssetRow, DagRow, ImportErrorRow, RunRow, TaskRow

_ERRORS = "https://airflow.apache.org/docs/apache-airflow/2.11.2/stable-rest-api-ref.html#section/"
_WITH_CURSOR = frozenset({"dag_runs", "task_instances"})


def build_list(api: str, field: str, entries: list[Any], total: int) -> dict[str, Any]:
    answer: dict[str, Any] = {field: entries, "total_entries": total}
    if api == "v2" and field in _WITH_CURSOR:
        answer |= {"total_entries_limit": None, "next_cursor": None, "previous_cursor": None}
    return answer


def build_error(api: str, status: int, detail: Any, title: str | None) -> Mapping[str, Any]:
    """Build an error: in 2.x with a title and maybe a null detail, in 3.x with any detail."""
    if api == "v2":
        return {"detail": detail}
    return {"detail": detail, "status": status, "title": title, "type": f"{_ERRORS}{status}"}


def build_time(api: str, moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return moment.isoformat() if api == "v1" else moment.isoformat().replace("+00:00", "Z")


FOLDER = "/dags"
BUNDLE = "dags-folder"


def build_dag(api: str, dag: DagRow) -> dict[str, Any]:
    both = {
        "dag_id": dag.dag_id,
        "dag_display_name": dag.dag_id,
        "description": dag.description,
        "file_token": build_token(dag),
        "fileloc": f"{FOLDER}/{dag.file}",
        "has_import_errors": dag.has_import_errors,
        "has_task_concurrency_limits": False,
        "is_paused": dag.is_paused,
        "last_expired": None,
        "last_parsed_time": build_time(api, dag.last_parsed_at),
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
        "bundle_name": BUNDLE,
        "bundle_version": None,
        "is_backfillable": False,
        "is_stale": not dag.is_present,
        "last_parse_duration": 0.1,
        "next_dagrun_logical_date": None,
        "next_dagrun_run_after": None,
        "relative_fileloc": dag.file,
        "tags": [
            {"name": tag, "dag_id": dag.dag_id, "dag_display_name": dag.dag_id} for tag in dag.tags
        ],
        "timetable_partitioned": dag.key_format is not None,
        "timetable_periodic": False,
        "timetable_summary": dag.schedule,
    }


def build_dag_details(api: str, dag: DagRow) -> dict[str, Any]:
    both = build_dag(api, dag) | {
        "catchup": False,
        "concurrency": 16,
        "dag_run_timeout": None,
        "doc_md": None,
        "end_date": None,
        "is_paused_upon_creation": None,
        "last_parsed": build_time(api, dag.last_parsed_at),
        "params": {},
        "render_template_as_native_obj": False,
        "start_date": None,
        "timezone": "UTC",  # of the server, whatever the DAG's may be
    }
    if api == "v1":
        own: dict[str, Any] = {
            "dataset_expression": None,
            "orientation": "LR",
            "owners": [],
            "template_searchpath": None,
        }
    else:
        own = {
            "active_runs_count": 0,
            "asset_expression": None,
            "default_args": {},
            "is_favorite": False,
            "latest_dag_version": None,
            "owner_links": {},
            "rerun_with_latest_version": None,
            "template_search_path": None,
        }
    return {**both, **own, **dag.plan}


def build_token(dag: DagRow) -> str:
    """Return the token of a DAG's file, the same for all its DAGs."""
    return f"token-of-{dag.file}"


def build_import_error(api: str, error: ImportErrorRow) -> dict[str, Any]:
    both = {
        "import_error_id": error.id,
        "stack_trace": error.stack_trace,
        "timestamp": build_time(api, error.timestamp),
    }
    if api == "v1":
        return both | {"filename": f"{FOLDER}/{error.file}"}
    return both | {"filename": error.file, "bundle_name": BUNDLE}


def build_asset(api: str, asset: AssetRow) -> dict[str, Any]:
    made = build_time(api, asset.created_at)
    dates = {"created_at": made, "updated_at": made}
    both = {
        "id": asset.id,
        "uri": asset.uri,
        "extra": dict(asset.extra),
        "aliases": [],
        "producing_tasks": [
            {"dag_id": dag_id, "task_id": task_id, **dates} for dag_id, task_id in asset.producers
        ],
        **dates,
    }
    scheduled = [{"dag_id": dag_id, **dates} for dag_id in asset.scheduled]
    if api == "v1":
        return both | {"consuming_dags": scheduled}
    return both | {
        "name": asset.name or asset.uri,
        "group": asset.group,
        "scheduled_dags": scheduled,
        "consuming_tasks": [],
        "watchers": [],
        "last_asset_event": None,
    }


def build_run(api: str, run: RunRow) -> dict[str, Any]:
    start, end = run.data_interval or (run.logical_date, run.logical_date)
    both = {
        "conf": dict(run.conf),
        "dag_id": run.dag_id,
        "dag_run_id": run.run_id,
        "data_interval_end": build_time(api, end),
        "data_interval_start": build_time(api, start),
        "end_date": build_time(api, run.end_date),
        "last_scheduling_decision": None,
        "logical_date": build_time(api, run.logical_date),
        "note": run.note,
        "run_type": build_run_type(api, run),
        "start_date": build_time(api, run.start_date),
        "state": run.state,
    }
    if api == "v1":
        return both | {
            "execution_date": build_time(api, run.logical_date),
            "external_trigger": True,
        }
    ran = run.start_date and run.end_date and run.end_date - run.start_date
    key = run.partition_key
    return both | {
        "bundle_version": None,
        "dag_display_name": run.dag_id,
        "dag_versions": [],
        "duration": ran.total_seconds() if ran else None,
        "partition_date": build_time(api, run.queued_at) if key else None,
        "partition_key": key,
        "queued_at": build_time(api, run.queued_at),
        "run_after": build_time(api, run.queued_at),
        "triggered_by": "rest_api",
        "triggering_user_name": "federation",
    }


def build_run_type(api: str, run: RunRow) -> str:
    if run.run_type != "asset":
        return run.run_type
    return "dataset_triggered" if api == "v1" else "asset_triggered"


def build_task(api: str, run: RunRow, task: TaskRow) -> dict[str, Any]:
    ran = task.start_date and task.end_date and task.end_date - task.start_date
    both = {
        "dag_id": run.dag_id,
        "dag_run_id": run.run_id,
        "duration": ran.total_seconds() if ran else None,
        "end_date": build_time(api, task.end_date),
        "executor": None,
        "executor_config": "{}",
        "hostname": "worker-1" if task.try_number else "",
        "map_index": task.map_index,
        "max_tries": 0,
        "note": None,
        "operator": task.operator,
        "pid": 7,
        "pool": "default_pool",
        "pool_slots": 1,
        "priority_weight": 1,
        "queue": "default",
        "queued_when": build_time(api, task.start_date),
        "rendered_fields": {},
        "rendered_map_index": task.label,
        "start_date": build_time(api, task.start_date),
        "state": task.state,
        "task_display_name": task.task_id,
        "task_id": task.task_id,
        "trigger": None,
        "triggerer_job": None,
        "try_number": task.try_number,
        "unixname": "airflow",
    }
    if api == "v1":
        return both | {"execution_date": build_time(api, run.logical_date), "sla_miss": None}
    is_decorated = task.operator == "_PythonDecoratedOperator"
    return both | {
        "dag_display_name": run.dag_id,
        "dag_version": None,
        "id": f"{run.id}-{task.task_id}-{task.map_index}",
        "logical_date": build_time(api, run.logical_date),
        "operator_name": "@task" if is_decorated else task.operator,
        "run_after": build_time(api, run.queued_at),
        "scheduled_when": build_time(api, task.start_date),
    }


def build_task_name(run: RunRow, task: TaskRow) -> dict[str, Any]:
    """Build the answer of 2.x for a cleared task."""
    return {
        "dag_id": run.dag_id,
        "dag_run_id": run.run_id,
        "execution_date": build_time("v1", run.logical_date),
        "task_id": task.task_id,
    }


def build_log_text(log: list[str], error: str | None) -> str:
    """Build a log of 2.x: first the host, at the end the error."""
    return "\n".join(["worker-1", *log, *([f"ValueError: {error}"] if error else []), ""])


def build_log_lines(log: list[str], error: str | None) -> list[dict[str, Any]]:
    """Build the lines of a log of 3.x, which keeps errors apart from the text."""
    lines: list[dict[str, Any]] = [
        {"event": "::group::Log message source details"},
        {"event": "::endgroup::"},
        *({"event": line, "level": "info"} for line in log),
    ]
    if error:
        detail = {"exc_type": "ValueError", "exc_value": error, "frames": []}
        failed = {"event": "Task failed with exception", "level": "error"}
        lines.append(failed | {"error_detail": [detail]})
    return lines
