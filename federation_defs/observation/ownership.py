"""Runs that a Dagster run triggered or took over, and will report itself if it lives."""

from __future__ import annotations

import json

import dagster as dg

from federation_defs.airflow.models import DagRun
from federation_defs.dagster_io.event_log import fetch_reported_runs
from federation_defs.dagster_io.run_tags import read_planned_runs
from federation_defs.naming import (
    build_asset_key,
    build_detached_tag,
    build_monitor_tags,
    build_plan_tag,
    parse_root_run_id,
)
from federation_defs.observation.batch import group_by_dag


def find_deferred_runs(
    instance: dg.DagsterInstance, airflow: str, runs: list[DagRun]
) -> list[DagRun]:
    """Those of the finished runs that a living Dagster run has yet to report.

    One that has reported a run, or given up waiting for it, may live on for the sake of others.
    """
    roots = {root for run in runs if (root := parse_root_run_id(run.run_id)) is not None}
    living = {root: _find_living(instance, root) for root in roots}
    takers = _find_takers(instance, airflow) if runs else []
    owners = {
        (run.dag_id, run.run_id): [
            owner.run_id
            for owner in (
                *living.get(parse_root_run_id(run.run_id) or "", []),
                *(taker for taker in takers if _has_taken(taker, airflow, run)),
            )
            if [run.dag_id, run.run_id] not in _read_left(owner, airflow)
        ]
        for run in runs
    }
    owned = [run for run in runs if owners[run.dag_id, run.run_id]]
    held = []
    for dag_id, group in group_by_dag(owned).items():
        log = fetch_reported_runs(instance, build_asset_key(airflow, dag_id), group)
        held += [run for run in group if not log.is_reported_by(owners[dag_id, run.run_id], run)]
    return held


def _find_living(instance: dg.DagsterInstance, root_run_id: str) -> list[dg.DagsterRun]:
    """The Dagster run, and its re-executions, as far as they go on."""
    root = instance.get_run_by_id(root_run_id)
    if root is None:
        return []
    retries = instance.get_runs(dg.RunsFilter(tags={"dagster/root_run_id": root_run_id}))
    return [run for run in (root, *retries) if not run.is_finished]


def _find_takers(instance: dg.DagsterInstance, airflow: str) -> list[dg.DagsterRun]:
    """Dagster runs that go on and have taken over runs of somebody else's."""
    going_on = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    waiting = dg.RunsFilter(statuses=going_on, tags=build_monitor_tags(airflow))
    return [run for run in instance.get_runs(waiting) if build_plan_tag(airflow) in run.tags]


def _has_taken(taker: dg.DagsterRun, airflow: str, run: DagRun) -> bool:
    taken = read_planned_runs(taker, build_plan_tag(airflow))
    return any(
        run_id == run.run_id and name.split(" [")[0] == run.dag_id
        for name, (run_id, _) in taken.items()
    )


def _read_left(owner: dg.DagsterRun, airflow: str) -> list[list[str]]:
    """The runs, each as DAG id and run id, that it waits for no longer, though they may go on."""
    try:
        return list(json.loads(owner.tags.get(build_detached_tag(airflow), "[]")))
    except (TypeError, ValueError):  # a person may edit tags
        return []
