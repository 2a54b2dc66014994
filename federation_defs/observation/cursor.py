"""What one tick tells the next; and where to begin when nothing tells."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from hashlib import blake2b
from typing import Any

import dagster as dg

from federation_defs.airflow.models import DagRun
from federation_defs.dagster_io.event_log import MAX_CLOCK_SKEW, find_first_end

VERSION = 3
_DIGEST = 8  # bytes: 10,000 runs are 107 kB, and two of them alike one time in 4e11


@dataclass(frozen=True)
class Cursor:
    """How far an instance is observed.

    Attributes:
        since: By the server's clock. What changed before it, less the overlap, is dealt with.
        seen: Fingerprints of runs that changed later and are dealt with too.
        held: Finished runs, as (DAG id, run id), that a living Dagster run is about to report.
    """

    since: datetime
    seen: frozenset[bytes] = frozenset()
    held: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> str:
        content = {
            "version": VERSION,
            "since": self.since.isoformat(),
            "seen": b64encode(b"".join(sorted(self.seen))).decode(),
            "held": self.held,
        }
        return json.dumps(content, separators=(",", ":"))

    @staticmethod
    def from_json(text: str | None) -> Cursor | None:
        """The cursor; None if there is none, or none that makes sense: Dagster's UI lets a person
        edit it, and a tick that failed on it would fail for ever."""
        try:
            content = json.loads(text or "")
            since = datetime.fromisoformat(content["since"])
            since = since.replace(tzinfo=since.tzinfo or timezone.utc)
            seen = _read_seen(content["version"], content["seen"])
            pairs = [(str(dag_id), str(run_id)) for dag_id, run_id in content["held"]]
            held = tuple(pair for pair in pairs if all(pair))
            is_ahead = since > datetime.now(timezone.utc) + MAX_CLOCK_SKEW
        except (ArithmeticError, KeyError, TypeError, ValueError, RecursionError):
            return None
        return None if is_ahead else Cursor(since, seen, held)


def build_fingerprint(run: DagRun) -> bytes:
    """A run in one of its endings; a clear and a rerun, or a state set by hand, make another."""
    text = "\n".join((run.dag_id, run.run_id, run.state, str(run.end_date)))
    return blake2b(text.encode(errors="replace"), digest_size=_DIGEST).digest()


def find_start(
    instance: dg.DagsterInstance,
    keys: Collection[dg.AssetKey],
    lookback: timedelta,
    lookback_on_first_start: timedelta,
) -> datetime:
    """From when on to look without a cursor.

    If the event log holds nothing of these assets, that is the first start. Else the cursor was
    lost: then from the end of the first run that was ever reported, or as far back as we ever
    look; what was reported since, the log tells.
    """
    now = datetime.now(timezone.utc)
    oldest, first = now - lookback, None
    for key in keys:
        end = find_first_end(instance, key)
        first = min(first or end, end) if end is not None else first
        if first is not None and first <= oldest:
            return oldest
    return first or now - lookback_on_first_start


def _read_seen(version: Any, seen: Any) -> frozenset[bytes]:
    if version == 2:  # a list of hexadecimal texts
        return frozenset(bytes.fromhex(one) for one in seen)
    if version != VERSION:
        raise ValueError(version)
    digests = b64decode(seen, validate=True)
    return frozenset(digests[start : start + _DIGEST] for start in range(0, len(digests), _DIGEST))
