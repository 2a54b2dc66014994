"""When things happen: every interval, time-out and clock that is not declared."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

# The largest difference between the clocks of an Airflow and Dagster that is allowed for.
MAX_CLOCK_SKEW = timedelta(hours=1)


@dataclass(frozen=True)
class RetryPolicy:
    """When to try again, and when to give up. All times are in seconds.

    Attributes:
        first_s: The pause after the first try. Each pause is twice the one before.
        max_s: The longest pause.
        give_up_after_s: How long to go on trying after the first failure.
    """

    first_s: float
    max_s: float
    give_up_after_s: float = math.inf

    def pause_s(self, tries: int) -> float:
        """The pause after so many tries, counted from 1."""
        return min(self.max_s, self.first_s * 2.0 ** min(tries - 1, 50))

    def poll_pause_s(self, elapsed_s: float) -> float:
        """The pause of a poll that began this long ago: a twentieth of that time, so that an end
        is noticed at most 5 % late."""
        return min(self.max_s, max(self.first_s, elapsed_s / 20))

    def is_over(self, elapsed_s: float) -> bool:
        """Whether to give up, this long after the first failure."""
        return elapsed_s > self.give_up_after_s


def _read_utc_clock() -> datetime:
    return datetime.now(timezone.utc)


@dataclass(frozen=True)
class Timing:
    """The intervals and time-outs that are not declared, in seconds, and the clocks they go by.

    Passed in, so that tests of waiting take milliseconds.

    Attributes:
        monotonic: For intervals within this process.
        utc_now: For moments that are compared with those of other machines.
        sleep: For pauses.
        retry_request: Pauses before a request is sent again to a busy server, or after a connection
            broke. A random half of the pause is added.
        tick_s: For one tick of the observation sensor. Dagster ends a tick after 60 s.
        last_poll_s: When the last poll of a tick begins at the latest. Dagster's sensor daemon
            loops every 5 s (1.13); a later poll would delay the next loop.
        store_events_s: Dagster's daemon has stored the events of a tick after this, or has died.
        poll_unreachable: Polls of an instance that does not answer.
        poll_refused: Polls of an instance that refuses us. A person has to act, and an account may
            be locked by too many tries.
        fetch_outcome: Fetching the tasks of a finished run that decide on its outcome.
        poll_run: Polls of a DAG run that goes on (`poll_pause_s`).
        check_paused: Checks whether the DAG of a queued run is paused.
        unexpected_answer: Tries while an instance answers, but not as Airflow does, or fails at
            a trigger (`poll_pause_s`).
        forgive_after_s: An instance that was unreachable for so long starts anew with
            `unexpected_answer`.
        ask_for_slot: Between two questions whether `limits.max_active_runs` leaves room, times
            the number of Dagster runs that launch DAG runs of the instance.
        launch_visible_s: After this, a run that was launched is in Airflow's list of runs.
        log_again_s: A problem that lasts is logged again after this.
        list_tasks_s: Between two looks at which tasks run.
        runnable_cache_s: How long a DAG that is not paused or broken is taken as such.
        earlier_run_s: Between two looks whether an earlier attempt at the same is over.
        status_s: Between two looks whether the Dagster run is being canceled.
        launch_end_s: For triggers that are under way when the Dagster run is canceled.
        cancel_s: For stopping DAG runs; Dagster gives a canceled run a minute.
        repeat_stop_s: Before the stop of a DAG run is repeated, as Airflow's scheduler may have
            overwritten it.
        after_main_s: How long cancellation is watched for after the main thread has ended.
        heartbeat_s: Between two heartbeats.
        heartbeat_lost_s: A worker without a heartbeat for so long is dead. Several heartbeats, as
            a busy database or a machine that slept may delay one.
        first_heartbeat_lost_s: The same before the first step, which may wait for its turn.
    """

    monotonic: Callable[[], float] = time.monotonic
    utc_now: Callable[[], datetime] = _read_utc_clock
    sleep: Callable[[float], None] = time.sleep

    retry_request: RetryPolicy = RetryPolicy(first_s=0.3, max_s=5.0)

    tick_s: float = 40.0
    last_poll_s: float = 4.1
    store_events_s: float = 30.0
    poll_unreachable: RetryPolicy = RetryPolicy(first_s=2.0, max_s=60.0)
    poll_refused: RetryPolicy = RetryPolicy(first_s=2.0, max_s=300.0)
    fetch_outcome: RetryPolicy = RetryPolicy(first_s=0.0, max_s=0.0, give_up_after_s=600.0)

    poll_run: RetryPolicy = RetryPolicy(first_s=1.0, max_s=15.0)
    check_paused: RetryPolicy = RetryPolicy(first_s=10.0, max_s=300.0)
    unexpected_answer: RetryPolicy = RetryPolicy(first_s=1.0, max_s=15.0, give_up_after_s=600.0)
    forgive_after_s: float = 60.0
    ask_for_slot: RetryPolicy = RetryPolicy(first_s=2.0, max_s=60.0)
    launch_visible_s: float = 5.0
    log_again_s: float = 600.0
    list_tasks_s: float = 15.0
    runnable_cache_s: float = 5.0
    earlier_run_s: float = 2.0
    status_s: float = 2.0
    launch_end_s: float = 30.0
    cancel_s: float = 50.0
    repeat_stop_s: float = 3.0
    after_main_s: float = 30.0

    heartbeat_s: float = 15.0
    heartbeat_lost_s: float = 90.0
    first_heartbeat_lost_s: float = 900.0
