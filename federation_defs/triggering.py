"""A DAG run for a Dagster run: started now, or taken over from an attempt before."""

from __future__ import annotations

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.records import DagRun
from federation_defs.declaration import SuccessDeclaration
from federation_defs.errors import DagPausedError, RunLostError
from federation_defs.success import is_mended_by_failed
from federation_defs.verdicts import fetch_verdict


def start_run(
    client: AirflowClient,
    dag_id: str,
    run_id: str,
    dagster_run: dg.DagsterRun,
    rule: SuccessDeclaration | None = None,
) -> DagRun:
    """The DAG run of this id, under way or over.

    A first attempt triggers it. A re-execution adopts the run if there is one: as it is if it goes
    on or has succeeded. If it has failed, its failed tasks are cleared when a person executes it
    again, and all of them if none did; Dagster's own retry leaves it failed.

    Args:
        dagster_run: On whose behalf.
        rule: The DAG's `success_when`.

    Raises:
        DagPausedError: The DAG is paused; nothing was triggered.
        DagNotFoundError: The DAG is not there.
        AirflowError: Anything else that the instance answered, or did not.
    """
    is_first = dagster_run.parent_run_id is None
    run = None if is_first else client.fetch_run(dag_id, run_id)
    if run is None:
        refuse_paused(client, dag_id)
        return client.trigger_run(dag_id, run_id)
    is_automatic = "dagster/retry_number" in dagster_run.tags
    if not run.is_finished or is_automatic:
        return run
    clears = (client.clear_failed_tasks, client.clear_run)
    if rule is None and run.is_success:
        return run
    if rule is not None:
        verdict = fetch_verdict(client, run, rule)
        if verdict.is_success:
            return run
        if not is_mended_by_failed(verdict.tasks or (), rule):
            clears = (client.clear_run,)
    refuse_paused(client, dag_id)
    failed = run
    for clear in clears:
        clear(dag_id, run_id)
        run = client.fetch_run(dag_id, run_id)
        if run is None:
            raise RunLostError(client.instance, f"lost run '{run_id}' of DAG '{dag_id}'.")
        if run != failed:
            break
    return run


def refuse_paused(client: AirflowClient, dag_id: str) -> None:
    """Raises a DagPausedError if the DAG is paused: a run of it would wait for ever."""
    if client.fetch_dag(dag_id).is_paused:
        raise DagPausedError(client.instance, dag_id, client.build_dag_url(dag_id))
