"""Which finished DAG runs a living Dagster run is going to report itself."""

from __future__ import annotations

import json
from collections.abc import Sequence

import dagster as dg

from federation_defs.airflow.models import DagRun, RunKey
from federation_defs.dagster_io.event_log import fetch_reported_runs
from federation_defs.dagster_io.run_tags import read_planned_runs
from federation_defs.naming import (
    build_detached_tag,
    build_monitor_tags,
    build_plan_tag,
    parse_root_run_id,
)


def find_deferred_runs(
    instance: dg.DagsterInstance, airflow: str, runs: Sequence[DagRun]
) -> frozenset[RunKey]:
    """Find those of the finished runs that a living Dagster run has yet to report.

    A Dagster run that has reported a DAG run, or given up on it, may live on to wait for others.
    """
    owners = _find_owners(instance, airflow, runs) if runs else {}
    owned = [run for run in runs if owners[run.key]]
    reported = fetch_reported_runs(instance, airflow, owned)
    return frozenset(run.key for run in owned if not reported.is_reported_by(owners[run.key], run))


def _find_owners(
    instance: dg.DagsterInstance, airflow: str, runs: Sequence[DagRun]
) -> dict[RunKey, list[str]]:
    """Find the ids of the living Dagster runs that triggered or adopted each run."""
    roots = {run.key: parse_root_run_id(run.run_id) or "" for run in runs}
    attempts = {root: _fetch_living_attempts(instance, root) for root in {*roots.values()} - {""}}
    adopters = _fetch_adopters(instance, airflow)
    owners: dict[RunKey, list[str]] = {}
    for run in runs:
        triggered_by = attempts.get(roots[run.key], [])
        adopted_by = [adopter for adopter in adopters if run.key in _read_adopted(adopter, airflow)]
        living = [*triggered_by, *adopted_by]
        waiting = [owner for owner in living if run.key not in _read_detached(owner, airflow)]
        owners[run.key] = [owner.run_id for owner in waiting]
    return owners


def _fetch_living_attempts(instance: dg.DagsterInstance, root_run_id: str) -> list[dg.DagsterRun]:
    """Fetch a Dagster run and its retries, without those that are finished."""
    root = instance.get_run_by_id(root_run_id)
    if root is None:
        return []
    retries = instance.get_runs(dg.RunsFilter(tags={"dagster/root_run_id": root_run_id}))
    return [run for run in (root, *retries) if not run.is_finished]


def _fetch_adopters(instance: dg.DagsterInstance, airflow: str) -> list[dg.DagsterRun]:
    """Fetch the living Dagster runs that have adopted DAG runs which they did not trigger."""
    statuses = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    waiting = dg.RunsFilter(statuses=statuses, tags=build_monitor_tags(airflow))
    return [run for run in instance.get_runs(waiting) if build_plan_tag(airflow) in run.tags]


def _read_adopted(adopter: dg.DagsterRun, airflow: str) -> set[RunKey]:
    planned = read_planned_runs(adopter, build_plan_tag(airflow))
    return {(target.split(" [")[0], run_id) for target, (run_id, _) in planned.items()}


def _read_detached(owner: dg.DagsterRun, airflow: str) -> set[RunKey]:
    """Read which DAG runs a Dagster run has stopped waiting for."""
    try:
        detached = json.loads(owner.tags.get(build_detached_tag(airflow), "[]"))
        return {(dag_id, run_id) for dag_id, run_id in detached}
    except (TypeError, ValueError):  # a person can edit tags
        return set()
