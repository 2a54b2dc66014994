"""Launches DAG runs: triggers a new one, or adopts or clears an existing one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from threading import Condition
from typing import Any

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import Dag, DagRun, TriggerOptions
from federation_defs.dagster_io.current_run import CurrentRun
from federation_defs.dagster_io.event_log import build_upstream_event, fetch_event
from federation_defs.dagster_io.run_tags import Target
from federation_defs.declaration import UPSTREAM_CONF_KEY, DagDeclaration, suggest
from federation_defs.dependencies.record import UpstreamEvent
from federation_defs.errors import (
    RUN_ANEW,
    DagBrokenError,
    DagNotFoundError,
    DagPausedError,
    LogicalDateTakenError,
    PartitionMismatchError,
    PermissionMissingError,
    RunLostError,
)
from federation_defs.outcome import Outcome, can_succeed_by_failed_tasks, fetch_outcome
from federation_defs.partitions import Partitioning
from federation_defs.timing import Timing


@dataclass(frozen=True)
class StepContext:
    """What the parts of a step share: one Airflow instance in one Dagster run.

    Attributes:
        dags: The declarations of the instance's DAGs, by DAG id.
        log: The Dagster run's log.
    """

    client: AirflowClient
    dags: Mapping[str, DagDeclaration]
    current_run: CurrentRun
    log: logging.Logger
    timing: Timing

    def fetch_upstream_events(self, dag_id: str) -> list[UpstreamEvent]:
        """Fetch the events for which a DAG was requested, in order, without deleted ones; an empty
        list if a person or an automation condition requested it."""
        if (request := self.current_run.get_request(dag_id)) is None:
            return []
        names = {edge.key: edge.name for edge in self.dags[dag_id].depends_on}
        downstream, instance = f"{self.client.instance}/{dag_id}", self.current_run.instance
        found = [fetch_event(instance, key, position) for key, position in request.events]
        return [
            build_upstream_event(event, names.get(event.key, "/".join(event.key.path)), downstream)
            for event in found
            if event is not None
        ]


class RunCanceledError(Exception):
    """The Dagster run is canceled, or its step has ended: nothing more is launched or reported."""


class Launcher:
    """Launches the DAG runs of a step. Idempotent and thread-safe."""

    def __init__(self, context: StepContext) -> None:
        self._context = context
        self._client = context.client
        self._current_run = context.current_run
        self._dags = context.dags
        self._timing = context.timing
        self._is_stopped = False
        self._launched: dict[Target, str] = {}
        self._pending = 0
        self._runnable_dags: dict[str, tuple[Dag, float]] = {}
        self._changed = Condition()

    def refuse(self) -> None:
        """Refuse launches that have not begun to trigger or clear a run: those that wait for an
        older run end at their next poll. Takes no lock."""
        self._is_stopped = True

    def stop(self) -> dict[Target, str]:
        """Refuse further launches, and wait up to `timing.launch_end_s` for those under way.

        Returns:
            The ids of the DAG runs to stop, by target. Some may not exist: a trigger may have
            failed.
        """
        self.refuse()
        with self._changed:
            self._changed.wait_for(lambda: not self._pending, self._timing.launch_end_s)
            return dict(self._launched)

    def forget(self, target: Target) -> None:
        """Leave a target's run out of `stop`, because it ended or must not be stopped."""
        with self._changed:
            self._launched.pop(target, None)

    def launch(self, target: Target, note: str) -> DagRun:
        """Return the DAG run of a target, which may be active or finished.

        The first attempt triggers it. A re-execution adopts the run of the earlier attempt. If that
        run has failed, and a person re-executes, it runs again as `trigger.on_retry` says; after
        Dagster's own retry it stays failed.

        If another run has the logical date, it is cleared if it has ended, and adopted if it is
        active. But if the event sensor requested this launch, an active run is older than the
        event: the launch waits for its end, and then clears it. The launch does the same with the
        run that the request names for clearing.

        Raises:
            AirflowError: The DAG is missing, paused or broken, and nothing was triggered; a run to
                clear did not end within `trigger.timeout`; or any other error of a request.
            RunCanceledError: The Dagster run is being canceled, or the step has ended.
        """
        with self._changed:
            self._refuse_if_stopped()
            self._pending += 1
        try:
            found = None if self._current_run.is_first else self._find_launched(target)
            run = self._resume(target, note, *found) if found else self._trigger(target, note)
            if self._current_run.owns(target, run):
                with self._changed:  # also after `stop` was called: it waits for this run
                    self._launched[target] = run.run_id
            return run
        finally:
            with self._changed:
                self._pending -= 1
                self._changed.notify_all()

    def _find_launched(self, target: Target) -> tuple[DagRun, int] | None:
        """Fetch the last run that an earlier attempt launched, and its number, counted from 1."""
        found, number = None, 0
        while later := self._client.fetch_run(
            target.dag_id, self._current_run.build_run_id(target, number + 1)
        ):
            found, number = later, number + 1
        if found is None and (planned := self._current_run.get_planned_run_id(target)):
            found, number = self._client.fetch_run(target.dag_id, planned), 1
        return (found, number) if found else None

    def _trigger(self, target: Target, note: str, number: int = 1) -> DagRun:
        declared, dag = self._dags[target.dag_id], self._fetch_runnable_dag(target.dag_id)
        request, trigger = self._current_run.get_request(target.dag_id), declared.trigger
        if request and request.clears and number == 1:
            owner = self._client.fetch_run(target.dag_id, request.clears)
            if owner and (ended := self._wait_for_end(target, owner)):
                return self._take_over(target, ended, self._build_conf(target.dag_id))
        # Runs of a partitioned DAG have no date. Airflow's UI gives them none either (3.3).
        date: datetime | str = "none" if dag.is_partitioned else trigger.logical_date
        if date == "upstream":
            date = (request.logical_date if request else None) or "now"
        options = TriggerOptions(date)
        if declared.partitions is not None and target.partition is not None:
            partitioning = Partitioning(declared.partitions)
            options = partitioning.build_options(target.partition, has_keys=dag.is_partitioned)
        options = replace(options, note=note)
        conf = self._build_conf(target.dag_id)
        run_id = self._current_run.build_run_id(target, number)
        self._record_own_run(target, run_id)
        try:
            return self._client.trigger_run(target.dag_id, run_id, conf, options)
        except LogicalDateTakenError:
            date = options.logical_date
            if not isinstance(date, datetime):
                raise
            if (owner := self._client.fetch_run_of_date(target.dag_id, date)) is None:
                raise
        self._check_partition(target, owner)
        self.forget(target)
        if request is None:
            return self._take_over(target, owner, conf)
        # The run with this date is older than the event that led to the request.
        if ended := self._wait_for_end(target, owner):
            return self._take_over(target, ended, conf)
        return self._trigger(target, note, number)

    def _build_conf(self, dag_id: str) -> Mapping[str, Any]:
        """Return the conf for a run of a DAG: the declared one, or that of the request, and the
        upstream runs if they are passed."""
        request, trigger = self._current_run.get_request(dag_id), self._dags[dag_id].trigger
        conf = trigger.conf if request is None or request.conf is None else request.conf
        if not trigger.pass_upstream:
            return conf
        upstream = [event.to_json() for event in self._context.fetch_upstream_events(dag_id)]
        return {**conf, UPSTREAM_CONF_KEY: {"upstream": upstream}}

    def _check_partition(self, target: Target, owner: DagRun) -> None:
        """Check that the run that has the logical date of a partition is a run of the partition.

        Raises:
            PartitionMismatchError: It belongs to another partition, or to none.
        """
        declared = self._dags[target.dag_id].partitions
        if declared is None or target.partition is None:
            return
        found = Partitioning(declared).find_partition(owner).key
        if found != target.partition:
            seen = f"partition {found}" if found else "none of its partitions"
            seen += f" by its {declared.date}"
            raise PartitionMismatchError(self._client.instance, target.name, owner.run_id, seen)

    def _wait_for_end(self, target: Target, run: DagRun) -> DagRun | None:
        """Wait until a run that will be cleared has ended, and return it; None if it was deleted.

        Raises:
            RunLostError: The run has not ended after `trigger.timeout`.
            RunCanceledError: The Dagster run is being canceled, or the step has ended.
        """
        timing, timeout_s = self._timing, self._dags[target.dag_id].trigger.timeout
        began = timing.monotonic()
        while not run.is_finished:
            self._refuse_if_stopped()
            if (elapsed_s := timing.monotonic() - began) > timeout_s:
                url = self._client.build_run_url(*run.key)
                message = (
                    f"still has run '{run.run_id}' of DAG '{run.dag_id}' {run.state} after "
                    f"{timeout_s:.0f} s (`trigger.timeout`), and can't clear it before it ends: "
                    f"{url}. Re-execute this Dagster run when it has ended."
                )
                raise RunLostError(self._client.instance, message)
            timing.sleep(timing.poll_run.poll_pause_s(elapsed_s))
            if (found := self._client.fetch_run(*run.key)) is None:
                return None
            run = found
        return run

    def _take_over(self, target: Target, owner: DagRun, conf: Mapping[str, Any]) -> DagRun:
        """Adopt an existing run, or run it again if it has ended.

        Args:
            conf: The conf of a new run. Airflow can't change that of an existing one.
        """
        if owner.conf != conf:
            self._context.log.warning(
                f"Run '{owner.run_id}' of DAG '{owner.dag_id}' keeps the conf that it was created "
                "with: Airflow can't change it. The run is not given the conf of this request."
            )
        current_run = self._current_run
        if current_run.get_planned_run_id(target) == owner.run_id:
            is_clear_due = current_run.is_clear_pending(target, owner)
        else:
            is_clear_due = owner.is_finished
        if is_clear_due:
            return self._run_again(target, owner, whole=True)
        current_run.record_adoption(target, owner)
        # It may have ended before the adoption was recorded.
        return self._client.fetch_run(*owner.key) or owner

    def _resume(self, target: Target, note: str, run: DagRun, number: int) -> DagRun:
        """Adopt the run of an earlier attempt, or run it again."""
        current_run, declared = self._current_run, self._dags[target.dag_id]
        if not run.is_finished:
            return run
        rule = declared.success_when
        outcome = fetch_outcome(self._client, run, rule) if rule else Outcome(run, run.is_success)
        is_settled = (
            outcome.is_success
            or current_run.is_dagster_retry
            or current_run.has_planned_clear(target)
        )
        if is_settled and not current_run.is_clear_pending(target, run):
            return run
        if declared.trigger.on_retry == "new_run":
            current_run.plan_clear(target, run)
            return self._trigger(target, note, number + 1)
        whole = outcome.is_success or declared.trigger.on_retry == "clear_all"
        return self._run_again(target, run, whole=whole or not self._is_met_by_failed_tasks(run))

    def _is_met_by_failed_tasks(self, run: DagRun) -> bool:
        """Return whether the run can succeed if only its failed tasks run again."""
        tasks = self._client.fetch_task_instances(*run.key)
        return can_succeed_by_failed_tasks(run, tasks, self._dags[run.dag_id].success_when)

    def _run_again(self, target: Target, run: DagRun, *, whole: bool) -> DagRun:
        """Clear a finished run, and return it. Unless `whole`, clear only failed tasks, if any."""
        self._fetch_runnable_dag(run.dag_id)
        self._record_own_run(target, run.run_id)
        self._current_run.plan_clear(target, run)
        again = run if whole else self._clear(self._client.clear_failed_tasks, run)
        return self._clear(self._client.clear_run, run) if again == run else again

    def _clear(self, clear: Callable[[str, str], None], run: DagRun) -> DagRun:
        clear(*run.key)
        if (cleared := self._client.fetch_run(*run.key)) is not None:
            return cleared
        message = f"no longer has run '{run.run_id}' of DAG '{run.dag_id}', which Dagster cleared."
        raise RunLostError(self._client.instance, f"{message} {RUN_ANEW}")

    def _fetch_runnable_dag(self, dag_id: str) -> Dag:
        """Fetch a DAG that can run. Launches within `timing.runnable_cache_s` share the answer.

        Raises:
            DagNotFoundError: The instance has no such DAG; the error suggests the nearest name.
            DagPausedError: The DAG is paused: a run would stay queued.
            DagBrokenError: Its file has an import error: a run would fail, or be out of date.
        """
        client, timing = self._client, self._timing
        dag, until = self._runnable_dags.get(dag_id, (None, 0.0))
        if dag is not None and timing.monotonic() <= until:
            return dag
        try:
            dag = client.fetch_dag(dag_id)
        except DagNotFoundError as error:
            hint = suggest(dag_id, [dag.dag_id for dag in client.fetch_dags()])
            raise DagNotFoundError(client.instance, dag_id, error.seen, hint) from error
        url = client.build_dag_url(dag_id)
        if dag.is_paused:
            raise DagPausedError(client.instance, dag_id, url)
        if dag.has_import_errors:
            raise DagBrokenError(client.instance, dag_id, url, self._fetch_import_error(dag))
        self._runnable_dags[dag_id] = (dag, timing.monotonic() + timing.runnable_cache_s)
        return dag

    def _fetch_import_error(self, dag: Dag) -> str:
        """Return the last line of the file's stack trace; empty if there is none to read."""
        with suppress(PermissionMissingError):
            for error in self._client.fetch_import_errors():
                if dag.file.endswith(error.file):
                    return error.stack_trace.strip().rpartition("\n")[2].strip()
        return ""

    def _record_own_run(self, target: Target, run_id: str) -> None:
        """Record a run that `stop` returns, before it is triggered or cleared."""
        with self._changed:
            self._refuse_if_stopped()
            self._launched[target] = run_id

    def _refuse_if_stopped(self) -> None:
        if self._is_stopped:
            raise RunCanceledError
