"""A DAG run for a Dagster run: started now, or taken over from an earlier attempt, or others."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from threading import Condition

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import Dag, DagRun, TriggerOptions
from federation_defs.dagster_io.run_tags import CurrentRun, Target
from federation_defs.declaration import DagDeclaration, suggest
from federation_defs.errors import (
    DagBrokenError,
    DagNotFoundError,
    DagPausedError,
    LogicalDateTakenError,
    PermissionMissingError,
    RequestRefusedError,
    RunLostError,
    RunNotStartedError,
)
from federation_defs.naming import parse_root_run_id
from federation_defs.outcome import (
    build_outcome_by_state,
    fetch_outcome,
    is_met_by_failed_tasks,
    was_ended_early,
)
from federation_defs.partitions import Partitioning
from federation_defs.redaction import redact_text

# How long a DAG that could be run is taken for one.
RUNNABLE_CACHE_S = 5.0


class LaunchCanceledError(Exception):
    """The launch was dropped, because the Dagster run is being canceled."""


class Launcher:
    """Brings about DAG runs, each once however often it is asked to. Safe to share between threads.

    Args:
        dags: What is declared of the instance's DAGs, by DAG id.
    """

    def __init__(
        self, client: AirflowClient, current_run: CurrentRun, dags: Mapping[str, DagDeclaration]
    ) -> None:
        self._client = client
        self._current_run = current_run
        self._dags = dags
        self._is_stopped = False
        self._started: dict[Target, str] = {}
        self._under_way = 0
        self._runnable_dags: dict[str, tuple[float, Dag]] = {}
        self._changed = Condition()

    def stop(self, timeout_s: float) -> dict[Target, str]:
        """The runs that are ours, by target, those included that may have been started just now.

        From now on nothing is started; what is under way is waited for.
        """
        with self._changed:
            self._is_stopped = True
            self._changed.wait_for(lambda: not self._under_way, timeout_s)
            return dict(self._started)

    def forget(self, target: Target) -> None:
        """Leaves out a run that is over, or is not to be stopped with the others."""
        with self._changed:
            self._started.pop(target, None)

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
        with self._changed:
            self._refuse_if_stopped()
            self._under_way += 1
        try:
            found = None if self._current_run.is_first else self._find_started(target)
            run = self._resume(target, note, *found) if found else self._trigger(target, note)
            if self._current_run.owns(target, run):
                with self._changed:  # also if it was found when all are to be stopped
                    self._started[target] = run.run_id
            return run
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def _find_started(self, target: Target) -> tuple[DagRun, int] | None:
        """The last run that an attempt before brought about, and its number."""
        client, current_run, dag_id = self._client, self._current_run, target.dag_id
        found, number = client.fetch_run(dag_id, current_run.build_run_id(target)), 1
        if found is None:
            run_id = current_run.find_planned_run_id(target)  # of somebody else's
            found = client.fetch_run(dag_id, run_id) if run_id else None
            return (found, number) if found else None
        while later := client.fetch_run(dag_id, current_run.build_run_id(target, number + 1)):
            found, number = later, number + 1
        return found, number

    def _trigger(self, target: Target, note: str, number: int = 1) -> DagRun:
        client, declared = self._client, self._dags[target.dag_id]
        dag = self._fetch_runnable_dag(target.dag_id)
        options = TriggerOptions()
        if declared.partitions is not None and target.partition is not None:
            partitioning = Partitioning(declared.partitions)
            options = partitioning.build_options(target.partition, has_keys=dag.is_partitioned)
        run_id = self._current_run.build_run_id(target, number)
        self._expect(target, run_id)
        conf = declared.trigger.conf
        try:
            return client.trigger_run(target.dag_id, run_id, conf, replace(options, note=note))
        except (RequestRefusedError, RunNotStartedError) as error:
            raise error.with_detail(redact_text(error.detail, conf)) from None
        except LogicalDateTakenError:
            date = options.logical_date
            owner = client.fetch_run_of_date(target.dag_id, date) if date else None
            if owner is None:
                raise
        self.forget(target)
        return self._take_over(target, owner)

    def _take_over(self, target: Target, owner: DagRun) -> DagRun:
        """A run of somebody else's that has the partition's date: as it is, or run again."""
        current_run = self._current_run
        if current_run.find_planned_run_id(target) == owner.run_id:
            is_due = current_run.is_still_planned(target, owner)
        else:
            # What an automation ran is of before the update that asks for it now.
            is_of_a_schedule = parse_root_run_id(owner.run_id) is None
            is_enough = current_run.is_requested_by_automation and is_of_a_schedule
            is_due = owner.is_finished and not is_enough
        if is_due:
            return self._run_again(target, owner, whole=True)
        current_run.adopt(target, owner)
        return owner

    def _resume(self, target: Target, note: str, run: DagRun, number: int) -> DagRun:
        current_run, declared = self._current_run, self._dags[target.dag_id]
        if not run.is_finished:
            return run
        rule = declared.success_when
        outcome = fetch_outcome(self._client, run, rule) if rule else build_outcome_by_state(run)
        is_due = current_run.is_still_planned(target, run)
        is_settled = (
            outcome.is_success or current_run.is_automatic or current_run.has_planned(target)
        )
        if is_settled and not is_due:
            return run
        if declared.trigger.on_retry == "new_run":
            current_run.plan(target, run)
            return self._trigger(target, note, number + 1)
        whole = outcome.is_success or declared.trigger.on_retry == "clear_all"
        return self._run_again(target, run, whole=whole or not self._is_met_by_failed_tasks(run))

    def _is_met_by_failed_tasks(self, run: DagRun) -> bool:
        """Whether running its failed tasks again makes it whole."""
        tasks = self._client.fetch_task_instances(run.dag_id, run.run_id)
        rule = self._dags[run.dag_id].success_when
        return not was_ended_early(tasks, run.end_date) and (
            rule is None or is_met_by_failed_tasks(tasks, rule)
        )

    def _run_again(self, target: Target, run: DagRun, *, whole: bool) -> DagRun:
        """A finished run, under way once more: all its tasks, or the failed ones if there are."""
        client, (dag_id, run_id) = self._client, (run.dag_id, run.run_id)
        self._fetch_runnable_dag(dag_id)
        self._expect(target, run_id)
        self._current_run.plan(target, run)
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

    def _fetch_runnable_dag(self, dag_id: str) -> Dag:
        """Once for all partitions that are started at about the same time."""
        fetched_at, dag = self._runnable_dags.get(dag_id, (-math.inf, None))
        if dag is None or time.monotonic() - fetched_at > RUNNABLE_CACHE_S:
            dag = fetch_runnable_dag(self._client, dag_id)
            self._runnable_dags[dag_id] = (time.monotonic(), dag)
        return dag

    def _expect(self, target: Target, run_id: str) -> None:
        """Puts down that a run is ours, before it is started or run again."""
        with self._changed:
            self._refuse_if_stopped()
            self._started[target] = run_id

    def _refuse_if_stopped(self) -> None:
        if self._is_stopped:
            raise LaunchCanceledError


def fetch_runnable_dag(client: AirflowClient, dag_id: str) -> Dag:
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
