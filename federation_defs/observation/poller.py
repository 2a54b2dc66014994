"""What changed in an instance: all of it in one look, or slice by slice if it is a long history."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import FINISHED_STATES, DagRun
from federation_defs.airflow.runs import ChangedRuns
from federation_defs.dagster_io.event_log import MAX_CLOCK_SKEW

_MIN_RUNS = 100

_LONG = timedelta(minutes=10)

_NEAR = timedelta(minutes=1)

_MIN_SLICE = timedelta(seconds=1)


@dataclass(frozen=True)
class Batch:
    """Finished runs that changed in a span of time.

    Attributes:
        following: The next look's `since`, once these are dealt with.
    """

    runs: list[DagRun]
    following: datetime


class Poller:
    """Looks at one instance.

    Args:
        overlap: By how much a look reaches back before the one before it. A row that is older
            does not appear any more.
        limit: The most runs that a look at a long history takes.
        budget_s: How long it may take: where it was longer, the next one takes fewer.
    """

    def __init__(
        self, client: AirflowClient, overlap: timedelta, limit: int, budget_s: float
    ) -> None:
        self._client = client
        self._overlap = overlap
        self._limit = self._max_runs = limit
        self._budget_s = budget_s

    def look(self, since: datetime) -> Batch:
        """What changed since, or the oldest part of it if it is more than a look takes.

        Order is kept all the same: a part ends where time does not reach back any more.
        """
        began, runs = time.monotonic(), 0
        try:
            start = since - self._overlap
            # Of what seems to be a history, first of all how long it is.
            is_long = datetime.now(timezone.utc) - since > _LONG
            changed = self._fetch(start, at_most=1 if is_long else self._max_runs)
            now = _read_clock(changed)
            if _is_whole(changed):
                look = Batch(changed.runs, now)
            elif now - since <= max(self._overlap, _NEAR):
                look = Batch(self._fetch(start).runs, now)
            else:
                look = self._look_at_history(start, now, changed.total)
            runs = len(look.runs)
            return look
        finally:
            self._adapt(runs, time.monotonic() - began)

    def _look_at_history(self, start: datetime, now: datetime, total: int) -> Batch:
        """The oldest part that is small enough, and not so near that rows may yet appear in it.

        What ends before now is read with an end: rows can only leave it, which shows. In one
        without, a row that came would hide one that left.
        """
        safe = now - self._overlap
        share = min(1.0, 0.8 * self._max_runs / total)  # were they evenly spread
        until = start + (safe - start) * share
        while True:
            # So many within a second that no slice is small enough: all of them.
            at_most = self._max_runs if until - start > _MIN_SLICE else None
            changed = self._fetch(start, until, at_most)
            if not _is_whole(changed):
                until = start + (until - start) / 2
            elif changed.runs or until >= safe:
                break
            else:
                start, until = until, safe
        if until < safe:
            return Batch(changed.runs, until + self._overlap)
        return Batch([*changed.runs, *self._fetch(safe).runs], now)

    def _fetch(
        self, start: datetime, until: datetime | None = None, at_most: int | None = None
    ) -> ChangedRuns:
        return self._client.fetch_changed_runs(start, until, FINISHED_STATES, at_most)

    def _adapt(self, runs: int, seconds: float) -> None:
        """How much the next look takes: what this server answers within the budget."""
        if runs and seconds > self._budget_s:
            self._max_runs = max(_MIN_RUNS, int(runs * self._budget_s / seconds))
        elif seconds < self._budget_s / 4:
            self._max_runs = min(self._limit, self._max_runs * 2)


def _is_whole(changed: ChangedRuns) -> bool:
    return len(changed.runs) >= changed.total


def _read_clock(changed: ChangedRuns) -> datetime:
    """From when on to ask next time, but for the overlap: when the server was asked, by its own
    clock; by ours if that is behind, since a proxy's clock may be ahead of the database's."""
    now = datetime.now(timezone.utc)
    server_time = changed.server_time
    return min(server_time, now) if server_time else now - MAX_CLOCK_SKEW
