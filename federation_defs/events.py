"""Builds the events about DAGs: reports of finished runs, check evaluations, signals and others.

The report of a finished DAG run consists of a materialization, or of an observation if the run is
not a success, and of an evaluation of the check `dag_run`. Both the Dagster run that triggered a
DAG run and the observation sensor store reports, with the same metadata. Each of them reads this
metadata in the event log to find what the other has stored.

The evaluation is stored first. The other event marks the run as reported, so that a crash between
the two loses neither. Between the two, observation stores why a success has no partition.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun, RunKey
from federation_defs.dagster_io.reports import (
    CONF_LABEL,
    DEADLINE_LABEL,
    DURATION_LABEL,
    END_LABEL,
    INTERVAL_END_LABEL,
    INTERVAL_START_LABEL,
    LINK_LABEL,
    LOGICAL_DATE_LABEL,
    OUTCOME_LABEL,
    PARTITION_KEY_LABEL,
    RUN_ID_LABEL,
    SIGNAL_LABEL,
    START_LABEL,
    STATE_LABEL,
    ReportedRuns,
    Success,
)
from federation_defs.declaration import PartitionsDeclaration
from federation_defs.naming import (
    CHECK_NAME,
    DEADLINE_CHECK_NAME,
    MAX_DURATION_CHECK_NAME,
    ONLY_IF_CHECK_NAME,
    build_asset_key,
)
from federation_defs.outcome import Outcome, join_names
from federation_defs.partitions import RunPartition
from federation_defs.redaction import redact

Metadata = dict[str, dg.MetadataValue | float | str]
ReportEvent = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation

# The materialization holds the other values.
_LABELS_OF_A_PASSED_CHECK = (RUN_ID_LABEL, LINK_LABEL, STATE_LABEL, END_LABEL, DURATION_LABEL)

# JSON that Dagster can't store or show: it interprets keys such as `__class__` itself (1.13,
# `dagster._serdes`), and browsers can't parse NaN.
_NOT_STORABLE = re.compile('"__|NaN|Infinity')

PARTITIONS_LABEL = "Partitions"  # in evaluations of the check `partitions`
_MAX_CONF_CHARACTERS = 10_000  # of JSON; it is stored with each event


def build_missing_events(
    client: AirflowClient,
    outcome: Outcome,
    reported: ReportedRuns,
    partition: RunPartition,
) -> list[ReportEvent]:
    """Return the events about an outcome that the event log lacks, in the order in which to store
    them."""
    if not reported.lacks_report_of(outcome):
        return []
    is_new = reported.lacks_materialization_of(outcome)
    build = build_materialization if is_new else build_observation
    events = [build_check_evaluation(client, outcome), build(client, outcome, partition)]
    if is_new and partition.absence:  # Dagster does not show a materialization's description
        events.insert(1, build_absence_observation(client, outcome.run, partition.absence))
    return events


def build_materialization(
    client: AirflowClient, outcome: Outcome, partition: RunPartition
) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(
        asset_key=build_asset_key(client.instance, outcome.run.dag_id),
        metadata=build_run_metadata(client, outcome) | _describe_absence(partition),
        partition=partition.key,
    )


def build_observation(
    client: AirflowClient, outcome: Outcome, partition: RunPartition
) -> dg.AssetObservation:
    """Return the report of a run that is not a success, or that was materialized before."""
    return dg.AssetObservation(
        asset_key=build_asset_key(client.instance, outcome.run.dag_id),
        description=_describe(outcome),
        metadata=build_run_metadata(client, outcome) | _describe_absence(partition),
        partition=partition.key,
    )


def build_absence_observation(client: AirflowClient, run: DagRun, why: str) -> dg.AssetObservation:
    """Return the observation that a successful run has no partition. It is not the report of the
    run."""
    key = build_asset_key(client.instance, run.dag_id)
    description = f"Run {run.run_id} belongs to no partition. {why}"
    return dg.AssetObservation(key, description, metadata=build_link_metadata(client, run))


def build_unreadable_run_observation(
    airflow: str,
    key: RunKey,
    reason: str,
    labels: Mapping[str, dg.MetadataValue | str | None],
) -> dg.AssetObservation:
    """Return the report of a run that can't be reported as a success or a failure.

    Args:
        reason: Why it can't, in words.
        labels: What is known about the run, as metadata. Values that are None are left out.
    """
    dag_id, run_id = key
    description = f"DAG run {run_id} can't be reported: {reason}"
    known = {label: value for label, value in labels.items() if value is not None}
    metadata = {RUN_ID_LABEL: run_id, **known, "Problem": reason}
    return dg.AssetObservation(build_asset_key(airflow, dag_id), description, metadata=metadata)


def build_check_evaluation(client: AirflowClient, outcome: Outcome) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=build_asset_key(client.instance, outcome.run.dag_id),
        check_name=CHECK_NAME,
        passed=outcome.is_success,
        description=_describe(outcome),
        metadata=build_check_metadata(client, outcome),
    )


def convert_to_result(evaluation: dg.AssetCheckEvaluation) -> dg.AssetCheckResult:
    """Return an evaluation in the form that a step yields."""
    return dg.AssetCheckResult(
        asset_key=evaluation.asset_key,
        check_name=evaluation.check_name,
        passed=evaluation.passed,
        severity=evaluation.severity,
        description=evaluation.description,
        metadata=evaluation.metadata,
    )


def _describe(outcome: Outcome) -> str:
    ended = "succeeded" if outcome.run.is_success else "failed"
    return f"Run {outcome.run.run_id} {ended}. {outcome.details}".rstrip()


def build_only_if_events(
    key: dg.AssetKey, upstream: str, run_id: str, answer: str, *, is_error: bool, is_final: bool
) -> list[dg.AssetObservation | dg.AssetCheckEvaluation]:
    """Return the events about an answer of `only_if`, or about its failure to answer.

    Args:
        upstream: The DAG or asset whose event it was called with.
        run_id: The id of the upstream run; empty if there is none.
        answer: The answer or the error, in words.
        is_error: It gave no answer.
        is_final: It is not called with this event again. Only then there is an evaluation of the
            check.
    """
    metadata = {"Upstream": upstream, "Upstream run": run_id or "none", "only_if": answer}
    events: list[dg.AssetObservation | dg.AssetCheckEvaluation] = []
    if is_final:
        events.append(
            dg.AssetCheckEvaluation(
                asset_key=key,
                check_name=ONLY_IF_CHECK_NAME,
                passed=not is_error,
                description=answer,
                metadata=metadata,
            )
        )
    return [*events, dg.AssetObservation(key, answer, metadata=metadata)]


def build_drop_observation(airflow: str, dag_id: str) -> dg.AssetObservation:
    """Return the event with which a person asks the event sensor to drop the events that wait to
    start a DAG."""
    description = "A person asked to drop the events that wait to start this DAG."
    key = build_asset_key(airflow, dag_id)
    return dg.AssetObservation(key, description, metadata={SIGNAL_LABEL: "drop"})


def build_dropped_observation(
    airflow: str, dag_id: str, events: Sequence[str]
) -> dg.AssetObservation:
    """Return the observation that events which waited to start a DAG were dropped, because its
    declaration has changed or its partitions are not known.

    Args:
        events: The dependency of each dropped event, in words.
    """
    names = join_names(list(dict.fromkeys(events)))
    description = (
        "Dropped events that waited to start this DAG, because its dependencies or partitions were "
        f"changed or are not known: {names}."
    )
    key = build_asset_key(airflow, dag_id)
    return dg.AssetObservation(key, description, metadata={"Dropped events": len(events)})


def build_start_observation(
    airflow: str, dag_id: str, upstreams: Sequence[str]
) -> dg.AssetObservation:
    """Return the observation that some upstreams start a DAG from now on."""
    description = (
        f"Runs of this DAG follow {join_names(upstreams)} from now on. Earlier events start no "
        "run: if runs are missing, materialize the asset."
    )
    key = build_asset_key(airflow, dag_id)
    return dg.AssetObservation(key, description, metadata={"Follows": ", ".join(upstreams)})


def build_slow_observation(
    client: AirflowClient,
    run: DagRun,
    limit_s: float,
    now: datetime,
    partition: RunPartition,
) -> dg.AssetObservation:
    """Return the signal that a run has exceeded `max_duration`.

    Args:
        limit_s: The `max_duration` in seconds.
        now: The time by Airflow's clock.
    """
    metadata = {
        SIGNAL_LABEL: "slow",
        **build_link_metadata(client, run),
        "Max duration (s)": limit_s,
        **_describe_run(run),
        **_describe_absence(partition),
    }
    return dg.AssetObservation(
        build_asset_key(client.instance, run.dag_id),
        _describe_duration(run, limit_s, now),
        metadata=metadata,
        partition=partition.key,
    )


def build_max_duration_check(
    client: AirflowClient, run: DagRun, limit_s: float, now: datetime
) -> dg.AssetCheckEvaluation:
    """Return the evaluation of the check `max_duration` for a run that is running or finished.

    Args:
        limit_s: The `max_duration` in seconds.
        now: The time by Airflow's clock.
    """
    return dg.AssetCheckEvaluation(
        asset_key=build_asset_key(client.instance, run.dag_id),
        check_name=MAX_DURATION_CHECK_NAME,
        passed=run.measure_s(now) <= limit_s,
        description=_describe_duration(run, limit_s, now),
        metadata={**build_link_metadata(client, run), "Max duration (s)": limit_s},
    )


def _describe_duration(run: DagRun, limit_s: float, now: datetime) -> str:
    taken_s = run.measure_s(now)
    verb = "took" if run.is_finished else "has been running for"
    comparison = "longer" if taken_s > limit_s else "not longer"
    what = f"Run {run.run_id} {verb} {taken_s:.0f} s"
    return f"{what}, {comparison} than `max_duration` ({limit_s:.0f} s)."


def build_late_observation(
    airflow: str, dag_id: str, deadline: datetime, window: timedelta
) -> dg.AssetObservation:
    """Return the signal that no run of a DAG has succeeded by a deadline."""
    return dg.AssetObservation(
        build_asset_key(airflow, dag_id),
        _describe_lateness(deadline, window),
        metadata={SIGNAL_LABEL: "late", DEADLINE_LABEL: dg.MetadataValue.timestamp(deadline)},
    )


def build_deadline_check(
    airflow: str,
    dag_id: str,
    deadline: datetime,
    window: timedelta,
    successes: Sequence[Success],
) -> dg.AssetCheckEvaluation:
    """Return the evaluation of the check `deadline`. It passes if there is a success since the
    beginning of the window, in time or after the deadline.

    Args:
        window: How long before the deadline a success counts.
        successes: The successes of the DAG, sorted by their ends.
    """
    metadata: Metadata = {DEADLINE_LABEL: dg.MetadataValue.timestamp(deadline)}
    description = _describe_lateness(deadline, window)
    counting = [success for success in successes if success.end >= deadline - window]
    if counting:
        in_time = [success for success in counting if success.end <= deadline]
        success = in_time[-1] if in_time else counting[0]
        known = success.metadata
        metadata |= {label: known[label] for label in _LABELS_OF_A_PASSED_CHECK if label in known}
        what = f"Run {success.run_id} succeeded" if success.run_id else "A success was reported"
        order = "in time for" if in_time else "after"
        description = (
            f"{what} at {success.end:%F %T} UTC, {order} the deadline of {deadline:%F %T}."
        )
    return dg.AssetCheckEvaluation(
        asset_key=build_asset_key(airflow, dag_id),
        check_name=DEADLINE_CHECK_NAME,
        passed=bool(counting),
        description=description,
        metadata=metadata,
    )


def _describe_lateness(deadline: datetime, window: timedelta) -> str:
    begin = deadline - window
    return f"No run succeeded from {begin:%F %T} to the deadline of {deadline:%F %T} UTC."


def build_gap_observations(
    airflow: str, dag_ids: Iterable[str], begin: datetime, end: datetime
) -> list[dg.AssetObservation]:
    """Return the observation that an instance was not observed for a time, for each DAG's asset."""
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


