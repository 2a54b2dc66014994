"""The intervals, time-outs and clocks that are not declared."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

# The largest tolerated difference between the clocks of two machines, such as Airflow's and ours.
MAX_CLOCK_SKEW = timedelta(hours=1)


@dataclass(frozen=True)
class RetryPolicy:
    """When to retry, and when to give up. All times are in seconds.

    Attributes:
        first_s: The pause after the first try. Each pause is twice as long as the one before.
        max_s: The longest pause.
        give_up_after_s: How long to retry, counted from the first failure.
    """

    first_s: float
    max_s: float
    give_up_after_s: float = math.inf

    def pause_s(self, tries: int) -> float:
        """Return the pause after this number of tries, 1 or more."""
        return min(self.max_s, self.first_s * 2.0 ** min(tries - 1, 50))

    def poll_pause_s(self, elapsed_s: float) -> float:
        """Return the pause before the next poll, this long after the wait began.

        It is a twentieth of that time, from `first_s` to `max_s`: an end is noticed at most 5 % or
        `first_s` late.
        """
        return min(self.max_s, max(self.first_s, elapsed_s / 20))

    def is_over(self, elapsed_s: float) -> bool:
        """Whether to give up, this long after the first failure."""
        return elapsed_s > self.give_up_after_s


def _read_utc_clock() -> datetime:
    return datetime.now(timezone.utc)


@dataclass(frozen=True)
class Timing:
    """The intervals and time-outs that are not declared, in seconds, and their clocks.

    It is passed in from the top, so that tests of waiting take milliseconds.
    """

    monotonic: Callable[[], float] = time.monotonic  # for durations in this process
    utc_now: Callable[[], datetime] = _read_utc_clock  # for comparisons with other machines
    sleep: Callable[[float], None] = time.sleep

    # Before a request is repeated, because the server is busy or the connection broke. Up to half
    # of the pause is added at random.
    retry_request: RetryPolicy = RetryPolicy(first_s=0.3, max_s=5.0)

    # Observation
    tick_s: float = 30.0  # for the requests of one poll; Dagster ends a tick after 60 s
    # Long ticks: a tick without news lasts until the second loop of Dagster's sensor daemon after
    # its own. The daemon loops every 5 s (1.13), and can't stop during a tick. The first poll of a
    # tick may begin up to `long_tick_slack_s` before the interval since the last poll of the tick
    # before is over.
    long_tick_s: float = 10.0
    long_tick_slack_s: float = 1.1
    # In each loop of the daemon, one poll is timed to end `lead_margin_s` before the daemon
    # evaluates automation conditions. If it had to begin more than `max_lead_s` before them, the
    # first poll of a tick begins at once instead.
    lead_margin_s: float = 0.6
    max_lead_s: float = 2.0
    report_usually_s: float = 0.2  # from the start of a poll to its last report, until measured
    # How old the sensors' stored state, as read last, may be when a tick looks whether a person has
    # changed its sensor. After a poll that takes longer, the state is read again.
    sensor_state_s: float = 0.25
    # The share of the usual times for each poll of a tick after the first one, because Dagster ends
    # a tick after 60 s.
    repeated_poll_share: float = 0.5
    count_sensors_s: float = 60.0  # the same when the sensors of a deployment are counted
    report_s: float = 15.0  # for storing events after `tick_s`; other sensors may have to wait
    # A tick is due an interval after the end of the one before, but at least `daemon_loop_s`, in
    # which Dagster's sensor daemon loops. If it begins more than `late_tick_s` after that, it is
    # late, and has only `late_tick_share` of `tick_s` and `report_s`.
    daemon_loop_s: float = 5.0
    late_tick_s: float = 5.0
    late_tick_share: float = 0.2
    # The sensor ticks at least this often, even if it polls less often. A process that lives for a
    # minute, as under `dagster-daemon run -m`, has to take over, poll, and measure heartbeats.
    max_tick_interval_s: float = 10.0
    # The shortest interval is `interval_per_instance_s` for each instance of the code location, and
    # `max_fair_interval_s` at most, because a tick costs the daemon 0.05 to 0.1 CPU seconds. A code
    # location that would need a longer interval has to be split.
    interval_per_instance_s: float = 0.45
    max_fair_interval_s: float = 20.0
    # While Dagster runs wait for DAG runs of an instance, its shortest interval is
    # `interval_per_waiting_run_s` for each of them, because they poll the instance, too.
    # `max_waiting_interval_s` limits that.
    interval_per_waiting_run_s: float = 0.2
    max_waiting_interval_s: float = 60.0
    find_first_end_s: float = 5.0  # of a tick without a cursor, to find where to begin
    other_sensors_s: float = 5.0  # as `sensor_state_s`, for the sensors of all code locations
    removed_sensor_s: float = 300.0  # a sensor whose last tick is older counts as removed
    # Observation stores an event within `owner_check_s` after it has checked that no Dagster run is
    # about to store it. A step that takes over a finished DAG run waits longer, `takeover_s`,
    # before it looks for the event.
    owner_check_s: float = 4.0
    takeover_s: float = 15.0
    # Before an instance that did not answer is polled again. The event sensor uses it, too.
    poll_unreachable: RetryPolicy = RetryPolicy(first_s=2.0, max_s=60.0)
    # The same after any other error of an instance, such as a refused sign-in. A person has to act,
    # and many tries may lock the account.
    poll_refused: RetryPolicy = RetryPolicy(first_s=2.0, max_s=300.0)
    # Only `give_up_after_s` is used. A finished run whose tasks can't be fetched for so long is
    # reported without them. A deferred run that can't be fetched is reported as unreadable.
    fetch_outcome: RetryPolicy = RetryPolicy(first_s=0.0, max_s=0.0, give_up_after_s=600.0)
    # Between two lists of running runs: `poll_pause_s` of the shortest `max_duration`, and at least
    # `pause_s` after failures.
    list_running_runs: RetryPolicy = RetryPolicy(first_s=4.5, max_s=60.0)
    # From a deadline to its evaluation, because Airflow may show the end of a run a second late.
    late_row_s: float = 5.0
    # For each of the checks `ready`, `partitions` and `max_duration` in a poll, and the first
    # time-out of each request of the event sensor.
    check_s: float = 5.0
    # Between two evaluations of `ready`, or of `partitions`, each of some DAGs. It is longer if
    # there are many instances.
    check_interval_s: float = 60.0

    # The event sensor. Dagster ends a tick after 60 s, and then does not store its cursor.
    read_events_s: float = 15.0  # of a tick, for reading what has happened upstream
    read_again_s: float = 2.0  # between two readings in a tick
    # For starting runs after that. An `only_if` function that is called just before the end may
    # take 10 s more.
    start_dags_s: float = 20.0
    # For this time after an event, events with smaller positions may still become visible.
    late_event_s: float = 10.0

    refresh_s: float = 600.0  # of the refresh job, for the requests to all instances

    # Execution
    poll_run: RetryPolicy = RetryPolicy(first_s=1.0, max_s=15.0)  # with `poll_pause_s`
    # Between two checks whether the DAG of a queued run is paused: as long as the wait so far.
    check_paused: RetryPolicy = RetryPolicy(first_s=10.0, max_s=300.0)
    # After an error of an instance, the pause before its next poll (`poll_pause_s`). A wait ends
    # after `give_up_after_s`, unless the instance is unreachable.
    unexpected_answer: RetryPolicy = RetryPolicy(first_s=1.0, max_s=15.0, give_up_after_s=600.0)
    forgive_after_s: float = 60.0  # after a longer outage, that `give_up_after_s` begins anew
    # Between two requests for a slot of `limits.max_active_runs`: `first_s` for each active Dagster
    # run that launches DAG runs of the instance, more or less by up to a half.
    ask_for_slot: RetryPolicy = RetryPolicy(first_s=2.0, max_s=60.0)
    launch_visible_s: float = 5.0  # until Airflow's list of runs shows a run that was launched
    log_again_s: float = 600.0  # between two log lines about a problem that lasts
    list_tasks_s: float = 15.0  # between two lists of running tasks, for the log
    runnable_cache_s: float = 5.0  # how long a DAG counts as neither paused nor broken
    # Between two checks whether another attempt at the same Dagster run is at work, or whether
    # another Dagster run has yet to report the same DAG run.
    run_group_s: float = 2.0
    status_s: float = 2.0  # between two checks whether the Dagster run is being canceled
    launch_end_s: float = 30.0  # for triggers under way when the Dagster run is canceled
    cancel_s: float = 50.0  # for stopping DAG runs; Dagster gives a canceled run a minute
    # Before a step is repeated after an error that is not Airflow's, such as one of Dagster's
    # database. It is shorter than `heartbeat_lost_s`, because no heartbeats are written meanwhile.
    repeat_step_s: float = 15.0
    # Before the stop of a DAG run is repeated: Airflow's scheduler may have overwritten it.
    repeat_stop_s: float = 3.0
    after_main_s: float = 30.0  # how long the status is polled after the main thread has ended

    # Heartbeats
    heartbeat_s: float = 10.0
    # A worker counts as dead after this time without a heartbeat. The time is below a minute, after
    # which `dagster-daemon run -m` replaces the code server that measures it.
    heartbeat_lost_s: float = 45.0
    # The same on Dagster+, whose client waits for an answer for a minute, and for another one after
    # a retry.
    heartbeat_lost_on_plus_s: float = 150.0
    next_step_lost_s: float = 240.0  # the same between steps, and before the Dagster run ends
    waiting_step_lost_s: float = 1800.0  # while a process or resources start, or a slot is missing

    def find_rest_s(self, deadline: float) -> float:
        """Return the seconds until a deadline by the monotonic clock; negative after it."""
        return deadline - self.monotonic()
