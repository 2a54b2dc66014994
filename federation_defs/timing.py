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
    """

    monotonic: Callable[[], float] = time.monotonic  # for intervals within this process
    utc_now: Callable[[], datetime] = _read_utc_clock  # for comparisons with other machines
    sleep: Callable[[float], None] = time.sleep

    # Before a request is sent again to a busy server, or after a connection broke. A random half
    # of the pause is added.
    retry_request: RetryPolicy = RetryPolicy(first_s=0.3, max_s=5.0)

    # Observation
    tick_s: float = 30.0  # for the requests of one poll; Dagster ends a tick after 60 s
    # A tick without news goes on until the second next loop of Dagster's sensor daemon, which loops
    # every 5 s (1.13). Meanwhile the daemon can't stop. The first poll of a tick may be this much
    # sooner after the last one than the interval is.
    long_tick_s: float = 10.0
    long_tick_slack_s: float = 1.1
    # One poll in each loop of the daemon is over this long before it evaluates automation
    # conditions. One that would have to begin more than `max_lead_s` before that begins at once.
    lead_margin_s: float = 0.6
    max_lead_s: float = 2.0
    report_usually_s: float = 0.2  # from the beginning of a poll to its last report, at first
    sensor_state_s: float = 0.25  # between two reads of whether a person has changed sensors
    # Of the usual times, for all polls of a tick but the first: Dagster ends a tick after 60 s.
    repeated_poll_share: float = 0.5
    count_sensors_s: float = 60.0  # between two counts of a deployment's sensors
    report_s: float = 15.0  # for storing events after them; it may delay the other sensors
    # Dagster's sensor daemon loops every 5 s. A tick that begins this much later than that is late,
    # and takes a fifth of these times at most.
    daemon_loop_s: float = 5.0
    late_tick_s: float = 5.0
    late_tick_share: float = 0.2
    # The sensor ticks at least this often, also where it polls more rarely: a process that lives a
    # minute, as under `dagster-daemon run -m`, takes over, polls, and measures heartbeats.
    max_tick_interval_s: float = 10.0
    # Each instance of a code location makes the interval of all longer: a tick costs the daemon
    # 0.05 to 0.1 CPU seconds. A location with so many that the longest interval is too short has to
    # be split.
    interval_per_instance_s: float = 0.45
    max_fair_interval_s: float = 20.0
    # The shortest interval while Dagster runs wait for an instance, times their number. They poll
    # it, too.
    interval_per_waiting_run_s: float = 0.2
    max_waiting_interval_s: float = 60.0
    find_first_end_s: float = 5.0  # of a tick, for asking the event log where to begin
    other_sensors_s: float = 5.0  # for what is known of other code locations' sensors
    removed_sensor_s: float = 300.0  # since its last tick, a sensor is taken for removed
    # An event is stored within this time after the check that no Dagster run is about to store it.
    # A step that takes over a finished DAG run waits for longer before it looks for the event.
    owner_check_s: float = 4.0
    takeover_s: float = 15.0
    poll_unreachable: RetryPolicy = RetryPolicy(first_s=2.0, max_s=60.0)
    # While the instance refuses us. A person has to act, and many tries may lock the account.
    poll_refused: RetryPolicy = RetryPolicy(first_s=2.0, max_s=300.0)
    # For the tasks of a finished run that decide on its outcome.
    fetch_outcome: RetryPolicy = RetryPolicy(first_s=0.0, max_s=0.0, give_up_after_s=600.0)
    # Between two lists of running runs, with `poll_pause_s` of the shortest `max_duration`.
    list_running_runs: RetryPolicy = RetryPolicy(first_s=4.5, max_s=60.0)
    # After a deadline, before it is evaluated: Airflow shows the end of a run up to a second later.
    late_row_s: float = 5.0
    # The time-out of requests beside the polls: for each kind of check, and for each request of the
    # event sensor.
    check_s: float = 5.0
    # Between two evaluations of `ready`, or of `partitions`; longer if there are many instances.
    check_interval_s: float = 60.0

    # The event sensor. Dagster ends a tick after 60 s, and does not store its cursor then.
    read_events_s: float = 15.0  # of a tick, for reading what has happened upstream
    # Between two readings within a tick.
    read_again_s: float = 2.0
    # For starting runs after that. An `only_if` that is asked by then takes 10 s more.
    start_dags_s: float = 20.0
    # For so long after an event, others with smaller positions may become visible.
    late_event_s: float = 10.0

    refresh_s: float = 600.0  # for the requests of all instances, by the refresh job

    # Execution
    poll_run: RetryPolicy = RetryPolicy(first_s=1.0, max_s=15.0)  # with `poll_pause_s`
    check_paused: RetryPolicy = RetryPolicy(first_s=10.0, max_s=300.0)  # of a queued run's DAG
    # While an instance answers, but not as Airflow does, or fails at a trigger (`poll_pause_s`).
    unexpected_answer: RetryPolicy = RetryPolicy(first_s=1.0, max_s=15.0, give_up_after_s=600.0)
    forgive_after_s: float = 60.0  # an outage of this length makes `unexpected_answer` start anew
    # Whether `limits.max_active_runs` leaves room, times the number of Dagster runs that ask.
    ask_for_slot: RetryPolicy = RetryPolicy(first_s=2.0, max_s=60.0)
    launch_visible_s: float = 5.0  # by then Airflow's list of runs has a run that was launched
    log_again_s: float = 600.0  # for a problem that lasts
    list_tasks_s: float = 15.0  # for the log
    runnable_cache_s: float = 5.0  # for a DAG that is neither paused nor broken
    # Between two questions whether another Dagster run of the same group is at work: an earlier
    # attempt, or a re-execution.
    run_group_s: float = 2.0
    status_s: float = 2.0  # between two questions whether the Dagster run is being canceled
    launch_end_s: float = 30.0  # for triggers under way when the Dagster run is canceled
    cancel_s: float = 50.0  # for stopping DAG runs; Dagster gives a canceled run a minute
    # Before a step is repeated after an error that is not Airflow's, as of Dagster's database; no
    # longer than `heartbeat_lost_s`, as nothing writes heartbeats meanwhile.
    repeat_step_s: float = 15.0
    # Before the stop of a DAG run is repeated: Airflow's scheduler may have overwritten it.
    repeat_stop_s: float = 3.0
    after_main_s: float = 30.0  # of polls of the status after the main thread has ended

    # Heartbeats
    heartbeat_s: float = 10.0
    # A worker without a heartbeat for so long is dead. `dagster-daemon run -m` replaces the code
    # server, which measures it, every minute.
    heartbeat_lost_s: float = 45.0
    # On Dagster+, whose client waits a minute for an answer, and tries again for another one.
    heartbeat_lost_on_plus_s: float = 150.0
    next_step_lost_s: float = 240.0  # between steps, and before the end of the Dagster run
    waiting_step_lost_s: float = 1800.0  # while a process or resources start, or a slot is missing

    def find_rest_s(self, deadline: float) -> float:
        """The time until a deadline by the monotonic clock."""
        return deadline - self.monotonic()