def build_partitions_metadata(partitions: PartitionsDeclaration) -> Metadata:
    """Return the metadata of an evaluation of the check `partitions`: the declaration with which
    all reports agree, or for which a person has accepted them."""
    return {PARTITIONS_LABEL: dg.MetadataValue.json(partitions.model_dump(mode="json"))}


def build_run_metadata(client: AirflowClient, outcome: Outcome) -> Metadata:
    """Return what is known about a finished run. Durations are in seconds. Missing values are left
    out."""
    run = outcome.run
    metadata = {
        **build_link_metadata(client, run),
        OUTCOME_LABEL: outcome.result,
        DURATION_LABEL: _count_seconds(run.start_date, run.end_date),
        "Queue time (s)": _count_seconds(run.queued_at, run.start_date),
        "Lag (s)": _count_seconds(run.end_date, datetime.now(timezone.utc)),
        "Tries": max((task.try_number for task in outcome.tasks), default=None),
        **_describe_run(run),
    }
    return {label: value for label, value in metadata.items() if value is not None}


def _describe_run(run: DagRun) -> Metadata:
    """Return the dates of a run, its type, its partition key and its conf. Missing values are left
    out."""
    dates = {
        LOGICAL_DATE_LABEL: run.logical_date,
        INTERVAL_START_LABEL: run.data_interval_start,
        INTERVAL_END_LABEL: run.data_interval_end,
        "Queued": run.queued_at,
        START_LABEL: run.start_date,
        END_LABEL: run.end_date,
    }
    metadata = {
        **{label: dg.MetadataValue.timestamp(date) for label, date in dates.items() if date},
        "Run type": run.run_type or None,
        PARTITION_KEY_LABEL: run.partition_key or None,
        CONF_LABEL: _build_conf(run.conf),
    }
    return {label: value for label, value in metadata.items() if value is not None}


