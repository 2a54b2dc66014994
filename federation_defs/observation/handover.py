"""What a tick gave to Dagster's daemon to store, for a tick that overlaps it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from federation_defs.verdicts import Verdict

# The daemon has stored a tick's events by then, or it is dead.
STORED_S = 30.0


@dataclass(frozen=True)
class Handover:
    """Events that are being stored.

    Attributes:
        cursor: That the tick was given. The daemon saves a new one once the events are stored.
        at: By the monotonic clock.
        last: What the last of them tells of.
    """

    cursor: str | None
    at: float
    last: Verdict

    def may_go_on(self, cursor: str | None) -> bool:
        """Whether a tick that is given this cursor may come before the events are stored."""
        return self.cursor == cursor and time.monotonic() - self.at <= STORED_S
