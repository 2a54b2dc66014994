"""When an instance is polled, and for how long."""

from __future__ import annotations

import itertools
from contextlib import ExitStack

import pytest

from federation_defs.errors import UnreachableError
from federation_defs.observation.poll_interval import PollInterval
from federation_defs.timing import Timing

ERROR = UnreachableError("metrics", "http://metrics", "timed out", is_late=True)


class Clock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.timing = Timing(monotonic=lambda: self.now_s)

    def build_interval(self, interval_s: float = 2.0) -> PollInterval:
        return PollInterval(self.timing, interval_s)

    def tick(
        self, interval: PollInterval, after_s: float = 5.0, waiting_runs: int = 0
    ) -> str | None:
        """Poll in a tick, so long after the one before, or return why it does not poll."""
        self.now_s += after_s
        with interval.tick(waiting_runs) as reason:
            if reason is None:
                with interval.poll():
                    return None
            return reason


@pytest.fixture
def clock() -> Clock:
    return Clock()


def fail_twice(clock: Clock, interval: PollInterval) -> None:
    for _ in range(2):
        assert clock.tick(interval) is None
        interval.record_error(ERROR)


def test_a_tick_that_begins_in_time_takes_the_usual_time(clock: Clock) -> None:
    interval = clock.build_interval()
    for after_s in (3600, 5, 9):  # the sensor has just been switched on
        assert clock.tick(interval, after_s) is None
        assert interval.time_share == 1.0


def test_a_tick_that_began_late_is_short(clock: Clock) -> None:
    interval = clock.build_interval()
    clock.tick(interval)
    assert clock.tick(interval, 11) is None
    assert interval.time_share == 0.2
    clock.tick(interval, 5)
    assert interval.time_share == 1.0


def test_polls_begin_as_early_as_reports_have_usually_taken(clock: Clock) -> None:
    interval = clock.build_interval()
    clock.tick(interval)
    assert interval.lead_s == pytest.approx(0.8)  # nothing is known yet
    for _ in range(10):
        interval.record_reports(0.4)
    assert interval.lead_s == pytest.approx(1.0)
    interval.record_reports(9.0)  # once
    assert interval.lead_s == pytest.approx(1.0)
    for _ in range(9):
        interval.record_reports(1.5)
    assert interval.lead_s is None


def test_a_tick_that_is_late_polls_at_once(clock: Clock) -> None:
    interval = clock.build_interval()
    clock.tick(interval)
    clock.tick(interval, 11)
    assert interval.lead_s is None
    clock.tick(interval)
    assert interval.lead_s == pytest.approx(0.8)


def test_a_tick_after_an_error_polls_at_once(clock: Clock) -> None:
    interval = clock.build_interval()
    clock.tick(interval)
    interval.record_error(ERROR)
    clock.tick(interval)
    assert interval.lead_s is None


@pytest.mark.parametrize(
    ("interval_s", "waiting_runs", "polls_at_once"),
    [(60, 0, True), (2, 60, True), (2, 24, False), (5, 0, False), (10, 0, False)],
)
def test_a_tick_polls_at_once_where_others_do_not_poll(
    clock: Clock, interval_s: float, waiting_runs: int, *, polls_at_once: bool
) -> None:
    """A poll some seconds later would make the interval longer by a tick."""
    interval = clock.build_interval(interval_s)
    clock.tick(interval, waiting_runs=waiting_runs)
    assert (interval.lead_s is None) == polls_at_once


def test_a_few_waiting_runs_skip_no_tick(clock: Clock) -> None:
    """Ticks are five seconds apart at best, so that intervals below that are kept anyway."""
    interval = clock.build_interval()
    for _ in range(3):
        assert clock.tick(interval, 0.8, waiting_runs=24) is None


def test_a_tick_after_a_long_interval_is_not_late(clock: Clock) -> None:
    interval = clock.build_interval(60)
    for _ in range(3):
        assert clock.tick(interval, 63) is None
        assert interval.time_share == 1.0


