"""How long an instance that does not answer, or refuses us, is left alone."""

from __future__ import annotations

import time
from datetime import datetime, timezone

from federation_defs.errors import AirflowError, UnreachableError

# Who is away is soon back; who refuses us waits for a person, and may lock the account.
MAX_WAIT_S = 60.0
MAX_WAIT_WHEN_REFUSED_S = 300.0


class Backoff:
    """When to ask again: at once after the first failure, then less and less often.

    Args:
        interval_s: Between two looks when all is well.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._failures = 0
        self._again_at = 0.0
        self._since = datetime.now(timezone.utc)
        self._error: AirflowError | None = None

    def begin(self, error: AirflowError) -> None:
        """Notes a failure."""
        if self._failures == 0:
            self._since = datetime.now(timezone.utc)
        self._failures += 1
        limit = MAX_WAIT_S if isinstance(error, UnreachableError) else MAX_WAIT_WHEN_REFUSED_S
        wait_s = min(limit, self._interval_s * (2 ** min(self._failures - 1, 20) - 1))
        self._again_at = time.monotonic() + wait_s
        self._error = error

    def end(self) -> None:
        self._failures, self._error = 0, None

    def explain(self) -> str | None:
        """Why nothing is asked now; None if something may be."""
        left_s = self._again_at - time.monotonic()
        if self._error is None or left_s <= 0:
            return None
        return f"{self._error} (Since {self._since:%F %T} UTC; asked again in {left_s:.0f} s.)"
