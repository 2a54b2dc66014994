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
    """Up to when it was evaluated whether DAGs were late. All times are by the server's clock.

    Attributes:
        until: Of all DAGs whose declaration was known then.
        known: Fingerprints of these declarations. A new one is evaluated from its first sight on.
        behind: The same as `until`, of DAGs that could not be evaluated up to it, by id.
    """

    until: datetime
    known: frozenset[bytes] = frozenset()
    behind: Mapping[str, datetime] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        behind = {dag_id: until.isoformat() for dag_id, until in self.behind.items()}
        return {"until": self.until.isoformat(), "known": _encode(self.known), "behind": behind}

    @staticmethod
    def from_json(content: Any, now: datetime) -> EvaluatedDeadlines | None:
        """Parse them; None if there are none, or if they are not valid."""
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
        since: By the server's clock. What changed before it, less the overlap, is settled.
        seen: Fingerprints of runs that changed later and are settled too.
        deferred: Finished runs that a living Dagster run is going to report.
        absent: DAGs that the instance does not have, whose checks were failed for that.
        observer: The process that observes the instance.
        deadlines: None as long as no DAG had a deadline.
        begun_at: When there was no cursor before, and a DAG had a `max_duration`. Runs that ended
            earlier may be known already.
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

        A person can edit it in Dagster's UI. An error would fail every tick from then on.
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
        is_last: Whether it holds all runs that ended before `next_since`, and is no slice of a long
            history.
    """

    runs: list[DagRun]
    next_since: datetime
    unreadable: Sequence[UnreadableRow] = ()
    is_last: bool = True


@dataclass(frozen=True)
class EndedRuns:
    """What one poll knows of the ends of runs.

    Attributes:
        now: By Airflow's clock.
        settled: Runs whose events are stored now; those of each DAG sorted by their ends.
        newly_reported: Those of them whose events this tick stored.
        unsettled: When runs ended whose events are not stored yet; None if that is not known.
        is_whole: Whether all runs that ended before `now` are known.
    """

    now: datetime
    settled: Sequence[DagRun]
    newly_reported: Sequence[DagRun]
    unsettled: Mapping[RunKey, datetime | None]
    is_whole: bool

    def find_first_unsettled(self) -> dict[str, datetime]:
        """Find when the first of the unsettled runs of each DAG ended, at the earliest."""
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
    """Return the cursor of the next poll. `since` stays while runs of the batch are left.

    Args:
        deferred: All runs to defer, those of the batch and earlier ones.
        settled: Runs whose events are in the event log. The unreadable ones of the batch are, too.
    """
    found = {build_fingerprint(run): run.key for run in (*batch.runs, *batch.unreadable)}
    # Only what the poll still finds: a state that is set back by hand is a change once more.
    known = cursor.seen | {build_fingerprint(run) for run in (*settled, *batch.unreadable)}
    seen = known & found.keys()
    unsettled = {key for fingerprint, key in found.items() if fingerprint not in seen}
    since = batch.next_since if unsettled <= set(deferred) else cursor.since
    return replace(cursor, since=since, seen=seen, deferred=tuple(sorted(deferred)))
