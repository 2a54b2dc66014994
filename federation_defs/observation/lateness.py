"""Tells which DAGs are late: no run has succeeded by a deadline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from itertools import islice

import dagster as dg

from federation_defs.checks import find_deadline_check
from federation_defs.dagster_io.reports import Success, fetch_signals, fetch_successes
from federation_defs.declaration import DeadlineDeclaration
from federation_defs.events import build_deadline_check, build_late_observation
from federation_defs.naming import build_asset_key
from federation_defs.observation.cursor import Ends, JudgedDeadlines, build_digest
from federation_defs.timing import Timing

_MAX_MISSED = 24  # deadlines of a DAG that are judged at once, the last ones: a day of hourly ones

_NEVER = datetime.max.replace(tzinfo=timezone.utc)


class Lateness:
    """Judges the deadlines of one instance's DAGs, each once it is over, by the reported ends.

    A deadline is judged once everything that ended before it is known. So clocks don't matter, and
    after an outage, all deadlines within `observe.lookback` are judged in their order. The cursor
    says up to when that was done; the event log, what was told.

    Args:
        deadlines: By DAG id, of the DAGs that declare one.
        lookback_s: Older deadlines are passed over.
    """

    def __init__(
        self,
        airflow: str,
        deadlines: Mapping[str, DeadlineDeclaration],
        lookback_s: float,
        timing: Timing,
    ) -> None:
        self._airflow = airflow
        self._deadlines = deadlines
        self._lookback = timedelta(seconds=lookback_s)
        self._timing = timing
        self._digests = {
            dag_id: build_digest(dag_id, each.cron, each.within, each.timezone)
            for dag_id, each in deadlines.items()
        }
        # DAGs of which runs ended, and whose check was not evaluated for that yet.
        self._ended: set[str] = set()
        # By DAG id, a time up to which deadlines were judged, and the first deadline after it.
        self._next: dict[str, tuple[datetime, datetime]] = {}

    def watch(
        self,
        instance: dg.DagsterInstance,
        judged: JudgedDeadlines | None,
        ends: Ends,
        deadline: float,
        may_tell: Callable[[], bool],
    ) -> tuple[JudgedDeadlines | None, bool]:
        """Tell which DAGs were late, and pass the check of those that have succeeded since.

        Args:
            judged: By the cursor; None if it does not know of deadlines.
            deadline: By the monotonic clock. What is left then is judged in a later call.
            may_tell: Whether no other process does.

        Returns:
            The next value of `judged`, and whether anything was stored.
        """
        if not self._deadlines:
            return None, False
        self._ended |= {run.dag_id for run in ends.settled} & self._deadlines.keys()
        if not ends.is_whole:
            return judged, False
        first_ends = ends.find_first_unsettled()
        now = ends.now - timedelta(seconds=self._timing.late_row_s)
        judged = judged or JudgedDeadlines(now)
        behind: dict[str, datetime] = {}
        has_news = False
        for dag_id, declared in self._deadlines.items():
            since = judged.behind.get(dag_id, judged.until)
            if self._digests[dag_id] not in judged.known:
                since = now
            due = self._find_due(dag_id, max(since, now - self._lookback), now)
            if not due and dag_id not in self._ended:
                continue
            if self._timing.monotonic() > deadline or not may_tell():
                behind |= {dag_id: since} if due else {}
                continue
            known = [each for each in due if each < first_ends.get(dag_id, _NEVER)]
            if len(known) < len(due):
                behind[dag_id] = known[-1] if known else since
            if known:
                self._judge(instance, dag_id, declared, known)
                has_news = True
            if dag_id in self._ended:
                self._ended.discard(dag_id)
                has_news |= self._check_success(instance, dag_id, declared)
        until = max(judged.until, now)
        return JudgedDeadlines(until, frozenset(self._digests.values()), behind), has_news

    def _check_success(
        self, instance: dg.DagsterInstance, dag_id: str, declared: DeadlineDeclaration
    ) -> bool:
        """Pass the check if it failed, and a run has succeeded since. Return whether it did."""
        evaluation = find_deadline_check(instance, self._airflow, dag_id, declared)
        if evaluation is not None:
            instance.report_runless_asset_event(evaluation)
        return evaluation is not None

    def _find_due(self, dag_id: str, since: datetime, now: datetime) -> list[datetime]:
        """Find the deadlines to judge, oldest first."""
        declared = self._deadlines[dag_id]
        after, first = self._next.get(dag_id, (since, since))
        if not after <= since < first:
            first = declared.find_next(since)
            self._next[dag_id] = since, first
        if first > now:
            return []
        last = islice(declared.iterate_back(now), _MAX_MISSED)
        return sorted(each for each in last if each > since)

    def _judge(
        self,
        instance: dg.DagsterInstance,
        dag_id: str,
        declared: DeadlineDeclaration,
        due: list[datetime],
    ) -> None:
        """Tell which of some deadlines were missed, and evaluate the check for the last one."""
        airflow, window = self._airflow, declared.window
        key = build_asset_key(airflow, dag_id)
        successes = fetch_successes(instance, key, due[0] - window)
        missed = [
            each for each in due if not any(each - window <= one.end <= each for one in successes)
        ]
        told = fetch_signals(instance, key, due[0]) if missed else set()

        def check(deadline: datetime, counting: Sequence[Success]) -> None:
            evaluation = build_deadline_check(airflow, dag_id, deadline, window, counting)
            instance.report_runless_asset_event(evaluation)

        for each in missed:
            if ("late", "", each.timestamp()) not in told:
                check(each, ())
                event = build_late_observation(airflow, dag_id, each, window)
                instance.report_runless_asset_event(event)
        if successes and successes[-1].end >= due[-1] - window:
            check(due[-1], successes)
