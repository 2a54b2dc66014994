"""How fast an instance may be asked."""

from __future__ import annotations

import threading
import time


class Pace:
    """So many requests in any minute, over all threads; who comes too early waits for its turn.

    A quarter of them may come at once (a long list, after quiet), the rest evenly.

    Args:
        per_minute: At most.
    """

    def __init__(self, per_minute: int) -> None:
        burst = max(1, per_minute // 4)
        self._interval_s = 60 / max(1, per_minute - burst)
        self._burst_s = self._interval_s * (burst - 1)
        self._next = 0.0  # when the next turn would be, were all turns evenly spaced
        self._lock = threading.Lock()

    def wait_for_turn(self) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next - self._burst_s)
            self._next = max(now, self._next) + self._interval_s
        time.sleep(turn - now)

    def pause(self, seconds: float) -> None:
        """Lets nobody's turn come before, for the server asked for it."""
        with self._lock:
            resumed = time.monotonic() + seconds + self._burst_s
            self._next = max(self._next, resumed)
