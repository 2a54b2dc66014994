"""What a step tells: events for Dagster, and words for whoever watches the run."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.records import DagRun
from federation_defs.errors import AirflowError, RunLostError, RunNotStartedError
from federation_defs.execution.attempt import Attempt, Target
from federation_defs.execution.provenance import build_note
from federation_defs.execution.waiting import Wait
from federation_defs.naming import build_asset_key, build_check_key
from federation_defs.reporting import (
    build_check_evaluation,
    build_check_result,
    build_link_metadata,
    build_materialization,
    build_run_metadata,
    fetch_reported,
    read_duration_s,
)
from federation_defs.verdicts import Verdict

Event = (
    dg.MaterializeResult
    | dg.AssetCheckResult
    | dg.AssetMaterialization
    | dg.AssetCheckEvaluation
    | dg.AssetObservation
    | dg.Output
)
TROUBLE_TOLD_S = 600.0
_DURATIONS = 10
# An output that is there for the steps after it, and reports nothing: Dagster (1.13) has no public
# way to say so, but leaves out the event of an output with this metadata.
_UNREPORTED = {"__source_asset_observation__": True}


class Teller:
    """The voice of one step.

    Args:
        outputs: The op's output names, by DAG id.
        targets: Of the step.
    """

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        client: AirflowClient,
        attempt: Attempt,
        specs: Mapping[str, dg.AssetSpec],
        outputs: Mapping[str, str],
        targets: Sequence[Target],
    ) -> None:
        self._context = context
        self._client = client
        self._attempt = attempt
        self._specs = specs
        self._outputs = outputs
        self._counts = Counter(target.dag_id for target in targets)
        self._events: list[Event] = []
        self._runs: dict[str, list[str]] = {}
        self._succeeded: Counter[str] = Counter()
        self._notes: dict[str, str] = {}
        self._compared: set[str] = set()
        self._are_queued: set[Target] = set()
        self._troubles: dict[tuple[type, Target | None], float] = {}

    def take(self) -> Iterator[Event]:
        """What came up since."""
        events, self._events = self._events, []
        yield from events

    def build_note(self, target: Target) -> str:
        """For the DAG run, in Airflow."""
        if target.dag_id not in self._notes:
            deps = [dep.asset_key for dep in self._specs[target.dag_id].deps]
            note = build_note(self._context.instance, self._context.run, deps)
            self._notes[target.dag_id] = note
        return self._notes[target.dag_id]

    def tell_run(self, one: Wait, run: DagRun) -> None:
        """A run's state when it is new; at first, its link too."""
        log, name = self._context.log, self._client.instance
        if one.run is None:
            url = self._client.build_run_url(run.dag_id, run.run_id)
            log.info(f"{one.target.name} is {run.state} in {name}: {url}")
            self._events.append(
                dg.AssetObservation(
                    self._build_key(run.dag_id),
                    description=f"DAG run {run.run_id} is {run.state}.",
                    metadata=build_link_metadata(self._client, run),
                    partition=one.target.partition,
                )
            )
            runs = self._runs.setdefault(run.dag_id, [])
            runs.append(run.run_id)
            self._attempt.tell_run_id(run.dag_id, runs)
        elif one.run.state != run.state:
            log.info(f"{one.target.name} is {run.state} in {name}.")

    def tell_tasks(self, one: Wait, tasks: str) -> None:
        """Which tasks run, when they are others."""
        if tasks and tasks != one.tasks:
            self._context.log.info(f"{one.target.name} runs {tasks}.")
        one.tasks = tasks

    def tell_queued(self, one: Wait) -> None:
        """That there is no slot, once."""
        if one.target not in self._are_queued:
            self._are_queued.add(one.target)
            self._context.log.info(
                f"{one.target.name} waits for its turn: as many DAG runs of Airflow "
                f"'{self._client.instance}' as are allowed go on."
            )

    def tell_unwaited(self, target: Target) -> None:
        self._context.log.info(
            f"{target.name} is not waited for (`trigger.wait: false`): when its run ends, "
            "observation reports it."
        )

    def tell_skipped(self, target: Target, upstreams: Sequence[str]) -> None:
        names = ", ".join(upstreams)
        self._context.log.warning(f"{target.name} is skipped: it depends on {names}.")

    def tell_left(self, target: Target, run_id: str) -> None:
        self._context.log.info(f"{target.name}: run {run_id} goes on (`trigger.on_cancel: leave`).")

    def tell_canceled(self, target: Target, run_id: str, answer: DagRun | AirflowError) -> None:
        """What became of a run that was to be stopped."""
        if isinstance(answer, DagRun):
            ends = "was stopped" if answer.is_finished else "is told to stop, and cleans up"
            self._context.log.info(f"{target.name}: run {run_id} {ends}: {answer.state}.")
        elif not isinstance(answer, RunLostError):  # it never was
            url = self._client.build_run_url(target.dag_id, run_id)
            self._context.log.error(f"{answer} So run {run_id} may go on: {url}")

    def tell_trouble(self, error: AirflowError, target: Target | None = None) -> None:
        """Why there is nothing new; every ten minutes, for as long as it is so.

        Args:
            target: Whose trouble it is, if it may be its own.
        """
        trouble = type(error), target if isinstance(error, RunNotStartedError) else None
        now = time.monotonic()
        if now - self._troubles.get(trouble, -math.inf) >= TROUBLE_TOLD_S:
            self._troubles[trouble] = now
            self.warn(f"{error} Waiting on.")

    def tell_failed(self, error: AirflowError) -> None:
        self._context.log.error(str(error))

    def warn(self, message: str) -> None:
        self._context.log.warning(message)

    def warn_of_short_timeout(self, target: Target, timeout_s: float) -> None:
        """Says so if none of the DAG's last runs was over in the time that it is given; once."""
        if target.dag_id in self._compared:
            return
        self._compared.add(target.dag_id)
        key = self._build_key(target.dag_id)
        records = self._context.instance.fetch_materializations(key, limit=_DURATIONS).records
        events = [record.asset_materialization for record in records]
        told = [read_duration_s(event.metadata) for event in events if event]
        durations = sorted(duration for duration in told if duration is not None)
        if durations and timeout_s < durations[0]:
            self._context.log.warning(
                f"{target.name} is given {timeout_s:.0f} s (`trigger.timeout`) and will be given "
                f"up: it takes {durations[len(durations) // 2]:.0f} s as a rule, and never took "
                f"less than {durations[0]:.0f} s."
            )

    def report(self, target: Target, verdict: Verdict) -> Iterator[Event]:
        """A run's materialization, if it is a success, and the evaluation of its check; neither if
        somebody else was the first to report it.

        Raises:
            dagster.Failure: Dagster has ended this run.
        """
        status = self._attempt.fetch_status()
        if status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED):
            raise dg.Failure(
                f"Dagster ended this run ({status.value}) while its worker was away; whatever is "
                "left to report is reported by observation or by a retry.",
                allow_retries=False,
            )
        run, key = verdict.run, self._build_key(verdict.run.dag_id)
        log = fetch_reported(self._context.instance, key, [run])
        is_new = log.lacks_materialization(verdict)
        is_checked = build_check_key(key) in self._context.selected_asset_check_keys
        is_checked = is_checked and log.lacks_evaluation(verdict)
        if verdict.is_success and not is_new:
            self._context.log.info(
                f"{target.name}: run {run.run_id} was reported before. To run the DAG once more, "
                "materialize the asset instead of executing this run again."
            )
        if self._counts[target.dag_id] == 1:
            yield from self._report_one(verdict, is_new=is_new, is_checked=is_checked)
            return
        # An output has one event for all partitions of a range. Each has its own run.
        if is_new:
            yield build_materialization(self._client, verdict, target.partition)
        if is_checked:
            yield build_check_evaluation(self._client, verdict)
        self._succeeded[target.dag_id] += verdict.is_success
        if verdict.is_success and self._succeeded[target.dag_id] == self._counts[target.dag_id]:
            yield self._build_output(target.dag_id)

    def _report_one(self, verdict: Verdict, *, is_new: bool, is_checked: bool) -> Iterator[Event]:
        key = self._build_key(verdict.run.dag_id)
        if is_new:
            metadata = build_run_metadata(self._client, verdict)
            yield dg.MaterializeResult(asset_key=key, metadata=metadata)
        elif verdict.is_success:
            yield self._build_output(verdict.run.dag_id)
        if is_checked:
            yield build_check_result(self._client, verdict)

    def _build_output(self, dag_id: str) -> dg.Output:
        return dg.Output(None, self._outputs[dag_id], metadata=_UNREPORTED)

    def _build_key(self, dag_id: str) -> dg.AssetKey:
        return build_asset_key(self._client.instance, dag_id)
