"""What both APIs tell of Airflow assets, in the shapes of Airflow 2.11.2 and 3.3.2."""

from __future__ import annotations

from typing import Any

from tests.contract.fakes.answers import build_time
from tests.contract.fakes.rows import AssetEventRow, AssetRow, RunRow


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


def build_event(api: str, event: AssetEventRow) -> dict[str, Any]:
    run, task = event.source or (None, None)
    both = {
        "id": event.id,
        "extra": dict(event.extra),
        "source_dag_id": run and run.dag_id,
        "source_map_index": -1 if task is None else task.map_index,
        "source_run_id": run and run.run_id,
        "source_task_id": task and task.task_id,
        "timestamp": build_time(api, event.timestamp),
        "created_dagruns": [_build_created_run(api, run) for run in event.created_runs],
    }
    if api == "v1":
        return both | {"dataset_id": event.asset.id, "dataset_uri": event.asset.uri}
    return both | {
        "asset_id": event.asset.id,
        "uri": event.asset.uri,
        "name": event.asset.name or event.asset.uri,
        "group": event.asset.group,
        "partition_key": None,
    }


def _build_created_run(api: str, run: RunRow) -> dict[str, Any]:
    both = {
        "dag_id": run.dag_id,
        "data_interval_end": None,
        "data_interval_start": None,
        "end_date": build_time(api, run.end_date),
        "logical_date": build_time(api, run.logical_date),
        "start_date": build_time(api, run.start_date),
        "state": run.state,
    }
    if api == "v1":
        return both | {"dag_run_id": run.run_id}
    return both | {"run_id": run.run_id, "partition_key": None, "triggering": True}
