"""When an instance is polled, and for how long, so that no other instance has to wait for it."""

from __future__ import annotations

import math
import statistics
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from federation_defs.errors import AirflowError, UnreachableError
from federation_defs.timing import Timing

# The number of instances that are retried at a time after repeated errors. Each may occupy a thread
# of the code server until a time-out, and a code server may have only six threads.
_retries = threading.BoundedSemaphore(2)

_LAST_REPORTS = 10  # polls with reports; the next one is expected to take their median


class PollInterval:
    """The interval between two polls of one instance, and how long a tick may take.

    - After errors there are pauses: none after the first error, then longer and longer ones. Of all
      instances that failed at least twice in a row, two are retried at a time.
    - Ticks within a long interval do not poll.
    - The more Dagster runs wait for the instance, the longer its interval: each run polls it, too.
    - A tick that begins late has only a share of the usual time. (It polls once.)

    Args:
        usual_s: The interval in seconds if none of these applies.

    Attributes:
        seconds: The present interval.
        time_share: The share of the usual time that this tick may take: 1, or less if it is late.
    """

    def __init__(self, timing: Timing, usual_s: float) -> None:
        self._timing = timing
        self._usual_s = self.seconds = usual_s
        self._tick_interval_s = min(usual_s, timing.max_tick_interval_s)
        self.time_share = 1.0
        self._is_retry = False
        self._ended_at = self._polled_at = -math.inf
        self._durations_s = deque([timing.report_usually_s], maxlen=_LAST_REPORTS)
        self.record_success()

    @property
    def lead_s(self) -> float | None:
        """How many seconds before a moment a poll has to begin, for its reports to be stored by
        then. None if polls take too long for that, or if this tick has to poll at once: it is late,
        the last poll failed, or not every tick polls."""
        lead_s = statistics.median(self._durations_s) + self._timing.lead_margin_s
        may_wait = self.time_share == 1.0 and not self._errors and self._polls_in_each_tick
        return lead_s if may_wait and lead_s <= self._timing.max_lead_s else None

    @property
    def _polls_in_each_tick(self) -> bool:
        return self.seconds <= max(self._tick_interval_s, self._timing.daemon_loop_s)

    @contextmanager
    def tick(self, waiting_runs: int) -> Iterator[str | None]:
        """Begin a tick, and yield why it does not poll; None if it does.

        Args:
            waiting_runs: The number of Dagster runs that poll the instance, too.
        """
        timing, now = self._timing, self._timing.monotonic()
        tick_at = self._ended_at + max(self._tick_interval_s, timing.daemon_loop_s)
        late_s = now - max(tick_at, self._polled_at + self._usual_s)
        is_late = timing.late_tick_s < late_s < math.inf
        self.time_share = timing.late_tick_share if is_late and not self._errors else 1.0
        polite_s = waiting_runs * timing.interval_per_waiting_run_s
        self.seconds = max(self._usual_s, min(polite_s, timing.max_waiting_interval_s))
        reason = self._describe_pause(now) or self._describe_interval(now, waiting_runs)
        if reason is None and self._errors > 1:
            self._is_retry = _retries.acquire(blocking=False)
            reason = (
                None
                if self._is_retry
                else f"{self._reason} after other instances that do not answer.)"
            )
        try:
            yield reason
        finally:
            self._end_retry()
            self._ended_at = timing.monotonic()

    def _describe_pause(self, now: float) -> str | None:
        pause_s = self._paused_until - now
        return f"{self._reason} in {pause_s:.0f} s.)" if pause_s > 0 else None

    def _describe_interval(self, now: float, waiting_runs: int) -> str | None:
        """Return why a tick within the interval does not poll; None if the interval is over."""
        # One second less, as ticks are not evenly spaced.
        pause_s = self._polled_at + self.seconds - 1 - now
        if self._polls_in_each_tick or pause_s <= 0:
            return None
        why = f"The interval is {self.seconds:.0f} s"
        if self.seconds > self._usual_s:
            why = f"{waiting_runs} Dagster runs poll the instance"
        return f"{why}: the next poll is in {pause_s:.0f} s."

    @contextmanager
    def poll(self) -> Iterator[None]:
        """Mark the requests of a poll. After them, another instance that failed may be retried."""
        self._polled_at = self._timing.monotonic()
        try:
            yield
        finally:
            self._end_retry()

    def _end_retry(self) -> None:
        if self._is_retry:
            self._is_retry = False
            _retries.release()

    def record_reports(self, duration_s: float) -> None:
        """Record how long a poll that reported runs took, from its start to its last report."""
        self._durations_s.append(duration_s)

    def record_success(self) -> None:
        self._errors, self._paused_until, self._reason = 0, -math.inf, ""

    def record_error(self, error: AirflowError) -> str:
        """Set the pause after an error. Return the error as text, and the pause, if any."""
        timing = self._timing
        is_unreachable = isinstance(error, UnreachableError)
        policy = timing.poll_unreachable if is_unreachable else timing.poll_refused
        now = timing.monotonic()
        if self._errors:
            policy = replace(policy, first_s=max(policy.first_s, self._usual_s))
            self._paused_until = now + policy.pause_s(self._errors)
        else:
            self._since = timing.utc_now()
        self._errors += 1
        self._reason = f"{error} (Since {self._since:%F %T} UTC; retried"
        return self._describe_pause(now) or str(error)
