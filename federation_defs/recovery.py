"""Dagster runs whose worker died: told by what Airflow says, and ended.

With Dagster's default run launcher nobody watches the workers (dagster 1.13): a run whose worker
was killed would stay "started" for ever, its assets in progress, never to be requested again. But
a DAG run that ended a while ago, and whose owner has said nothing, has no owner any more. Such a
run is ended as failed; with run retries on (the shipped dagster.yaml has them) Dagster starts it
again, which takes over the DAG run, for the run id is the same.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta, timezone

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.records import DagRun
from federation_defs.naming import build_dag_id, build_execution_name, build_run_id

# A living worker looks every 15 s at most, and writes what it sees within a second or two.
QUIET_FOR = timedelta(seconds=60)
_RUNS_PER_LOOK = 100


def end_orphaned_runs(
    instance: dg.DagsterInstance, client: AirflowClient, log: logging.Logger
) -> None:
    """Ends every started Dagster run that waits for this Airflow, but whose worker is dead.

    Raises:
        AirflowError: The instance could not be asked; nothing is ended on a guess.
    """
    now = datetime.now(timezone.utc)
    waiting = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED], updated_before=now - QUIET_FOR)
    for run in instance.get_runs(waiting, limit=_RUNS_PER_LOOK):
        dag_ids = _select_dag_ids(client.instance, run)
        if dag_ids and _is_ours_to_judge(instance, client.instance, run, now):
            dag_runs = [client.fetch_run(dag_id, _airflow_run_id(run)) for dag_id in dag_ids]
            if _is_orphaned([r for r in dag_runs if r is not None], now):
                message = _describe(client.instance, dag_ids, dag_runs)
                log.warning("Ending Dagster run %s. %s", run.run_id, message)
                instance.report_run_failed(run, message)


def _select_dag_ids(name: str, run: dg.DagsterRun) -> list[str]:
    keys = run.asset_selection or ()
    return [dag_id for key in keys if (dag_id := build_dag_id(name, key)) is not None]


def _airflow_run_id(run: dg.DagsterRun) -> str:
    return build_run_id(run.root_run_id or run.run_id)


def _is_ours_to_judge(
    instance: dg.DagsterInstance, name: str, run: dg.DagsterRun, now: datetime
) -> bool:
    """Whether the run is at this instance's step, or has been between steps for too long.

    At a step of somebody else's it may well be alive, whatever Airflow says.
    """
    steps = instance.get_run_step_stats(run.run_id)
    ours = build_execution_name(name)
    under_way = [step for step in steps if step.end_time is None]
    if under_way:
        # Dagster splits a multi_asset into ours, ours_2, … where dependencies cross.
        return any(step.step_key.startswith(ours) for step in under_way)
    last_end = max((step.end_time or 0.0 for step in steps), default=0.0)
    return last_end < (now - QUIET_FOR).timestamp()


def _is_orphaned(dag_runs: list[DagRun], now: datetime) -> bool:
    """Whether no DAG run is under way, and none ended just now.

    Without any DAG run the worker died before its trigger: it had its time, for Dagster wrote
    nothing of this run since `QUIET_FOR`.
    """
    if any(not dag_run.is_finished for dag_run in dag_runs):
        return False
    ends = [dag_run.end_date for dag_run in dag_runs if dag_run.end_date is not None]
    return not ends or max(ends) < now - QUIET_FOR


def _describe(name: str, dag_ids: list[str], dag_runs: list[DagRun | None]) -> str:
    states = ", ".join(
        f"{dag_id}: {dag_run.state if dag_run else 'not triggered'}"
        for dag_id, dag_run in zip(dag_ids, dag_runs, strict=True)
    )
    return (
        f"The worker of this run died: its DAG runs in Airflow '{name}' are over ({states}), and "
        "it has not reported them. A retry takes over where it stopped."
    )
