"""Builds what a step reports: events and failures for Dagster, notes of DAG runs for Airflow."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import dagster as dg

from federation_defs.airflow.models import DagRun
from federation_defs.dagster_io.event_log import fetch_runs_planned_after
from federation_defs.dagster_io.reports import (
    fetch_last_durations,
    fetch_last_run_link,
    fetch_reported_runs,
)
from federation_defs.dagster_io.run_tags import Target, describe_cause, is_from_condition
from federation_defs.events import (
    build_check_evaluation,
    build_check_metadata,
    build_link_metadata,
    build_materialization,
    build_observation,
    build_run_metadata,
    convert_to_result,
)
from federation_defs.execution.launcher import RunCanceledError, StepContext
from federation_defs.naming import build_asset_key, build_check_key
from federation_defs.outcome import Outcome
from federation_defs.partitions import RunPartition

URL_VARIABLE = "FEDERATION_DAGSTER_URL"

Event = (
    dg.MaterializeResult
    | dg.AssetCheckResult
    | dg.AssetMaterialization
    | dg.AssetCheckEvaluation
    | dg.AssetObservation
    | dg.Output
)

_MAX_NOTE = 1000  # characters of Airflow's column (2.11 and 3.3)
_DURATIONS = 10
# An output lets the steps that depend on it start. Dagster (1.13) also stores a materialization for
# it. There is no public way to prevent that, but Dagster does not do so for this metadata.
_UNREPORTED = {"__source_asset_observation__": True}


class Reporter:
    """Builds the events of one step.

    Args:
        specs: The asset specs, by DAG id.
        outputs: The op's output names, by DAG id.
        targets: The targets of the step.
    """

    def __init__(
        self,
        context: StepContext,
        op_context: dg.AssetExecutionContext,
        specs: Mapping[str, dg.AssetSpec],
        outputs: Mapping[str, str],
        targets: Sequence[Target],
    ) -> None:
        self._step = context
        self._client = context.client
        self._current_run = context.current_run
        self._dags = context.dags
        self._context = op_context
        self._instance = op_context.instance
        self._specs = specs
        self._outputs = outputs
        self._counts = Counter(target.dag_id for target in targets)
        self._succeeded: Counter[str] = Counter()
        self._failed: set[str] = set()
        self._run_ids: dict[str, list[str]] = {}

    def build_note(self, dag_id: str) -> str:
        """Build the note of a DAG's runs in Airflow: what triggers them, and after which events."""
        run = self._context.run
        url = os.environ.get(URL_VARIABLE, "").rstrip("/")
        link = f" {url}/runs/{run.run_id}" if url else ""
        lines = [f"Triggered by Dagster run {run.run_id}, {describe_cause(run)}.{link}"]
        for each in self._step.fetch_upstream_events(dag_id):
            run = f": run {each.run_id} {each.link or ''}".rstrip() if each.run_id else ""
            lines.append(f"After {each.upstream} ({each.state}){run}")
        if self._current_run.get_request(dag_id) is None:
            lines += self._describe_updates(dag_id)
        note = "\n".join(lines)
        return note if len(note) <= _MAX_NOTE else note[: _MAX_NOTE - 1] + "…"

    def _describe_updates(self, dag_id: str) -> Iterator[str]:
        for key in sorted(dep.asset_key for dep in self._specs[dag_id].deps):
            if reported := fetch_last_run_link(self._instance, key):
                run_id, run_url = reported
                yield f"After {key.path[0]}/{key.path[-1]}: run {run_id} {run_url}".rstrip()

    def warn_of_short_timeout(self, dag_id: str) -> None:
        """Log a warning if all of the DAG's last runs took longer than its `trigger.timeout`."""
        timeout_s, key = self._dags[dag_id].trigger.timeout, self._build_key(dag_id)
        durations = sorted(fetch_last_durations(self._instance, key, _DURATIONS))
        if durations and timeout_s < durations[0]:
            self._context.log.warning(
                f"{dag_id} may exceed its `trigger.timeout` of {timeout_s:.0f} s: its last runs "
                f"usually took {durations[len(durations) // 2]:.0f} s, and the shortest took "
                f"{durations[0]:.0f} s."
            )

    def find_same_request(self, target: Target) -> str | None:
        """Find the earlier Dagster run that automation requested for the same updates, and that has
        launched a target or may still do so.

        Dagster (1.13) requests a run twice if an update is stored while a tick is evaluated: this
        tick sees the update, and so does the next one, which reads the event log from the position
        at which the first tick began.
        """
        if not (self._current_run.is_first and is_from_condition(self._context.run)):
            return None
        key = self._build_key(target.dag_id)
        upstream_keys = [dep.asset_key for dep in self._specs[target.dag_id].deps]
        assets = [each.key for each in self._dags[target.dag_id].depends_on if each.asset]
        planned = fetch_runs_planned_after(self._instance, key, upstream_keys, assets)
        return self._current_run.find_launched(target, planned)

    def report_launch(self, target: Target, run: DagRun) -> dg.AssetObservation:
        """Tag the Dagster run with the DAG run, and build the observation that links to it."""
        run_ids = self._run_ids.setdefault(run.dag_id, [])
        run_ids.append(run.run_id)
        self._current_run.tag_dag_run(run.dag_id, run_ids)
        return dg.AssetObservation(
            self._build_key(run.dag_id),
            description=f"DAG run {run.run_id} is {run.state}.",
            metadata=build_link_metadata(self._client, run),
            partition=target.partition,
        )

    def report_outcome(self, target: Target, outcome: Outcome) -> Iterator[Event]:
        """Yield the events of a DAG run that ended: the evaluation of its check, and, if it is a
        success, its materialization, else an observation.

        Events that are in the event log already are left out, but not the evaluation, which Dagster
        expects from this run. If there are several partitions, each has a materialization of its
        own (a `MaterializeResult` would have the same metadata for all of them), and the output
        follows the last one.

        Raises:
            dagster.Failure: Dagster has ended this Dagster run, or a person has deleted it.
            RunCanceledError: This Dagster run is canceled.
        """
        self.refuse_if_ended()
        run, key = outcome.run, self._build_key(outcome.run.dag_id)
        log = fetch_reported_runs(self._instance, self._client.instance, [run])
        is_new, is_single = log.lacks_materialization_of(outcome), self._counts[run.dag_id] == 1
        partition = RunPartition(target.partition)
        # Dagster keeps one evaluation per run and asset (1.13): a success must hide no failure.
        is_checked = build_check_key(key) in self._context.selected_asset_check_keys
        if is_checked and not (outcome.is_success and run.dag_id in self._failed):
            evaluation = build_check_evaluation(self._client, outcome)
            yield convert_to_result(evaluation) if is_single else evaluation
        if is_new and is_single:
            metadata = build_run_metadata(self._client, outcome)
            yield dg.MaterializeResult(asset_key=key, metadata=metadata)
        elif is_new:
            yield build_materialization(self._client, outcome, partition)
        elif log.lacks_report_of(outcome):
            yield build_observation(self._client, outcome, partition)
        if outcome.is_success and not is_new:
            self._context.log.info(
                f"{target.name}: run {run.run_id} was reported before. To run the DAG once more, "
                "materialize the asset instead of re-executing this Dagster run."
            )
        if not outcome.is_success:
            self._failed.add(run.dag_id)
        elif is_new and is_single:
            self._succeeded[run.dag_id] += 1
        else:
            yield from self.report_unmaterialized(target)

    def report_unmaterialized(self, target: Target) -> Iterator[dg.Output]:
        """Yield the output of a DAG after the last of its targets. It lets dependent steps start.

        It has no materialization, because the successes were materialized before or separately.
        """
        self._succeeded[target.dag_id] += 1
        if self._succeeded[target.dag_id] == self._counts[target.dag_id]:
            yield dg.Output(None, self._outputs[target.dag_id], metadata=_UNREPORTED)

    def refuse_if_ended(self) -> None:
        """Do nothing if this Dagster run goes on.

        Raises:
            dagster.Failure: Dagster has ended it, or a person has deleted it.
            RunCanceledError: It is canceled.
        """
        status = self._current_run.fetch_status()
        if status is dg.DagsterRunStatus.CANCELED:
            raise RunCanceledError
        if status in (None, dg.DagsterRunStatus.FAILURE):
            ended = f"Dagster ended this run ({status.value})" if status else "This run was deleted"
            raise dg.Failure(
                f"{ended} before its step. Observation or a retry reports the DAG runs "
                "that it has not reported.",
                allow_retries=False,
            )

    def build_failure(self, outcome: Outcome) -> dg.Failure:
        """Build the failure for a DAG run, with its failed tasks and the end of their logs."""
        run, url = outcome.run, self._client.build_run_url(*outcome.run.key)
        ended = "ended without its data" if run.is_success else "failed"
        return dg.Failure(
            f"DAG '{run.dag_id}' {ended} in Airflow '{self._client.instance}'. "
            f"{outcome.details} {url}",
            metadata=build_check_metadata(self._client, outcome),
            allow_retries=False,
        )

    def _build_key(self, dag_id: str) -> dg.AssetKey:
        return build_asset_key(self._client.instance, dag_id)


def join_failures(failures: Mapping[str, dg.Failure]) -> dg.Failure:
    """Join failures, by the target's name, into one. A single failure stays as it is."""
    if len(failures) == 1:
        (failure,) = failures.values()
        return failure
    return dg.Failure(
        "\n".join(failure.description or "" for failure in failures.values()),
        metadata={
            f"{name}: {label}": value
            for name, failure in failures.items()
            for label, value in failure.metadata.items()
        },
        allow_retries=False,
    )
