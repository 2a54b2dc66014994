"""How far an instance is observed: the cursor, and the batch of runs that advances it."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from hashlib import blake2b
from typing import Any

from federation_defs.airflow.models import DagRun, RunKey
from federation_defs.airflow.pages import UnreadableRow
from federation_defs.timing import MAX_CLOCK_SKEW

VERSION = 3
_INVALID = (ArithmeticError, AttributeError, KeyError, TypeError, ValueError, RecursionError)
_DIGEST_BYTES = 8  # 10,000 runs take 107 kB; two of them collide once in 4e11 cursors

_LONG_AGO = datetime.min.replace(tzinfo=timezone.utc)


@dataclass(frozen=True)
class EvaluatedDeadlines:
    """Up to when the deadlines of DAGs were evaluated. All times are by Airflow's clock.

    Attributes:
        until: Up to this time, the deadlines of all DAGs with a `known` deadline were evaluated,
            except for DAGs that are `behind`.
        known: Digests of declared deadlines. A new one counts from the tick that first sees it.
        behind: The times of DAGs that could not be evaluated up to `until`, by DAG id.
    """

    until: datetime
    known: frozenset[bytes] = frozenset()
    behind: Mapping[str, datetime] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        behind = {dag_id: until.isoformat() for dag_id, until in self.behind.items()}
        return {"until": self.until.isoformat(), "known": _encode(self.known), "behind": behind}

    @staticmethod
    def from_json(content: Any, now: datetime) -> EvaluatedDeadlines | None:
        """Parse the part of a cursor; None if it is missing or not valid.

        Args:
            now: By Dagster's clock.
        """
        try:
            until, known = _parse_time(content["until"]), _decode(content["known"])
            behind = {str(dag_id): _parse_time(each) for dag_id, each in content["behind"].items()}
            is_valid = max([until, *behind.values()]) <= now + MAX_CLOCK_SKEW
        except _INVALID:
            return None
        return EvaluatedDeadlines(until, known, behind) if is_valid else None


@dataclass(frozen=True)
class Cursor:
    """How far an instance is observed.

    Attributes:
        since: By Airflow's clock. Runs that changed before it, less the overlap, are settled or
            deferred.
        seen: Fingerprints of runs that changed later and are settled, too.
        deferred: Finished runs that a living Dagster run is going to report.
        absent: DAGs that the instance does not have, whose check `dag_run` was failed for that.
        observer: The id of the process that observes the instance.
        deadlines: None until deadlines are evaluated.
        begun_at: When this cursor was begun without an earlier one, by Dagster's clock. Runs that
            ended before may have been reported already. None if no DAG had a `max_duration` then.
    """

    since: datetime
    seen: frozenset[bytes] = frozenset()
    deferred: tuple[RunKey, ...] = ()
    absent: tuple[str, ...] = ()
    observer: str = ""
    deadlines: EvaluatedDeadlines | None = None
    begun_at: datetime | None = None

    def to_json(self) -> str:
        content: dict[str, Any] = {
            "version": VERSION,
            "since": self.since.isoformat(),
            "seen": _encode(self.seen),
            "held": self.deferred,
            "absent": self.absent,
            "observer": self.observer,
        }
        if self.begun_at is not None:
            content["begun_at"] = self.begun_at.isoformat()
        if self.deadlines is not None:
            content["deadlines"] = self.deadlines.to_json()
        return json.dumps(content, separators=(",", ":"))

    @staticmethod
    def from_json(text: str | None, now: datetime) -> Cursor | None:
        """Parse a cursor; None if there is none, or if it is not valid.

        A person can edit a cursor in Dagster's UI. An error would fail every tick from then on.

        Args:
            now: By Dagster's clock.
        """
        try:
            content = json.loads(text or "")
            since, seen = _parse_time(content["since"]), _decode(content["seen"])
            keys = [(str(dag_id), str(run_id)) for dag_id, run_id in content["held"]]
            absent = tuple(map(str, content.get("absent", ())))
            observer = str(content.get("observer", ""))
            deadlines = EvaluatedDeadlines.from_json(content.get("deadlines"), now)
            begun = content.get("begun_at")
            begun_at = None if begun is None else _parse_time(begun)
            is_valid = content["version"] == VERSION and since <= now + MAX_CLOCK_SKEW
        except _INVALID:
            return None
        deferred = tuple(filter(all, keys))
        cursor = Cursor(since, seen, deferred, absent, observer, deadlines, begun_at)
        return cursor if is_valid else None


def _encode(digests: Iterable[bytes]) -> str:
    return b64encode(b"".join(sorted(digests))).decode()


def _decode(text: str) -> frozenset[bytes]:
    digests = b64decode(text, validate=True)
    starts = range(0, len(digests), _DIGEST_BYTES)
    return frozenset(digests[start : start + _DIGEST_BYTES] for start in starts)


def _parse_time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=moment.tzinfo or timezone.utc)


@dataclass(frozen=True)
class Batch:
    """The finished runs that one poll found.

    Attributes:
        runs: Runs that changed since the last poll.
        next_since: The next poll's `since`, once all these runs are reported.
        unreadable: Rows of which only the DAG id and the run id can be read.
        is_last: Whether the batch holds all runs that ended before `next_since`. A slice of a long
            history does not.
    """

    runs: list[DagRun]
    next_since: datetime
    unreadable: Sequence[UnreadableRow] = ()
    is_last: bool = True


@dataclass(frozen=True)
class EndedRuns:
    """What is known after a poll about runs that ended.

    Attributes:
        now: The time up to which the poll has read, by Airflow's clock.
        settled: Runs whose events are in the event log. Those of each DAG are sorted by their ends.
        newly_reported: The settled runs whose events this poll stored.
        unsettled: The ends of runs whose events are not stored yet; None if an end is not known.
        is_whole: Whether all runs that ended before `now` are known.
    """

    now: datetime
    settled: Sequence[DagRun]
    newly_reported: Sequence[DagRun]
    unsettled: Mapping[RunKey, datetime | None]
    is_whole: bool

    def find_first_unsettled(self) -> dict[str, datetime]:
        """Find when the first unsettled run of each DAG ended, by DAG id. A run without a known end
        may have ended at any time: it gives the year 1."""
        first: dict[str, datetime] = {}
        for (dag_id, _), end in self.unsettled.items():
            end = end or _LONG_AGO
            first[dag_id] = min(end, first.get(dag_id, end))
        return first


def build_fingerprint(run: DagRun | UnreadableRow) -> bytes:
    """Return a digest of a run and its end. A rerun, or another state, gives another digest."""
    is_readable = isinstance(run, DagRun)
    end = (run.state, run.end_date) if is_readable else ("unreadable", run.reason)
    return build_digest(run.dag_id, run.run_id, *end)


def build_digest(*parts: object) -> bytes:
    text = "\n".join(map(str, parts))
    return blake2b(text.encode(errors="replace"), digest_size=_DIGEST_BYTES).digest()


def advance(
    cursor: Cursor, batch: Batch, deferred: Collection[RunKey], settled: Iterable[DagRun]
) -> Cursor:
    """Return the cursor for the next poll. Its `since` stays the same until all runs of the batch
    are settled or deferred.

    Args:
        deferred: All deferred runs, those of the batch and earlier ones.
        settled: Runs whose events are in the event log. Unreadable rows of the batch count as such.
    """
    found = {build_fingerprint(run): run.key for run in (*batch.runs, *batch.unreadable)}
    # Only what the poll still finds: if a person sets a state back, that is a change once more.
    known = cursor.seen | {build_fingerprint(run) for run in (*settled, *batch.unreadable)}
    seen = known & found.keys()
    unsettled = {key for fingerprint, key in found.items() if fingerprint not in seen}
    since = batch.next_since if unsettled <= set(deferred) else cursor.since
    return replace(cursor, since=since, seen=seen, deferred=tuple(sorted(deferred)))
