"""What a step reports: events for Dagster, log lines, notes and failures."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun
from federation_defs.dagster_io.event_log import (
    fetch_last_durations,
    fetch_last_run_link,
    fetch_reported_runs,
)
from federation_defs.dagster_io.run_tags import CurrentRun, Target, is_automation
from federation_defs.errors import AirflowError, RunLostError, RunNotStartedError
from federation_defs.events import (
    build_check_evaluation,
    build_check_metadata,
    build_check_result,
    build_link_metadata,
    build_materialization,
    build_run_metadata,
)
from federation_defs.execution.polling import MonitoredRun
from federation_defs.naming import build_asset_key, build_check_key
from federation_defs.outcome import Outcome

URL_VARIABLE = "FEDERATION_DAGSTER_URL"

_MAX_NOTE = 1000  # Airflow's column (2.11 and 3.3)


def build_note(
    instance: dg.DagsterInstance, run: dg.DagsterRun, deps: Iterable[dg.AssetKey]
) -> str:
    """Who triggered a DAG run, and after what, for a person who looks at it in Airflow.

    Args:
        deps: The assets that the DAG depends on; what was reported of them last is told.
    """
    url = os.environ.get(URL_VARIABLE, "").rstrip("/")
    link = f" {url}/runs/{run.run_id}" if url else ""
    lines = [f"Triggered by Dagster run {run.run_id}, {_describe_cause(run)}.{link}"]
    lines += [
        f"After {key.path[0]}/{key.path[-1]}: run {link[0]} {link[1]}".rstrip()
        for key in sorted(deps)
        if (link := fetch_last_run_link(instance, key)) is not None
    ]
    note = "\n".join(lines)
    return note if len(note) <= _MAX_NOTE else note[: _MAX_NOTE - 1] + "…"


def _describe_cause(run: dg.DagsterRun) -> str:
    if is_automation(run):
        return "which automation requested"
    if backfill := run.tags.get("dagster/backfill"):
        return f"of backfill {backfill}"
    for kind in ("schedule", "sensor"):
        if name := run.tags.get(f"dagster/{kind}_name"):
            return f"which {kind} {name} requested"
    person = run.tags.get("user")
    return f"which {person} launched" if person else "which a person launched"


def join_failures(failures: Mapping[str, dg.Failure]) -> dg.Failure:
    """One failure as it is; several, by name, as one that tells of them all."""
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


def build_failure(error: Exception) -> dg.Failure:
    """One that Dagster does not retry: the error says what a person has to do."""
    return dg.Failure(str(error), allow_retries=False)


def build_timeout_error(
    client: AirflowClient, run: DagRun, waited_s: float, *, is_stopped: bool
) -> RunLostError:
    following = "It was stopped" if is_stopped else "The run goes on"
    return RunLostError(
        client.instance,
        f"still has run '{run.run_id}' of DAG '{run.dag_id}' {run.state} after {waited_s:.0f} s, "
        f"which is its `trigger.timeout`. {following}: "
        f"{client.build_run_url(run.dag_id, run.run_id)}",
    )


def build_silence_error(run: DagRun, waited_s: float, error: AirflowError) -> RunLostError:
    """For a run whose time is over while its instance does not answer."""
    return RunLostError(
        error.instance,
        f"does not say what became of run '{run.run_id}' of DAG '{run.dag_id}' in the "
        f"{waited_s:.0f} s of its `trigger.timeout`: it was {run.state} when we heard of it last. "
        f"({error}) What it ends as is reported when the instance is back.",
    )


def build_deleted_error(client: AirflowClient, run: DagRun) -> RunLostError:
    return RunLostError(
        client.instance,
        f"no longer has run '{run.run_id}' of DAG '{run.dag_id}': it was deleted while we waited. "
        "Materialize the asset again for a new run.",
    )


def build_run_failure(client: AirflowClient, outcome: Outcome) -> dg.Failure:
    """A DAG run that is no success, with the tasks that failed and the end of their logs."""
    run = outcome.run
    url = client.build_run_url(run.dag_id, run.run_id)
    ended = "ended without its data" if run.is_success else "failed"
    return dg.Failure(
        f"DAG '{run.dag_id}' {ended} in Airflow '{client.instance}'. {outcome.details} {url}",
        metadata=build_check_metadata(client, outcome),
        allow_retries=False,
    )


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


class Reporter:
    """The voice of one step.

    Args:
        outputs: The op's output names, by DAG id.
        targets: Of the step.
    """

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        client: AirflowClient,
        current_run: CurrentRun,
        specs: Mapping[str, dg.AssetSpec],
        outputs: Mapping[str, str],
        targets: Sequence[Target],
    ) -> None:
        self._context = context
        self._client = client
        self._current_run = current_run
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

    def take_events(self) -> Iterator[Event]:
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

    def log_state(self, one: MonitoredRun, run: DagRun) -> None:
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
            self._current_run.tag_dag_run(run.dag_id, runs)
        elif one.run.state != run.state:
            log.info(f"{one.target.name} is {run.state} in {name}.")

    def log_tasks(self, one: MonitoredRun, tasks: str) -> None:
        """Which tasks run, when they are others."""
        if tasks and tasks != one.tasks:
            self._context.log.info(f"{one.target.name} runs {tasks}.")
        one.tasks = tasks

    def log_queued(self, one: MonitoredRun) -> None:
        """That there is no slot, once."""
        if one.target not in self._are_queued:
            self._are_queued.add(one.target)
            self._context.log.info(
                f"{one.target.name} waits for its turn: as many DAG runs of Airflow "
                f"'{self._client.instance}' as are allowed go on."
            )

    def log_detached(self, target: Target) -> None:
        self._context.log.info(
            f"{target.name} is not waited for (`trigger.wait: false`): when its run ends, "
            "observation reports it."
        )

    def log_skipped(self, target: Target, upstreams: Sequence[str]) -> None:
        names = ", ".join(upstreams)
        self._context.log.warning(f"{target.name} is skipped: it depends on {names}.")

    def log_left_running(self, target: Target, run_id: str) -> None:
        self._context.log.info(f"{target.name}: run {run_id} goes on (`trigger.on_cancel: leave`).")

    def log_canceled(self, target: Target, run_id: str, answer: DagRun | AirflowError) -> None:
        """What became of a run that was to be stopped."""
        if isinstance(answer, DagRun):
            ends = "was stopped" if answer.is_finished else "is told to stop, and cleans up"
            self._context.log.info(f"{target.name}: run {run_id} {ends}: {answer.state}.")
        elif not isinstance(answer, RunLostError):  # it never was
            url = self._client.build_run_url(target.dag_id, run_id)
            self._context.log.error(f"{answer} So run {run_id} may go on: {url}")

    def log_retry(self, error: AirflowError, target: Target | None = None) -> None:
        """Why there is nothing new; every ten minutes, for as long as it is so.

        Args:
            target: Whose trouble it is, if it may be its own.
        """
        trouble = type(error), target if isinstance(error, RunNotStartedError) else None
        now = time.monotonic()
        if now - self._troubles.get(trouble, -math.inf) >= TROUBLE_TOLD_S:
            self._troubles[trouble] = now
            self.warn(f"{error} Waiting on.")

    def log_failure(self, error: AirflowError) -> None:
        self._context.log.error(str(error))

    def warn(self, message: str) -> None:
        self._context.log.warning(message)

    def warn_of_short_timeout(self, target: Target, timeout_s: float) -> None:
        """Says so if none of the DAG's last runs was over in the time that it is given; once."""
        if target.dag_id in self._compared:
            return
        self._compared.add(target.dag_id)
        key = self._build_key(target.dag_id)
        durations = sorted(fetch_last_durations(self._context.instance, key, _DURATIONS))
        if durations and timeout_s < durations[0]:
            self._context.log.warning(
                f"{target.name} is given {timeout_s:.0f} s (`trigger.timeout`) and will be given "
                f"up: it takes {durations[len(durations) // 2]:.0f} s as a rule, and never took "
                f"less than {durations[0]:.0f} s."
            )

    def report(self, target: Target, outcome: Outcome) -> Iterator[Event]:
        """A run's materialization, if it is a success, and the evaluation of its check; neither if
        somebody else was the first to report it.

        Raises:
            dagster.Failure: Dagster has ended this run.
        """
        status = self._current_run.fetch_status()
        if status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED):
            raise dg.Failure(
                f"Dagster ended this run ({status.value}) while its worker was away; whatever is "
                "left to report is reported by observation or by a retry.",
                allow_retries=False,
            )
        run, key = outcome.run, self._build_key(outcome.run.dag_id)
        log = fetch_reported_runs(self._context.instance, self._client.instance, [run])
        is_new = log.lacks_materialization_of(outcome)
        is_checked = build_check_key(key) in self._context.selected_asset_check_keys
        is_checked = is_checked and log.lacks_evaluation_of(outcome)
        if outcome.is_success and not is_new:
            self._context.log.info(
                f"{target.name}: run {run.run_id} was reported before. To run the DAG once more, "
                "materialize the asset instead of executing this run again."
            )
        if self._counts[target.dag_id] == 1:
            yield from self._report_one(outcome, is_new=is_new, is_checked=is_checked)
            return
        # An output has one event for all partitions of a range. Each has its own run.
        if is_new:
            yield build_materialization(self._client, outcome, target.partition)
        if is_checked:
            yield build_check_evaluation(self._client, outcome)
        self._succeeded[target.dag_id] += outcome.is_success
        if outcome.is_success and self._succeeded[target.dag_id] == self._counts[target.dag_id]:
            yield self._build_output(target.dag_id)

    def _report_one(self, outcome: Outcome, *, is_new: bool, is_checked: bool) -> Iterator[Event]:
        key = self._build_key(outcome.run.dag_id)
        if is_new:
            metadata = build_run_metadata(self._client, outcome)
            yield dg.MaterializeResult(asset_key=key, metadata=metadata)
        elif outcome.is_success:
            yield self._build_output(outcome.run.dag_id)
        if is_checked:
            yield build_check_result(self._client, outcome)

    def _build_output(self, dag_id: str) -> dg.Output:
        return dg.Output(None, self._outputs[dag_id], metadata=_UNREPORTED)

    def _build_key(self, dag_id: str) -> dg.AssetKey:
        return build_asset_key(self._client.instance, dag_id)
