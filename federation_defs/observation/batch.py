"""The batch of runs that one tick reports: which ones, and their outcomes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from itertools import chain

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun
from federation_defs.declaration import SuccessDeclaration
from federation_defs.errors import AirflowError
from federation_defs.observation.cursor import build_fingerprint
from federation_defs.outcome import (
    Outcome,
    add_log_tails,
    build_outcome_by_state,
    build_unknown_outcome,
    fetch_outcome,
)
from federation_defs.threads import run_calls


def sort_by_end(runs: Iterable[DagRun]) -> list[DagRun]:
    """In the order in which they ended; those without an end last."""
    without = datetime.max.replace(tzinfo=timezone.utc)
    return sorted(runs, key=lambda run: (run.end_date or without, run.run_id))


def group_by_dag(runs: Iterable[DagRun]) -> dict[str, list[DagRun]]:
    groups: dict[str, list[DagRun]] = {}
    for run in runs:
        groups.setdefault(run.dag_id, []).append(run)
    return groups


def choose(runs: Iterable[DagRun], at_most: int) -> list[DagRun]:
    """The runs that are reported now, in the order in which they ended.

    If there are too many, order is kept only within each DAG: those with the fewest go first, so
    that news of one does not wait behind the history of another.
    """
    ordered = sort_by_end(runs)
    if len(ordered) <= at_most:
        return ordered
    groups = sorted(group_by_dag(ordered).values(), key=len)
    return list(chain.from_iterable(groups))[:at_most]


def describe_gap(airflow: str, begin: datetime, end: datetime) -> str:
    return (
        f"What ended in Airflow '{airflow}' between {begin:%F %T} and {end:%F %T} UTC was not "
        "looked at: nobody observed it then, and `observe.lookback` reaches back no further."
    )


def build_gap(
    told: str, keys: Sequence[dg.AssetKey], begin: datetime, end: datetime
) -> list[dg.AssetObservation]:
    """The gap as an observation of each asset."""
    metadata = {
        "Gap": dg.MetadataValue.text(told),
        "Gap start": dg.MetadataValue.timestamp(begin),
        "Gap end": dg.MetadataValue.timestamp(end),
    }
    return [dg.AssetObservation(key, description=told, metadata=metadata) for key in keys]


# The daemon has stored a tick's events by then, or it is dead.
STORED_S = 30.0


@dataclass(frozen=True)
class Handover:
    """Events that are being stored.

    Attributes:
        cursor: That the tick was given. The daemon saves a new one once the events are stored.
        at: By the monotonic clock.
        last: What the last of them tells of.
    """

    cursor: str | None
    at: float
    last: Outcome

    def may_go_on(self, cursor: str | None) -> bool:
        """Whether a tick that is given this cursor may come before the events are stored."""
        return self.cursor == cursor and time.monotonic() - self.at <= STORED_S


# So many runs a tick are asked for their tasks though nothing but "Tries" needs them, and so many
# failed ones for their logs: in a long history both would take longer than all the rest.
MAX_TRIES_ASKED = 20

MAX_LOGS_ASKED = 20

PATIENCE_S = 600.0


class OutcomeFetcher:
    """The verdicts on one instance's runs.

    Args:
        dags: By DAG id, what decides on the success of its runs.
    """

    def __init__(
        self, client: AirflowClient, dags: Mapping[str, SuccessDeclaration | None]
    ) -> None:
        self._client = client
        self._dags = dags
        self._asked_since: dict[bytes, float] = {}
        self._errors: dict[bytes, AirflowError] = {}

    def judge(self, runs: list[DagRun], deadline: float) -> list[Outcome]:
        """The verdicts on these runs, in their order; of a DAG none after one that must wait.

        Args:
            runs: Those of each DAG in the order in which they ended.
            deadline: By the monotonic clock. What is not told by then waits, but for logs: the
                verdict is given without.
        """
        now = time.monotonic()
        self._forget_all_but(runs)
        is_few = len(runs) <= MAX_TRIES_ASKED
        asked = {build_fingerprint(run): run for run in runs if is_few or self._needs_tasks(run)}
        told = self._run([partial(self._ask, run) for run in asked.values()], (now + deadline) / 2)
        found = {mark: outcome for mark, outcome in zip(asked, told, strict=True) if outcome}
        outcomes: list[Outcome] = []
        waiting: set[str] = set()
        for run in runs:
            outcome = found.get(build_fingerprint(run)) or self._judge_without(run)
            if outcome is None:
                waiting.add(run.dag_id)
            elif run.dag_id not in waiting:
                outcomes.append(outcome)
        return self._add_logs(outcomes, deadline)

    def _run(
        self, calls: list[Callable[[], Outcome | None]], deadline: float
    ) -> list[Outcome | None]:
        return run_calls(calls, self._client.session.transport.http.max_connections, deadline)

    def _add_logs(self, outcomes: list[Outcome], deadline: float) -> list[Outcome]:
        failed = [number for number, one in enumerate(outcomes) if not one.is_success]
        logged = failed[-MAX_LOGS_ASKED:]
        calls = [partial(add_log_tails, self._client, outcomes[number]) for number in logged]
        with_logs = dict(zip(logged, self._run([*calls], deadline), strict=True))
        return [with_logs.get(number) or one for number, one in enumerate(outcomes)]

    def _needs_tasks(self, run: DagRun) -> bool:
        return not run.is_success or self._dags[run.dag_id] is not None

    def _ask(self, run: DagRun) -> Outcome | None:
        """The verdict, its tasks asked for; None if it can't be told now."""
        if self._needs_tasks(run):
            self._asked_since.setdefault(build_fingerprint(run), time.monotonic())
        rule = self._dags[run.dag_id]
        try:
            outcome = fetch_outcome(self._client, run, rule)
            # Cleared since it was listed? Then the tasks are no longer those of this ending.
            if rule and not outcome.is_success and self._has_changed(run):
                return None
        except AirflowError as error:
            self._errors[build_fingerprint(run)] = error
            return None
        return outcome

    def _has_changed(self, run: DagRun) -> bool:
        now = self._client.fetch_run(run.dag_id, run.run_id)
        return now is None or build_fingerprint(now) != build_fingerprint(run)

    def _judge_without(self, run: DagRun) -> Outcome | None:
        """The verdict on a run whose tasks were not told: by its state, if that is all it takes.
        Else None, some minutes long."""
        if not self._needs_tasks(run):
            return build_outcome_by_state(run)
        mark = build_fingerprint(run)
        since = self._asked_since.get(mark)
        if since is None or time.monotonic() - since < PATIENCE_S:
            return None
        why = str(self._errors.get(mark, "no answer in time"))
        return build_unknown_outcome(run, self._dags[run.dag_id], why)

    def _forget_all_but(self, runs: list[DagRun]) -> None:
        marks = {build_fingerprint(run) for run in runs}
        for kept in (self._asked_since, self._errors):
            for mark in kept.keys() - marks:
                kept.pop(mark, None)