def _describe_absence(partition: RunPartition) -> Metadata:
    return {"No partition": partition.absence} if partition.absence else {}


def build_check_metadata(client: AirflowClient, outcome: Outcome) -> Metadata:
    """Return the run's metadata and the log tails of its failed tasks.

    For a plain success, return only its id, link, state, end and duration.
    """
    metadata = build_run_metadata(client, outcome)
    if outcome.is_success and outcome.run.is_success:
        return {label: metadata[label] for label in _LABELS_OF_A_PASSED_CHECK if label in metadata}
    tails = outcome.log_tails.items()
    return metadata | {f"Log of {name}": dg.MetadataValue.md(tail) for name, tail in tails}


def build_link_metadata(client: AirflowClient, run: DagRun) -> Metadata:
    """Return the id, link and state of a run, which may be unfinished."""
    link = dg.MetadataValue.url(client.build_run_url(run.dag_id, run.run_id))
    return {RUN_ID_LABEL: run.run_id, LINK_LABEL: link, STATE_LABEL: run.state}


def _count_seconds(begin: datetime | None, end: datetime | None) -> float | None:
    return (end - begin).total_seconds() if begin and end else None


def _build_conf(conf: Mapping[str, Any]) -> dg.MetadataValue | None:
    if not conf:
        return None
    redacted = redact(conf)
    text = json.dumps(redacted, ensure_ascii=False)
    if len(text) > _MAX_CONF_CHARACTERS:
        start = text[:_MAX_CONF_CHARACTERS]
        return dg.MetadataValue.text(f"{start}… ({len(text)} characters; see the run)")
    is_storable = _NOT_STORABLE.search(text) is None
    return dg.MetadataValue.json(redacted) if is_storable else dg.MetadataValue.text(text)
