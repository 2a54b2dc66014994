"""What both APIs tell of runs and their tasks, in the shapes of Airflow 2.11.2 and 3.3.2."""

from __future__ import annotations

from typing import Any

from tests.contract.fakes.answers import build_time
from tests.contract.fakes.rows import RunRow, TaskRow


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
    """What 2.x says of a task that it clears."""
    return {
        "dag_id": run.dag_id,
        "dag_run_id": run.run_id,
        "execution_date": build_time("v1", run.logical_date),
        "task_id": task.task_id,
    }


def build_log_text(log: list[str], error: str | None) -> str:
    """A log of 2.x as text: the host first, and the error at the traceback's end."""
    return "\n".join(["worker-1", *log, *([f"ValueError: {error}"] if error else []), ""])


def build_log_lines(log: list[str], error: str | None) -> list[dict[str, Any]]:
    """The lines of a log of 3.x: the error is not in a line's text, but apart from it."""
    lines: list[dict[str, Any]] = [
        {"event": "::group::Log message source details"},
        {"event": "::endgroup::"},
        *({"event": line, "level": "info"} for line in log),
    ]
    if error:
        told = {"exc_type": "ValueError", "exc_value": error, "frames": []}
        failed = {"event": "Task failed with exception", "level": "error"}
        lines.append(failed | {"error_detail": [told]})
    return lines
