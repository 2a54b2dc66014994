"""A DAG run for a Dagster run: started now, or taken over from an earlier attempt, or others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from threading import Event

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.records import Dag, DagRun, TriggerOptions
from federation_defs.declaration import DagDeclaration, suggest
from federation_defs.errors import (
    DagBrokenError,
    DagNotFoundError,
    DagPausedError,
    LogicalDateTakenError,
    PermissionMissingError,
    RunLostError,
)
from federation_defs.execution.attempt import Attempt, Target
from federation_defs.execution.calls import DroppedError
from federation_defs.partitioning import Partitioning
from federation_defs.success import is_mended_by_failed
from federation_defs.verdicts import fetch_verdict, judge_by_state


class Starter:
    """Brings about DAG runs, each once however often it is asked to. Safe to share between threads.

    Args:
        dags: What is declared of the instance's DAGs, by DAG id.
    """

    def __init__(
        self, client: AirflowClient, attempt: Attempt, dags: Mapping[str, DagDeclaration]
    ) -> None:
        self._client = client
        self._attempt = attempt
        self._dags = dags
        self._is_stopped = Event()

    def stop(self) -> None:
        """From now on nothing is started; what is under way is finished."""
        self._is_stopped.set()

    def start(self, target: Target, note: str) -> DagRun:
        """The DAG run of a target, under way or over.

        A first attempt triggers it. A re-execution adopts the run if there is one: as it is if it
        goes on or has succeeded. One that failed is dealt with as `trigger.on_retry` says when a
        person executes it again; Dagster's own retry leaves it failed.

        If the partition's logical date has run already, by a schedule or by hand, that run is
        adopted for an automation, and run again for a person or a backfill.

        Raises:
            DagPausedError: The DAG is paused; nothing was triggered.
            DagBrokenError: Its file has an import error; nothing was triggered.
            DagNotFoundError: The DAG is not there.
            AirflowError: Anything else that the instance answered, or did not.
            DroppedError: It was too late: the Dagster run is being canceled.
        """
        found = None if self._attempt.is_first else self._find_started(target)
        if found is None:
            return self._trigger(target, note)
        return self._resume(target, note, *found)

    def _find_started(self, target: Target) -> tuple[DagRun, int] | None:
        """The last run that an attempt before brought about, and its number."""
        client, attempt, dag_id = self._client, self._attempt, target.dag_id
        found, number = client.fetch_run(dag_id, attempt.build_run_id(target)), 1
        if found is None:
            run_id = attempt.find_planned_run_id(target)  # of somebody else's
            found = client.fetch_run(dag_id, run_id) if run_id else None
            return (found, number) if found else None
        while self._dags[dag_id].trigger.on_retry == "new_run":
            later = client.fetch_run(dag_id, attempt.build_run_id(target, number + 1))
            if later is None:
                break
            found, number = later, number + 1
        return found, number

    def _trigger(self, target: Target, note: str, number: int = 1) -> DagRun:
        client, declared = self._client, self._dags[target.dag_id]
        dag = fetch_fit_dag(client, target.dag_id)
        options = TriggerOptions()
        if declared.partitions is not None and target.partition is not None:
            partitioning = Partitioning(declared.partitions)
            options = partitioning.build_options(target.partition, has_keys=dag.is_partitioned)
        run_id = self._attempt.build_run_id(target, number)
        self._refuse_if_stopped()
        try:
            return client.trigger_run(
                target.dag_id, run_id, declared.trigger.conf, replace(options, note=note)
            )
        except LogicalDateTakenError:
            date = options.logical_date
            owner = client.fetch_run_of_date(target.dag_id, date) if date else None
            if owner is None:
                raise
        if self._attempt.find_planned_run_id(target) == owner.run_id:
            is_due = self._attempt.is_still_planned(target, owner)
        else:
            is_due = owner.is_finished and not self._attempt.is_requested_by_automation
        return self._run_again(target, owner, whole=True) if is_due else owner

    def _resume(self, target: Target, note: str, run: DagRun, number: int) -> DagRun:
        attempt, declared = self._attempt, self._dags[target.dag_id]
        if not run.is_finished:
            return run
        rule = declared.success_when
        verdict = fetch_verdict(self._client, run, rule) if rule else judge_by_state(run)
        is_due = attempt.is_still_planned(target, run)
        is_settled = verdict.is_success or attempt.is_automatic or attempt.has_planned(target)
        if is_settled and not is_due:
            return run
        if declared.trigger.on_retry == "new_run":
            attempt.plan(target, run)
            return self._trigger(target, note, number + 1)
        is_mended = rule is None or is_mended_by_failed(verdict.tasks or (), rule)
        whole = verdict.is_success or not is_mended or declared.trigger.on_retry == "clear_all"
        return self._run_again(target, run, whole=whole)

    def _run_again(self, target: Target, run: DagRun, *, whole: bool) -> DagRun:
        """A finished run, under way once more: all its tasks, or the failed ones if there are."""
        client, (dag_id, run_id) = self._client, (run.dag_id, run.run_id)
        fetch_fit_dag(client, dag_id)
        self._refuse_if_stopped()
        self._attempt.plan(target, run)
        again = run
        clears = (client.clear_run,) if whole else (client.clear_failed_tasks, client.clear_run)
        for clear in clears:
            clear(dag_id, run_id)
            found = client.fetch_run(dag_id, run_id)
            if found is None:
                raise RunLostError(client.instance, f"lost run '{run_id}' of DAG '{dag_id}'.")
            again = found
            if again != run:
                break
        return again

    def _refuse_if_stopped(self) -> None:
        if self._is_stopped.is_set():
            raise DroppedError


def fetch_fit_dag(client: AirflowClient, dag_id: str) -> Dag:
    """A DAG of which a run would run, and as its file says now.

    Raises:
        DagNotFoundError: It is not there; the nearest name that is there is told.
        DagPausedError: A run would wait for ever.
        DagBrokenError: Its file has an import error.
    """
    try:
        dag = client.fetch_dag(dag_id)
    except DagNotFoundError as error:
        hint = suggest(dag_id, [dag.dag_id for dag in client.fetch_dags()])
        raise DagNotFoundError(client.instance, dag_id, error.seen, hint) from error
    url = client.build_dag_url(dag_id)
    if dag.is_paused:
        raise DagPausedError(client.instance, dag_id, url)
    if dag.has_import_errors:
        raise DagBrokenError(client.instance, dag_id, url, _fetch_reason(client, dag))
    return dag


def _fetch_reason(client: AirflowClient, dag: Dag) -> str:
    """The end of what Airflow says about a file; empty if this account may not read it."""
    try:
        errors = client.fetch_import_errors()
    except PermissionMissingError:
        return ""
    own = [error.stack_trace for error in errors if dag.file.endswith(error.file)]
    lines = own[0].strip().splitlines() if own else []
    return lines[-1].strip() if lines else ""
