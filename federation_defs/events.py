"""A finished DAG run as asset events: a materialization if its data is there, and an evaluation of
the asset check `dag_run` in any case. Each once.

Two write such events: the Dagster run that triggered the DAG run, and the observation of the
instance. Both write the same metadata, by which each sees what the other has written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun
from federation_defs.dagster_io.event_log import _DURATION, _END, _LINK, _RUN_ID, _STATE
from federation_defs.naming import CHECK_NAME, build_asset_key
from federation_defs.outcome import Outcome
from federation_defs.redaction import redact

_OF_A_SUCCESS = frozenset({_RUN_ID, _LINK, _STATE, _END, _DURATION})

_MAX_CONF = 10_000  # characters of JSON; it is stored with each event


def build_run_metadata(client: AirflowClient, outcome: Outcome) -> dict[str, dg.MetadataValue]:
    """What a person wants to see of a run; absent dates are left out. Durations in seconds."""
    run = outcome.run
    metadata = build_link_metadata(client, run)
    dates = {
        "Logical date": run.logical_date,
        "Data interval start": run.data_interval_start,
        "Data interval end": run.data_interval_end,
        "Queued": run.queued_at,
        "Start": run.start_date,
        _END: run.end_date,
    }
    metadata |= {
        name: dg.MetadataValue.timestamp(date) for name, date in dates.items() if date is not None
    }
    spans = {
        _DURATION: (run.start_date, run.end_date),
        "Queue time (s)": (run.queued_at, run.start_date),
        "Lag (s)": (run.end_date, datetime.now(timezone.utc)),
    }
    for name, (begin, end) in spans.items():
        if begin is not None and end is not None:
            metadata[name] = dg.MetadataValue.float((end - begin).total_seconds())
    if outcome.tasks:
        tries = max(task.try_number for task in outcome.tasks)
        metadata["Tries"] = dg.MetadataValue.int(tries)
    texts = {"Run type": run.run_type, "Partition key": run.partition_key}
    metadata |= {name: dg.MetadataValue.text(text) for name, text in texts.items() if text}
    if run.conf:
        metadata["Conf"] = _build_conf(run.conf)
    return metadata


def build_check_metadata(client: AirflowClient, outcome: Outcome) -> dict[str, dg.MetadataValue]:
    """The same, and the tasks that failed with the end of their logs; of a plain success, whose
    materialization tells all that, only what names it and what can be plotted."""
    metadata = build_run_metadata(client, outcome)
    if outcome.is_success and outcome.run.is_success:
        return {name: value for name, value in metadata.items() if name in _OF_A_SUCCESS}
    metadata |= {
        f"Log of {name}": dg.MetadataValue.md(tail) for name, tail in outcome.log_tails.items()
    }
    return metadata


def _build_conf(conf: Mapping[str, Any]) -> dg.MetadataValue:
    masked = redact(conf)
    text = json.dumps(masked, ensure_ascii=False)
    if len(text) <= _MAX_CONF:
        return dg.MetadataValue.json(masked)
    return dg.MetadataValue.text(f"{text[:_MAX_CONF]}… ({len(text)} characters; see the run)")


def build_link_metadata(client: AirflowClient, run: DagRun) -> dict[str, dg.MetadataValue]:
    """What leads a person to a run that goes on."""
    return {
        _RUN_ID: dg.MetadataValue.text(run.run_id),
        _LINK: dg.MetadataValue.url(client.build_run_url(run.dag_id, run.run_id)),
        _STATE: dg.MetadataValue.text(run.state),
    }


def build_materialization(
    client: AirflowClient, outcome: Outcome, partition: str | None = None
) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(
        asset_key=build_asset_key(client.instance, outcome.run.dag_id),
        metadata=build_run_metadata(client, outcome),
        partition=partition,
    )


def build_check_evaluation(client: AirflowClient, outcome: Outcome) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=build_asset_key(client.instance, outcome.run.dag_id),
        check_name=CHECK_NAME,
        passed=outcome.is_success,
        description=outcome.summary,
        metadata=build_check_metadata(client, outcome),
    )


def build_check_result(client: AirflowClient, outcome: Outcome) -> dg.AssetCheckResult:
    """The evaluation as a step gives it."""
    evaluation = build_check_evaluation(client, outcome)
    return dg.AssetCheckResult(
        asset_key=evaluation.asset_key,
        check_name=evaluation.check_name,
        passed=evaluation.passed,
        description=evaluation.description,
        metadata=evaluation.metadata,
    )
