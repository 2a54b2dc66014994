"""Fetches finished runs: those that changed since the last poll, and deferred ones, whose Dagster
run ended or died before it reported them. A long history is read in slices, the oldest first."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from random import sample
from typing import Literal

from federation_defs.airflow.api import MAX_ROWS
from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import FINISHED_STATES, DagRun, RunKey
from federation_defs.errors import AirflowError, UnreachableError
from federation_defs.observation.cursor import Batch
from federation_defs.threads import run_in_threads
from federation_defs.timing import MAX_CLOCK_SKEW, Timing

_MIN_RUNS = 100
_DEFERRED_PER_TICK = 50  # each takes a request
_MIN_SLICE = timedelta(seconds=1)


@dataclass
class Poller:
    """Polls one instance.

    Attributes:
        dag_ids: The DAGs to observe. Runs of other DAGs are left out.
        overlap: How far a poll reaches back before the last one, because rows may appear that late.
        max_runs: How many runs a poll reads of a long history. It is lowered for a slow server.
    """

    client: AirflowClient
    dag_ids: Collection[str]
    overlap: timedelta
    max_runs: int
    timing: Timing

    def __post_init__(self) -> None:
        self._fetch = partial(self.client.fetch_changed_runs, states=FINISHED_STATES)
        self._limit = self.max_runs

    def poll(self, since: datetime, deadline: float) -> Batch:
        """Fetch the finished runs that changed after a time: if there are too many, the oldest.

        Args:
            since: By Airflow's clock.
            deadline: By the monotonic clock.

        Raises:
            AirflowError: The runs could not be fetched: an `UnreachableError` if there was no
                complete answer before the deadline.
        """
        limit_s = self.timing.find_rest_s(deadline)
        (batch,) = run_in_threads([lambda: self._fetch_changes(since, deadline)], 1, limit_s)
        if batch is None:
            reason = f"no complete answer within {limit_s:.0f} s"
            raise UnreachableError(self.client.instance, self.client.url, reason)
        runs = [run for run in batch.runs if run.is_finished and run.dag_id in self.dag_ids]
        unreadable = [row for row in batch.unreadable if row.dag_id in self.dag_ids]
        return replace(batch, runs=runs, unreadable=unreadable)

    def _fetch_changes(self, since: datetime, deadline: float) -> Batch | None:
        """Fetch what `poll` returns, of all DAGs; None if it is not complete at the deadline."""
        started_at = self.timing.monotonic()
        start = since - self.overlap
        # Rows may move from a page to one that was read before. The next poll reads as far back as
        # the overlap, and finds these. After a longer time, a list of several pages needs an end.
        is_long = self.timing.utc_now() - since > self.overlap
        changed = self._fetch(start, at_most=1 if is_long else self.max_runs)
        # By the server's clock, but not ahead of ours: the time of an answer may be that of a proxy
        # whose clock is ahead of the database's.
        our_now = self.timing.utc_now()
        now = min(changed.server_time or our_now - MAX_CLOCK_SKEW, our_now)
        is_short = now - since <= self.overlap
        if is_short and not changed.is_whole:
            changed = self._fetch(start)
        if is_short or (is_long and changed.is_whole):  # whole with `at_most=1`: one page
            batch = Batch(changed.entries, now, changed.unreadable)
        else:
            batch = self._fetch_slice(start, now, changed.total, deadline)
        if batch is not None:
            elapsed_s = self.timing.monotonic() - started_at
            self._adapt(len(batch.runs), elapsed_s, (deadline - started_at) / 2)
        return batch

    def _fetch_slice(
        self, start: datetime, now: datetime, total: int, deadline: float
    ) -> Batch | None:
        """Fetch the oldest slice that has at most `max_runs` runs; None at the deadline.

        A slice ends at least `overlap` ago, when no more rows appear. Rows can only leave it while
        its pages are read, and then its total shrinks. Without an end, a new row could hide that
        another one left. If the last slice is reached, the rows after it are fetched, too.

        Args:
            start: By Airflow's clock, as `now`.
            total: The number of runs that changed since `start`.
            deadline: By the monotonic clock.
        """
        last_end = now - self.overlap
        share = min(1.0, 0.8 * self.max_runs / total)  # as if runs were evenly spread
        end = start + (last_end - start) * share
        while self.timing.monotonic() < deadline:
            # Many runs may have changed in one second. Then all of them are read.
            at_most = self.max_runs if end - start > _MIN_SLICE else MAX_ROWS
            changed = self._fetch(start, end, at_most=at_most)
            if not changed.is_whole:
                end = start + (end - start) / 2
            elif changed.size or end >= last_end:
                break
            else:
                start, end = end, last_end
        else:
            return None
        if end < last_end:
            next_since = end + self.overlap
            return Batch(changed.entries, next_since, changed.unreadable, is_last=False)
        rest = self._fetch(last_end)
        unreadable = [*changed.unreadable, *rest.unreadable]
        return Batch([*changed.entries, *rest.entries], now, unreadable)

    def _adapt(self, count: int, elapsed_s: float, budget_s: float) -> None:
        """Set how many runs the next poll reads, for it to take `budget_s` seconds at most."""
        if count and elapsed_s > budget_s:
            self.max_runs = max(_MIN_RUNS, int(count * budget_s / elapsed_s))
        elif elapsed_s < budget_s / 4:
            self.max_runs = min(self._limit, self.max_runs * 2)


@dataclass
class ReturnedRuns:
    """Deferred runs that were fetched.

    Attributes:
        finished: The runs to report.
        gone: Runs that were deleted, or that run again. Their next end is reported as a new one.
        unreadable: Runs that could not be fetched for `timing.fetch_outcome`, and the last reason.
    """

    finished: list[DagRun] = field(default_factory=list)
    gone: set[RunKey] = field(default_factory=set)
    unreadable: dict[RunKey, str] = field(default_factory=dict)


@dataclass
class DeferredRuns:
    """Fetches deferred runs of one instance that no living Dagster run is going to report.

    A run that can't be fetched is retried in later ticks, and delays no other run.
    """

    client: AirflowClient
    timing: Timing

    def __post_init__(self) -> None:
        self._failing_since: dict[RunKey, float] = {}

    def fetch(
        self, keys: Collection[RunKey], deadline: float, log: Callable[[], logging.Logger]
    ) -> ReturnedRuns:
        """Fetch runs. Of more than 50, fetch 50 at random, because some may always fail.

        Args:
            deadline: By the monotonic clock.
            log: Returns the tick's log.
        """
        selected = sample(sorted(keys), min(len(keys), _DEFERRED_PER_TICK))
        fetches = [partial(self._fetch, key) for key in selected]
        rest_s = self.timing.find_rest_s(deadline)
        answers = run_in_threads(fetches, self.client.max_connections, rest_s)
        now, returned = self.timing.monotonic(), ReturnedRuns()
        known = self._failing_since.items()
        self._failing_since = {key: since for key, since in known if key in keys}
        for key, answer in zip(selected, answers, strict=True):
            if answer is None or isinstance(answer, AirflowError):
                reason = str(answer or "no answer in time")
                log().warning(
                    "The deferred run %s of DAG %s in Airflow '%s' can't be fetched: %s",
                    *key[::-1],
                    self.client.instance,
                    reason,
                )
                since = self._failing_since.setdefault(key, now)
                if self.timing.fetch_outcome.is_over(now - since):
                    returned.unreadable[key] = reason
            elif isinstance(answer, DagRun) and answer.is_finished:
                returned.finished.append(answer)
            else:
                returned.gone.add(key)
        return returned

    def forget_failures(self) -> None:
        """Restart the time after which failing runs are given up: the whole instance has failed."""
        self._failing_since.clear()

    def _fetch(self, key: RunKey) -> DagRun | AirflowError | Literal["absent"]:
        try:
            return self.client.fetch_run(*key) or "absent"
        except AirflowError as error:
            return error