@pytest.mark.parametrize(
    ("interval_s", "expected_s"), [(11, 10), (13, 20), (20, 20), (60, 60), (63, 70)]
)
def test_ticks_within_a_long_interval_are_skipped_and_the_others_are_in_time(
    clock: Clock, interval_s: float, expected_s: float
) -> None:
    """The sensor ticks at least every 10 s, to measure heartbeats."""
    interval, polled_at = clock.build_interval(interval_s), list[float]()
    for _ in range(50):
        if (reason := clock.tick(interval, 10.3)) is None:
            polled_at.append(clock.now_s)
            assert interval.time_share == 1.0
        else:
            assert "The interval is" in reason
    gaps = {round(after - before, 1) for before, after in itertools.pairwise(polled_at)}
    assert gaps == {round(1.03 * expected_s, 1)}


def test_a_tick_that_does_not_ask_airflow_begins_no_interval(clock: Clock) -> None:
    """It takes over from another process, or asks the event log where to begin."""
    interval = clock.build_interval(60)
    with interval.tick(0) as reason:
        assert reason is None
    assert clock.tick(interval, 10) is None
    assert clock.tick(interval, 10) is not None


def test_of_instances_that_do_not_answer_two_are_asked_again_at_a_time(clock: Clock) -> None:
    intervals = [clock.build_interval() for _ in range(4)]
    for interval in intervals:
        fail_twice(clock, interval)
    clock.now_s += 60
    with ExitStack() as ticks:
        reasons = [ticks.enter_context(interval.tick(0)) for interval in intervals]
        healthy = clock.build_interval()
        assert clock.tick(healthy) is None
    assert reasons[:2] == [None, None]
    assert all(
        "retried after other instances that do not answer" in (reason or "")
        for reason in reasons[2:]
    )
    assert clock.tick(intervals[3]) is None


def test_the_first_time_an_instance_is_asked_again_it_waits_for_no_other(clock: Clock) -> None:
    silent, hiccup = [clock.build_interval() for _ in range(2)], clock.build_interval()
    for interval in silent:
        fail_twice(clock, interval)
    clock.tick(hiccup, 60)
    hiccup.record_error(ERROR)
    with ExitStack() as ticks:
        assert [ticks.enter_context(interval.tick(0)) for interval in silent] == [None, None]
        assert clock.tick(hiccup) is None


def test_an_instance_that_has_answered_lets_others_be_asked_again(clock: Clock) -> None:
    """It may have many runs to report."""
    intervals = [clock.build_interval() for _ in range(3)]
    for interval in intervals:
        fail_twice(clock, interval)
    clock.now_s += 60
    with ExitStack() as ticks:
        assert [ticks.enter_context(interval.tick(0)) for interval in intervals[:2]] == [None, None]
        with intervals[0].poll():
            assert clock.tick(intervals[2], 0) is not None
        assert clock.tick(intervals[2], 0) is None
    for interval in intervals[:2]:
        assert clock.tick(interval, 0) is None


def test_an_instance_that_is_asked_again_has_the_usual_time_to_answer(clock: Clock) -> None:
    interval = clock.build_interval()
    clock.tick(interval)
    interval.record_error(ERROR)
    assert clock.tick(interval, 60) is None
    assert interval.time_share == 1.0


@pytest.mark.parametrize(
    ("waiting_runs", "usual_s", "interval_s"),
    [
        *[(0, 2, 2), (1, 2, 2), (10, 2, 2), (40, 2, 8), (150, 2, 30), (900, 2, 60)],
        *[(11, 20, 20), (90, 20, 20), (150, 20, 30), (900, 20, 60)],
    ],
)
def test_the_interval_grows_with_the_dagster_runs_that_wait_for_the_instance(
    clock: Clock, waiting_runs: int, usual_s: float, interval_s: float
) -> None:
    interval, polled_at = clock.build_interval(usual_s), list[float]()
    for _ in range(100):
        reason = clock.tick(interval, 5, waiting_runs)
        if reason is None:
            polled_at.append(clock.now_s)
        elif interval_s > usual_s:
            assert f"{waiting_runs} Dagster runs poll the instance" in reason
    assert interval.seconds == interval_s
    expected_s = max(5, 5 * -(-(interval_s - 1) // 5))  # the next tick
    gaps = {after - before for before, after in itertools.pairwise(polled_at)}
    assert gaps == {expected_s}


def test_dagster_runs_that_wait_do_not_shorten_a_long_interval(clock: Clock) -> None:
    interval = clock.build_interval(300)
    assert [clock.tick(interval, 300, 200) for _ in range(3)] == [None] * 3
