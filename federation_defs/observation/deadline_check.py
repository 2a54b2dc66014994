"""The check `deadline`, and a signal for each deadline by which no run has succeeded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import islice

import dagster as dg

from federation_defs.checks import find_deadline_check
from federation_defs.dagster_io.reports import Success, fetch_signals, fetch_successes
from federation_defs.declaration import DeadlineDeclaration
from federation_defs.events import build_deadline_check, build_late_observation
from federation_defs.naming import build_asset_key
from federation_defs.observation.cursor import EndedRuns, EvaluatedDeadlines, build_digest
from federation_defs.observation.tick import Tick
from federation_defs.timing import Timing

_MAX_DUE = 24  # of a DAG's due deadlines, the last ones are evaluated: a day of hourly ones

_NEVER = datetime.max.replace(tzinfo=timezone.utc)


@dataclass
class DeadlineCheck:
    """The check of the DAGs of one instance that declare a deadline.

    A deadline is evaluated once all runs that ended before it are known, by their reported ends. So
    clocks don't matter. After an outage, the deadlines within `observe.lookback` are evaluated in
    order, of each DAG the last 24. The cursor holds the time up to which deadlines were evaluated,
    and the event log holds the signals.

    Attributes:
        deadlines: The declared deadlines, by DAG id.
        lookback_s: Deadlines that passed longer ago are skipped.
    """

    airflow: str
    deadlines: Mapping[str, DeadlineDeclaration]
    lookback_s: float
    timing: Timing

    def __post_init__(self) -> None:
        self._digests = {
            dag_id: build_digest(dag_id, each.cron, each.within, each.timezone)
            for dag_id, each in self.deadlines.items()
        }
        # DAGs with runs that ended since their check was last evaluated.
        self._ended: set[str] = set()
        # By DAG id, a time up to which deadlines were evaluated, and the first deadline after it.
        self._next: dict[str, tuple[datetime, datetime]] = {}

    def evaluate(
        self, tick: Tick, ended_runs: EndedRuns, evaluated: EvaluatedDeadlines | None, until: float
    ) -> tuple[EvaluatedDeadlines | None, bool]:
        """Signal which DAGs were late, and pass the check of those that have succeeded since.

        Args:
            evaluated: From the cursor; None if it has no deadlines.
            until: By the monotonic clock. DAGs that are left then are evaluated in a later tick.

        Returns:
            The next value of `evaluated`, and whether there is news: a deadline was evaluated, a
            check passed, or the declared deadlines have changed.
        """
        if not self.deadlines:
            return None, False
        self._ended |= {run.dag_id for run in ended_runs.settled} & self.deadlines.keys()
        if not ended_runs.is_whole:
            return evaluated, False
        first_ends = ended_runs.find_first_unsettled()
        now = ended_runs.now - timedelta(seconds=self.timing.late_row_s)
        oldest = now - timedelta(seconds=self.lookback_s)
        evaluated = evaluated or EvaluatedDeadlines(now)
        behind: dict[str, datetime] = {}
        has_stored = False
        for dag_id in self.deadlines:
            since = evaluated.behind.get(dag_id, evaluated.until)
            if self._digests[dag_id] not in evaluated.known:
                since = now
            due = self._find_due(dag_id, max(since, oldest), now)
            if not due and dag_id not in self._ended:
                continue
            if self.timing.monotonic() > until or not tick.may_store():
                behind |= {dag_id: since} if due else {}
                continue
            known = [each for each in due if each < first_ends.get(dag_id, _NEVER)]
            if len(known) < len(due):
                behind[dag_id] = known[-1] if known else since
            if known:
                self._evaluate_due(tick.instance, dag_id, known)
                has_stored = True
            if dag_id in self._ended:
                self._ended.discard(dag_id)
                has_stored |= self._evaluate_last(tick.instance, dag_id)
        known_now = frozenset(self._digests.values())
        is_news = has_stored or known_now != evaluated.known
        return EvaluatedDeadlines(max(evaluated.until, now), known_now, behind), is_news

    def _find_due(self, dag_id: str, since: datetime, now: datetime) -> list[datetime]:
        """Find the deadlines to evaluate, oldest first."""
        declared = self.deadlines[dag_id]
        after, first = self._next.get(dag_id, (since, since))
        if not after <= since < first:
            first = declared.find_next(since)
            self._next[dag_id] = since, first
        if first > now:
            return []
        last = islice(declared.iterate_back(now), _MAX_DUE)
        return sorted(each for each in last if each > since)

    def _evaluate_due(
        self, instance: dg.DagsterInstance, dag_id: str, due: Sequence[datetime]
    ) -> None:
        """Signal the missed ones of some deadlines, and evaluate the check for the last one."""
        window, key = self.deadlines[dag_id].window, build_asset_key(self.airflow, dag_id)
        successes = fetch_successes(instance, key, due[0] - window)

        def evaluate(deadline: datetime, counting: Sequence[Success]) -> None:
            evaluation = build_deadline_check(self.airflow, dag_id, deadline, window, counting)
            instance.report_runless_asset_event(evaluation)

        def is_met(deadline: datetime) -> bool:
            return any(deadline - window <= success.end <= deadline for success in successes)

        missed = [deadline for deadline in due if not is_met(deadline)]
        signals = fetch_signals(instance, key, due[0]) if missed else set()
        for deadline in missed:
            if ("late", "", deadline.timestamp()) not in signals:
                evaluate(deadline, ())
                event = build_late_observation(self.airflow, dag_id, deadline, window)
                instance.report_runless_asset_event(event)
        if successes and successes[-1].end >= due[-1] - window:
            evaluate(due[-1], successes)

    def _evaluate_last(self, instance: dg.DagsterInstance, dag_id: str) -> bool:
        """Store that the check passes, if it had failed and a run has succeeded since. Return
        whether that was stored."""
        declared = self.deadlines[dag_id]
        evaluation = find_deadline_check(instance, self.airflow, dag_id, declared)
        if evaluation is not None:
            instance.report_runless_asset_event(evaluation)
        return evaluation is not None
