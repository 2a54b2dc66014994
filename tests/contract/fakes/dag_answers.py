"""What both APIs tell of DAGs, in the shapes of Airflow 2.11.2 and 3.3.2."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tests.contract.fakes.answers import build_time
from tests.contract.fakes.rows import DagRow, ImportErrorRow, TaskSpec, WarningRow

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
        "last_parsed_time": None,
        "max_active_runs": dag.max_active_runs,
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


def build_token(dag: DagRow) -> str:
    """The token of its file, whichever of the file's DAGs it is."""
    return f"token-of-{dag.file}"


def build_details(api: str, dag: DagRow) -> dict[str, Any]:
    both = build_dag(api, dag) | {
        "catchup": dag.catchup,
        "concurrency": 16,
        "dag_run_timeout": _build_span(api, dag.run_timeout),
        "doc_md": dag.doc,
        "end_date": None,
        "is_paused_upon_creation": None,
        "last_parsed": None,
        "params": _build_params(api, dag, None),
        "render_template_as_native_obj": False,
        "start_date": build_time(api, dag.start_date),
        "timezone": "UTC",  # whichever the DAG has
    }
    if api == "v1":
        return both | {
            "dataset_expression": None,
            "orientation": "LR",
            "owners": [],  # whoever they are
            "template_searchpath": None,
        }
    return both | {
        "active_runs_count": 0,
        "asset_expression": None,
        "default_args": {} if dag.owners == ("airflow",) else {"owner": dag.owners[0]},
        "is_favorite": False,
        "latest_dag_version": None,
        "owner_links": {},
        "rerun_with_latest_version": None,
        "template_search_path": None,
    }


def build_task_spec(api: str, dag: DagRow, spec: TaskSpec) -> dict[str, Any]:
    is_decorated = spec.operator == "_PythonDecoratedOperator"
    return {
        "class_ref": {"class_name": spec.operator, "module_path": "airflow.operators"},
        "depends_on_past": False,
        "doc_md": None,
        "downstream_task_ids": list(spec.downstream),
        "end_date": None,
        "execution_timeout": None,
        "extra_links": [],
        "is_mapped": bool(spec.labels),
        "operator_name": "@task" if is_decorated else spec.operator,
        "owner": dag.owners[0],
        "params": _build_params(api, dag, "dag"),
        "pool": "default_pool",
        "pool_slots": 1.0,
        "priority_weight": 1.0,
        "queue": "default",
        "retries": float(spec.retries),
        "retry_delay": {"__type": "TimeDelta", "days": 0, "microseconds": 0, "seconds": 300},
        "retry_exponential_backoff": False if api == "v1" else 0.0,
        "start_date": build_time(api, dag.start_date),
        "task_display_name": spec.task_id,
        "task_id": spec.task_id,
        "template_fields": ["templates_dict"] if is_decorated else [],
        "trigger_rule": spec.trigger_rule,
        "ui_color": "#ffefeb",
        "ui_fgcolor": "#000",
        "wait_for_downstream": False,
        "weight_rule": "downstream",
    }


def build_import_error(api: str, error: ImportErrorRow) -> dict[str, Any]:
    both = {
        "import_error_id": error.id,
        "stack_trace": error.stack_trace,
        "timestamp": build_time(api, error.timestamp),
    }
    if api == "v1":
        return both | {"filename": f"{FOLDER}/{error.file}"}
    return both | {"filename": error.file, "bundle_name": BUNDLE}


def build_warning(api: str, warning: WarningRow) -> dict[str, Any]:
    both = {
        "dag_id": warning.dag_id,
        "message": warning.message,
        "timestamp": build_time(api, warning.timestamp),
        "warning_type": warning.kind,
    }
    return both if api == "v1" else both | {"dag_display_name": warning.dag_id}


def _build_params(api: str, dag: DagRow, source: str | None) -> dict[str, Any]:
    added = {"__class": "airflow.models.param.Param"} if api == "v1" else {"source": source}
    return {name: {**param, **added} for name, param in dag.params.items()}


def _build_span(api: str, span: timedelta | None) -> Any:
    """In 2.x its parts, in 3.x as ISO 8601 has it."""
    if span is None:
        return None
    if api == "v1":
        parts = {"days": span.days, "seconds": span.seconds, "microseconds": span.microseconds}
        return {"__type": "TimeDelta", **parts}
    return f"P{span.days}DT{span.seconds}S"
