"""Selects the runs that one poll reports, and fetches their outcomes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun
from federation_defs.errors import AirflowError
from federation_defs.observation.cursor import build_fingerprint
from federation_defs.outcome import (
    Outcome,
    Rules,
    add_log_tails,
    build_unknown_outcome,
    fetch_outcome,
)
from federation_defs.threads import run_in_threads
from federation_defs.timing import Timing

# Of more runs, tasks that only the metadata "Tries" needs are not fetched. Logs are fetched for the
# last failed runs, as many as this. More would take too long.
_MAX_RUNS_WITH_DETAILS = 20

_NO_END = datetime.max.replace(tzinfo=timezone.utc)


def select_runs(runs: Iterable[DagRun], at_most: int) -> list[DagRun]:
    """Select the runs to report now, sorted by their ends, those without an end last.

    If there are more than `at_most`, DAGs with few runs come first, and runs are sorted within each
    DAG only. So no DAG waits for the history of another one.
    """
    ordered = sorted(runs, key=lambda run: (run.end_date or _NO_END, run.run_id))
    if len(ordered) > at_most:
        counts = Counter(run.dag_id for run in ordered)
        ordered.sort(key=lambda run: (counts[run.dag_id], run.dag_id))
    return ordered[:at_most]


@dataclass
class OutcomeFetcher:
    """Fetches the outcomes of one instance's runs."""

    client: AirflowClient
    rules: Rules
    timing: Timing

    def __post_init__(self) -> None:
        self._threads = self.client.max_connections
        # By fingerprint of each run whose tasks were requested: when that was first, by the
        # monotonic clock, and why the last request failed, if it did.
        self._failing: dict[bytes, tuple[float, str]] = {}

    def fetch(self, runs: Sequence[DagRun], deadline: float) -> list[Outcome]:
        """Fetch the outcomes of runs, in the same order.

        If an outcome can't be fetched, it is left for a later tick, with those of later runs of its
        DAG. After `timing.fetch_outcome`, the run gets an outcome without tasks.

        Args:
            runs: Those of each DAG sorted by their ends.
            deadline: By the monotonic clock. Half of the time is for tasks, the rest for logs.
                Logs that don't arrive by then are left out.
        """
        fingerprints = {build_fingerprint(run) for run in runs}
        self._failing = {mark: self._failing[mark] for mark in fingerprints & self._failing.keys()}
        are_few = len(runs) <= _MAX_RUNS_WITH_DETAILS
        to_fetch = [run for run in runs if are_few or self._needs_tasks(run)]
        fetches = [partial(self._fetch, run) for run in to_fetch]
        results = run_in_threads(fetches, self._threads, self.timing.find_rest_s(deadline) / 2)
        fetched = {run.key: outcome for run, outcome in zip(to_fetch, results, strict=True)}
        outcomes: list[Outcome] = []
        blocked: set[str] = set()
        for run in runs:
            outcome = fetched.get(run.key) or self._build_without_tasks(run)
            if outcome is None:
                blocked.add(run.dag_id)
            elif run.dag_id not in blocked:
                outcomes.append(outcome)
        return self._add_logs(outcomes, deadline)

    def forget_failures(self) -> None:
        """Restart the time after which failing runs are given up: the whole instance has failed."""
        self._failing.clear()

    def _needs_tasks(self, run: DagRun) -> bool:
        return not run.is_success or self.rules[run.dag_id] is not None

    def _fetch(self, run: DagRun) -> Outcome | None:
        """Fetch a run's outcome; None if that fails, or if the run has changed since the poll."""
        fingerprint, rule = build_fingerprint(run), self.rules[run.dag_id]
        reason = "no answer in time"
        since, _ = self._failing.setdefault(fingerprint, (self.timing.monotonic(), reason))
        try:
            outcome = fetch_outcome(self.client, run, rule)
            if rule is None or outcome.is_success:
                return outcome
            # If the run was cleared since the poll, these are not the tasks of its end.
            current = self.client.fetch_run(run.dag_id, run.run_id)
        except AirflowError as error:
            self._failing[fingerprint] = (since, str(error))
            return None
        return outcome if current and build_fingerprint(current) == fingerprint else None

    def _build_without_tasks(self, run: DagRun) -> Outcome | None:
        """Return the outcome of a run whose tasks were not fetched; None to try again later."""
        since, reason = self._failing.get(build_fingerprint(run), (math.inf, ""))
        is_over = self.timing.fetch_outcome.is_over(self.timing.monotonic() - since)
        if self._needs_tasks(run) and not is_over:
            return None
        return build_unknown_outcome(run, self.rules[run.dag_id], reason)

    def _add_logs(self, outcomes: Sequence[Outcome], deadline: float) -> list[Outcome]:
        failed = [outcome for outcome in outcomes if not outcome.is_success]
        last = failed[-_MAX_RUNS_WITH_DETAILS:]
        fetches = [partial(add_log_tails, self.client, outcome) for outcome in last]
        rest_s = self.timing.find_rest_s(deadline)
        logged = filter(None, run_in_threads(fetches, self._threads, rest_s))
        by_run = {outcome.run.key: outcome for outcome in logged}
        return [by_run.get(outcome.run.key, outcome) for outcome in outcomes]
