"""A finished DAG run as asset events: a materialization if its data is there, and an evaluation of
the asset check `dag_run` in any case. Each once.

Two write such events: the Dagster run that triggered the DAG run, and the observation of the
instance. Both write the same metadata, by which each sees what the other has written.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.records import DagRun
from federation_defs.masking import mask
from federation_defs.naming import CHECK_NAME, build_asset_key, build_check_key, parse_root_run_id
from federation_defs.verdicts import Verdict

_RUN_ID = "Run ID"
_STATE = "State"
_END = "End"

# How far an Airflow's clock may be off ours. An event of a run is written after the run's end; by
# this much earlier it is looked for.
CLOCK_SKEW = timedelta(hours=1)
_LINK = "Link to run"
_DURATION = "Duration (s)"
_OF_A_SUCCESS = frozenset({_RUN_ID, _LINK, _STATE, _END, _DURATION})
_EVALUATED_WITHIN_S = 60.0  # of the materialization, by the same step
_LONG_AGO = datetime(1970, 1, 2, tzinfo=timezone.utc)
_WITHOUT_END = timedelta(days=7)
_EVENTS_PER_QUERY = 500
_MAX_CONF = 10_000  # characters of JSON; it is stored with each event


def build_run_metadata(client: AirflowClient, verdict: Verdict) -> dict[str, dg.MetadataValue]:
    """What a person wants to see of a run; absent dates are left out. Durations in seconds."""
    run = verdict.run
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
    if verdict.tasks:
        tries = max(task.try_number for task in verdict.tasks)
        metadata["Tries"] = dg.MetadataValue.int(tries)
    texts = {"Run type": run.run_type, "Partition key": run.partition_key}
    metadata |= {name: dg.MetadataValue.text(text) for name, text in texts.items() if text}
    if run.conf:
        metadata["Conf"] = _build_conf(run.conf)
    return metadata


def build_check_metadata(client: AirflowClient, verdict: Verdict) -> dict[str, dg.MetadataValue]:
    """The same, and the tasks that failed with the end of their logs; of a plain success, whose
    materialization tells all that, only what names it and what can be plotted."""
    metadata = build_run_metadata(client, verdict)
    if verdict.is_success and verdict.run.is_success:
        return {name: value for name, value in metadata.items() if name in _OF_A_SUCCESS}
    metadata |= {
        f"Log of {name}": dg.MetadataValue.md(tail) for name, tail in verdict.log_tails.items()
    }
    return metadata


def _build_conf(conf: Mapping[str, Any]) -> dg.MetadataValue:
    masked = mask(conf)
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
    client: AirflowClient, verdict: Verdict, partition: str | None = None
) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(
        asset_key=build_asset_key(client.instance, verdict.run.dag_id),
        metadata=build_run_metadata(client, verdict),
        partition=partition,
    )


def build_check_evaluation(client: AirflowClient, verdict: Verdict) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=build_asset_key(client.instance, verdict.run.dag_id),
        check_name=CHECK_NAME,
        passed=verdict.is_success,
        description=verdict.summary,
        metadata=build_check_metadata(client, verdict),
    )


def build_check_result(client: AirflowClient, verdict: Verdict) -> dg.AssetCheckResult:
    """The evaluation as a step gives it."""
    evaluation = build_check_evaluation(client, verdict)
    return dg.AssetCheckResult(
        asset_key=evaluation.asset_key,
        check_name=evaluation.check_name,
        passed=evaluation.passed,
        description=evaluation.description,
        metadata=evaluation.metadata,
    )


@dataclass
class Reported:
    """What the event log holds of one asset's runs, from a moment on.

    Attributes:
        materialized: Run id and end of each run that is a materialization. One that was cleared
            and ran again ended at another time, and is another.
        checked: By run id, state, end and outcome of its last evaluation. A run that is set to
            another state by hand is evaluated again.
        materialized_by: Run id and Dagster run id, if a Dagster run wrote it: when it did.
        checked_by: The same of evaluations.
    """

    materialized: set[tuple[str, float | None]] = field(default_factory=set)
    checked: dict[str, tuple[str, float | None, bool]] = field(default_factory=dict)
    materialized_by: dict[tuple[str, str], float] = field(default_factory=dict)
    checked_by: set[tuple[str, str]] = field(default_factory=set)

    def lacks_materialization(self, verdict: Verdict) -> bool:
        run = verdict.run
        return verdict.is_success and (run.run_id, _seconds(run.end_date)) not in self.materialized

    def is_told_by(self, dagster_run_ids: list[str], run: DagRun) -> bool:
        """Whether one of these Dagster runs has told all that it will of a DAG run: its evaluation,
        or, if that is not part of it, the materialization before."""
        long_ago = time.time() - _EVALUATED_WITHIN_S
        return any(
            (run.run_id, owner) in self.checked_by
            or self.materialized_by.get((run.run_id, owner), math.inf) < long_ago
            for owner in dagster_run_ids
        )

    def lacks_evaluation(self, verdict: Verdict) -> bool:
        run = verdict.run
        seen = (run.state, _seconds(run.end_date), verdict.is_success)
        return self.checked.get(run.run_id) != seen


def fetch_reported(instance: dg.DagsterInstance, key: dg.AssetKey, runs: list[DagRun]) -> Reported:
    """What the event log holds of these runs of an asset, and maybe of others."""
    now = datetime.now(timezone.utc)
    first_end = min(run.end_date or run.start_date or now - _WITHOUT_END for run in runs)
    since = (max(_LONG_AGO, min(first_end, now)) - CLOCK_SKEW).timestamp()
    reported = Reported()
    _add_materializations(reported, instance, key, since)
    # A step's evaluation has its place in the log since the Dagster run began, maybe hours before.
    _add_evaluations(reported, instance, key, min(since, *_find_owners_starts(instance, runs)))
    return reported


def read_run_link(metadata: Mapping[str, dg.MetadataValue]) -> tuple[str, str] | None:
    """Run id and link (or empty) of the run that an event tells of; None if of none."""
    run_id, _, _ = _read_run(metadata)
    link = metadata.get(_LINK)
    url = link.url if isinstance(link, dg.UrlMetadataValue) else ""
    return (run_id, url or "") if run_id else None


def read_duration_s(metadata: Mapping[str, dg.MetadataValue]) -> float | None:
    """How long the run took that an event tells of; None if it does not say."""
    duration = metadata.get(_DURATION)
    return duration.value if isinstance(duration, dg.FloatMetadataValue) else None


def find_first_end(instance: dg.DagsterInstance, key: dg.AssetKey) -> datetime | None:
    """When the run ended that was the first of its asset to be reported; None if none was."""
    for record in instance.fetch_materializations(key, limit=1, ascending=True).records:
        event = record.asset_materialization
        _, _, end = _read_run(event.metadata if event else {})
        return datetime.fromtimestamp(end or record.timestamp, timezone.utc)
    oldest: float | None = None  # of a DAG that has only ever failed
    storage_id: int | None = None
    while page := instance.event_log_storage.get_asset_check_execution_history(
        build_check_key(key), limit=_EVENTS_PER_QUERY, cursor=storage_id
    ):
        oldest, storage_id = page[-1].create_timestamp, page[-1].id
    return datetime.fromtimestamp(oldest, timezone.utc) if oldest is not None else None


def _find_owners_starts(instance: dg.DagsterInstance, runs: list[DagRun]) -> list[float]:
    """When the Dagster runs that triggered some of these were created; always one entry."""
    owners = [owner for run in runs if (owner := parse_root_run_id(run.run_id)) is not None]
    records = instance.get_run_records(dg.RunsFilter(run_ids=owners)) if owners else []
    return [record.create_timestamp.timestamp() for record in records] or [math.inf]


def _add_materializations(
    reported: Reported, instance: dg.DagsterInstance, key: dg.AssetKey, since: float
) -> None:
    records = dg.AssetRecordsFilter(asset_key=key, after_timestamp=since)
    page_cursor: str | None = None
    while True:
        page = instance.fetch_materializations(records, limit=_EVENTS_PER_QUERY, cursor=page_cursor)
        for record in page.records:
            event = record.asset_materialization
            run_id, _, end = _read_run(event.metadata if event else {})
            if run_id:
                reported.materialized.add((run_id, end))
                reported.materialized_by[run_id, record.run_id] = record.timestamp
        if not page.has_more:
            return
        page_cursor = page.cursor


def _add_evaluations(
    reported: Reported, instance: dg.DagsterInstance, key: dg.AssetKey, since: float
) -> None:
    check = build_check_key(key)
    storage_id: int | None = None
    last: dict[str, float] = {}
    while True:
        records = instance.event_log_storage.get_asset_check_execution_history(
            check, limit=_EVENTS_PER_QUERY, cursor=storage_id
        )
        for record in records:  # the newest first
            if record.create_timestamp < since:
                return
            if record.event is None or record.event.dagster_event is None:
                continue
            evaluation = record.event.dagster_event.event_specific_data
            if not isinstance(evaluation, dg.AssetCheckEvaluation):
                continue  # planned by a run that is yet to execute it
            run_id, state, end = _read_run(evaluation.metadata)
            reported.checked_by.add((run_id, record.run_id))
            if run_id and record.event.timestamp > last.get(run_id, -math.inf):
                last[run_id] = record.event.timestamp
                reported.checked[run_id] = (state, end, evaluation.passed)
        if len(records) < _EVENTS_PER_QUERY:
            return
        storage_id = records[-1].id


def _read_run(
    metadata: Mapping[str, dg.MetadataValue],
) -> tuple[str, str, float | None]:
    """Run id, state and end (seconds since 1970) that an event tells of; empty if of none."""
    run_id, state, end = (metadata.get(name) for name in (_RUN_ID, _STATE, _END))
    return (
        (run_id.text or "") if isinstance(run_id, dg.TextMetadataValue) else "",
        (state.text or "") if isinstance(state, dg.TextMetadataValue) else "",
        end.value if isinstance(end, dg.TimestampMetadataValue) else None,
    )


def _seconds(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment else None
