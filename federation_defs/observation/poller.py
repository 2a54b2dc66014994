"""Polls an instance for finished runs. A long history is read in slices, oldest first."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection
from datetime import datetime, timedelta

from federation_defs.airflow.api import Page
from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import FINISHED_STATES, DagRun, RunKey
from federation_defs.errors import AirflowError, UnreachableError
from federation_defs.observation.cursor import Batch, Cursor
from federation_defs.threads import run_calls
from federation_defs.timing import MAX_CLOCK_SKEW, Timing

_MIN_RUNS = 100
_MIN_SLICE = timedelta(seconds=1)
_SHORT_TIME = timedelta(minutes=1)  # never sliced
_LONG_TIME = timedelta(minutes=10)  # a poll asks for the length of the history first


class Poller:
    """Polls one instance.

    Args:
        dag_ids: Runs of other DAGs are left out.
        overlap: How far a poll reaches back before the last one: rows may appear that late.
        max_runs: How many runs a poll reads of a long history; fewer if the server is slow.
    """

    def __init__(
        self,
        client: AirflowClient,
        dag_ids: Collection[str],
        overlap: timedelta,
        max_runs: int,
        timing: Timing,
    ) -> None:
        self._client = client
        self._dag_ids = dag_ids
        self._overlap = overlap
        self._limit = self._max_runs = max_runs
        self._timing = timing

    def poll(self, cursor: Cursor, deadline: float, log: logging.Logger) -> Batch:
        """Fetch the finished runs that changed after the cursor; of too many, the oldest.

        Args:
            deadline: By the monotonic clock.

        Raises:
            UnreachableError: There was no answer before the deadline, among other reasons.
        """
        (batch,) = run_calls([lambda: self._fetch_changes(cursor.since)], 1, deadline)
        if batch is None:
            reason = f"no complete answer within {self._timing.tick_s:.0f} s"
            raise UnreachableError(self._client.instance, self._client.url, reason, is_late=True)
        runs = {run.key: run for run in batch.runs}
        others = [key for key in cursor.deferred if key not in runs and key[0] in self._dag_ids]
        unread: list[RunKey] = []
        try:
            runs |= self._client.fetch_runs(others)
        except UnreachableError:
            raise
        except AirflowError as error:
            log.warning("Deferred runs can't be read: %s", error)
            unread = others
        finished = [run for run in runs.values() if run.is_finished and run.dag_id in self._dag_ids]
        return Batch(finished, batch.next_since, frozenset(unread))

    def _fetch_changes(self, since: datetime) -> Batch:
        started_at, count = self._timing.monotonic(), 0
        try:
            start = since - self._overlap
            is_long = self._timing.utc_now() - since > _LONG_TIME
            changed = self._fetch(start, at_most=1 if is_long else self._max_runs)
            now = self._find_server_time(changed)
            if _is_complete(changed):
                batch = Batch(changed.entries, now)
            elif now - since <= max(self._overlap, _SHORT_TIME):
                batch = Batch(self._fetch(start).entries, now)
            else:
                batch = self._fetch_slice(start, now, changed.total)
            count = len(batch.runs)
            return batch
        finally:
            self._adapt(count, self._timing.monotonic() - started_at)

    def _fetch_slice(self, start: datetime, now: datetime, total: int) -> Batch:
        """Fetch the oldest slice that is small enough, and old enough for no more rows to appear.

        A slice has an end, so that rows can only leave it while it is paged, which shows in its
        total. Without an end, a new row could hide that another one left.
        """
        last_end = now - self._overlap
        share = min(1.0, 0.8 * self._max_runs / total)  # as if runs were evenly spread
        end = start + (last_end - start) * share
        while True:
            # Many runs may have changed in one second. Then all of them are read.
            at_most = self._max_runs if end - start > _MIN_SLICE else sys.maxsize
            changed = self._fetch(start, end, at_most)
            if not _is_complete(changed):
                end = start + (end - start) / 2
            elif changed.entries or end >= last_end:
                break
            else:
                start, end = end, last_end
        if end < last_end:
            return Batch(changed.entries, end + self._overlap)
        return Batch([*changed.entries, *self._fetch(last_end).entries], now)

    def _fetch(
        self, start: datetime, end: datetime | None = None, at_most: int = sys.maxsize
    ) -> Page[DagRun]:
        return self._client.fetch_changed_runs(start, end, FINISHED_STATES, at_most)

    def _find_server_time(self, changed: Page[DagRun]) -> datetime:
        """Return when the server answered, by its own clock.

        At most our time: the answer may carry a proxy's clock that is ahead of the database's.
        """
        now = self._timing.utc_now()
        return min(changed.server_time, now) if changed.server_time else now - MAX_CLOCK_SKEW

    def _adapt(self, count: int, elapsed_s: float) -> None:
        """Set how many runs the next poll reads, to take half of a tick at most."""
        budget_s = self._timing.tick_s / 2
        if count and elapsed_s > budget_s:
            self._max_runs = max(_MIN_RUNS, int(count * budget_s / elapsed_s))
        elif elapsed_s < budget_s / 4:
            self._max_runs = min(self._limit, self._max_runs * 2)


def _is_complete(changed: Page[DagRun]) -> bool:
    return len(changed.entries) >= changed.total
