"""The events of a finished DAG run: a materialization if it is a success, and a check evaluation.

Both the Dagster run that triggered a DAG run and the observation sensor write them, with the same
metadata. By that metadata each finds in the event log what the other has written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun
from federation_defs.dagster_io.event_log import (
    DURATION_LABEL,
    END_LABEL,
    LINK_LABEL,
    RUN_ID_LABEL,
    STATE_LABEL,
    fetch_reported_runs,
)
from federation_defs.naming import CHECK_NAME, build_asset_key
from federation_defs.outcome import Outcome
from federation_defs.partitions import Partitioning
from federation_defs.redaction import redact

Metadata = dict[str, dg.MetadataValue | float | str]
AssetEvent = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation

# The materialization holds the rest.
_LABELS_OF_A_PASSED_CHECK = (RUN_ID_LABEL, LINK_LABEL, STATE_LABEL, END_LABEL, DURATION_LABEL)

_MAX_CONF_CHARACTERS = 10_000  # of JSON; it is stored with each event


def build_missing_events(
    instance: dg.DagsterInstance,
    client: AirflowClient,
    outcomes: Sequence[Outcome],
    partitionings: Mapping[str, Partitioning],
) -> list[AssetEvent]:
    """Return the events of the outcomes that the event log lacks, in the same order."""
    runs = [outcome.run for outcome in outcomes]
    reported = fetch_reported_runs(instance, client.instance, runs)
    events: list[AssetEvent] = []
    for outcome in outcomes:
        if reported.lacks_materialization_of(outcome):
            partitioning = partitionings.get(outcome.run.dag_id)
            partition = partitioning.find_partition(outcome.run) if partitioning else None
            events.append(build_materialization(client, outcome, partition))
        if reported.lacks_evaluation_of(outcome):
            events.append(build_check_evaluation(client, outcome))
    return events


def build_materialization(
    client: AirflowClient, outcome: Outcome, partition: str | None = None
) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(
        asset_key=build_asset_key(client.instance, outcome.run.dag_id),
        metadata=build_run_metadata(client, outcome),
        partition=partition,
    )


def build_check_evaluation(client: AirflowClient, outcome: Outcome) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(**_build_check(client, outcome))


def build_check_result(client: AirflowClient, outcome: Outcome) -> dg.AssetCheckResult:
    """Return the check evaluation in the form that a step yields."""
    return dg.AssetCheckResult(**_build_check(client, outcome))


def _build_check(client: AirflowClient, outcome: Outcome) -> dict[str, Any]:
    run, ended = outcome.run, "succeeded" if outcome.run.is_success else "failed"
    return {
        "asset_key": build_asset_key(client.instance, run.dag_id),
        "check_name": CHECK_NAME,
        "passed": outcome.is_success,
        "description": f"Run {run.run_id} {ended}. {outcome.details}".rstrip(),
        "metadata": build_check_metadata(client, outcome),
    }


def build_gap_observations(
    airflow: str, dag_ids: Iterable[str], begin: datetime, end: datetime
) -> list[dg.AssetObservation]:
    """Return an observation of each asset about a time that was not observed."""
    description = (
        f"Runs that ended in Airflow '{airflow}' between {begin:%F %T} and {end:%F %T} UTC were "
        "not observed: the outage was longer than `observe.lookback`."
    )
    metadata = {
        "Gap": description,
        "Gap start": dg.MetadataValue.timestamp(begin),
        "Gap end": dg.MetadataValue.timestamp(end),
    }
    return [
        dg.AssetObservation(build_asset_key(airflow, dag_id), description, metadata=metadata)
        for dag_id in dag_ids
    ]


def build_run_metadata(client: AirflowClient, outcome: Outcome) -> Metadata:
    """Return what is known of a run, durations in seconds. Missing values are left out."""
    run = outcome.run
    dates = {
        "Logical date": run.logical_date,
        "Data interval start": run.data_interval_start,
        "Data interval end": run.data_interval_end,
        "Queued": run.queued_at,
        "Start": run.start_date,
        END_LABEL: run.end_date,
    }
    metadata = {
        **build_link_metadata(client, run),
        **{label: dg.MetadataValue.timestamp(date) for label, date in dates.items() if date},
        DURATION_LABEL: _count_seconds(run.start_date, run.end_date),
        "Queue time (s)": _count_seconds(run.queued_at, run.start_date),
        "Lag (s)": _count_seconds(run.end_date, datetime.now(timezone.utc)),
        "Tries": max((task.try_number for task in outcome.tasks), default=None),
        "Run type": run.run_type or None,
        "Partition key": run.partition_key or None,
        "Conf": _build_conf(run.conf),
    }
    return {label: value for label, value in metadata.items() if value is not None}


def build_check_metadata(client: AirflowClient, outcome: Outcome) -> Metadata:
    """Return the run's metadata and the log tails of its failed tasks.

    Of a plain success, only the values that identify it and its duration.
    """
    metadata = build_run_metadata(client, outcome)
    if outcome.is_success and outcome.run.is_success:
        return {label: metadata[label] for label in _LABELS_OF_A_PASSED_CHECK if label in metadata}
    tails = outcome.log_tails.items()
    return metadata | {f"Log of {name}": dg.MetadataValue.md(tail) for name, tail in tails}


def build_link_metadata(client: AirflowClient, run: DagRun) -> Metadata:
    """Return id, link and state of a run, finished or not."""
    link = dg.MetadataValue.url(client.build_run_url(run.dag_id, run.run_id))
    return {RUN_ID_LABEL: run.run_id, LINK_LABEL: link, STATE_LABEL: run.state}


def _count_seconds(begin: datetime | None, end: datetime | None) -> float | None:
    return (end - begin).total_seconds() if begin and end else None


def _build_conf(conf: Mapping[str, Any]) -> dg.MetadataValue | None:
    redacted = redact(conf)
    text = json.dumps(redacted, ensure_ascii=False)
    if len(text) <= _MAX_CONF_CHARACTERS:
        return dg.MetadataValue.json(redacted) if conf else None
    start = text[:_MAX_CONF_CHARACTERS]
    return dg.MetadataValue.text(f"{start}… ({len(text)} characters; see the run)")
