"""How far an instance is observed: the cursor, and the batch of runs that advances it."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from hashlib import blake2b

from federation_defs.airflow.models import DagRun, RunKey
from federation_defs.airflow.pages import UnreadableRow
from federation_defs.timing import MAX_CLOCK_SKEW

VERSION = 3
_DIGEST_BYTES = 8  # 10,000 runs take 107 kB; two of them collide once in 4e11 cursors


@dataclass(frozen=True)
class Cursor:
    """How far an instance is observed.

    Attributes:
        since: By the server's clock. What changed before it, less the overlap, is settled.
        seen: Fingerprints of runs that changed later and are settled too.
        deferred: Finished runs that a living Dagster run is going to report.
        absent: DAGs that the instance does not have, whose checks were failed for that.
        observer: The process that observes the instance.
    """

    since: datetime
    seen: frozenset[bytes] = frozenset()
    deferred: tuple[RunKey, ...] = ()
    absent: tuple[str, ...] = ()
    observer: str = ""

    def to_json(self) -> str:
        content = {
            "version": VERSION,
            "since": self.since.isoformat(),
            "seen": b64encode(b"".join(sorted(self.seen))).decode(),
            "held": self.deferred,
            "absent": self.absent,
            "observer": self.observer,
        }
        return json.dumps(content, separators=(",", ":"))

    @staticmethod
    def from_json(text: str | None, now: datetime) -> Cursor | None:
        """Parse a cursor; None if there is none, or if it is not valid.

        A person can edit it in Dagster's UI. An error would fail every tick from then on.
        """
        try:
            content = json.loads(text or "")
            since = datetime.fromisoformat(content["since"])
            since = since.replace(tzinfo=since.tzinfo or timezone.utc)
            digests = b64decode(content["seen"], validate=True)
            starts = range(0, len(digests), _DIGEST_BYTES)
            seen = frozenset(digests[start : start + _DIGEST_BYTES] for start in starts)
            keys = [(str(dag_id), str(run_id)) for dag_id, run_id in content["held"]]
            absent = tuple(map(str, content.get("absent", ())))
            observer = str(content.get("observer", ""))
            is_valid = content["version"] == VERSION and since <= now + MAX_CLOCK_SKEW
        except (ArithmeticError, KeyError, TypeError, ValueError, RecursionError):
            return None
        return Cursor(since, seen, tuple(filter(all, keys)), absent, observer) if is_valid else None


@dataclass(frozen=True)
class Batch:
    """The finished runs that one poll found.

    Attributes:
        runs: Runs that changed since the last poll.
        next_since: The next poll's `since`, once all these runs are reported.
        unreadable: Rows of which only the DAG id and the run id can be read.
    """

    runs: list[DagRun]
    next_since: datetime
    unreadable: Sequence[UnreadableRow] = ()


def build_fingerprint(run: DagRun | UnreadableRow) -> bytes:
    """Return a digest of a run and its end. A rerun, or another state, gives another digest."""
    is_readable = isinstance(run, DagRun)
    end = (run.state, run.end_date) if is_readable else ("unreadable", run.reason)
    text = "\n".join(map(str, (run.dag_id, run.run_id, *end)))
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
    left = {key for fingerprint, key in found.items() if fingerprint not in seen}
    since = batch.next_since if left <= set(deferred) else cursor.since
    return replace(cursor, since=since, seen=seen, deferred=tuple(sorted(deferred)))
