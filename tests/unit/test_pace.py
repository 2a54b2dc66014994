"""When an instance is polled, and for how long."""

from __future__ import annotations

import itertools
from contextlib import ExitStack

import pytest

from federation_defs.errors import UnreachableError
from federation_defs.observation.pace import Pace
from federation_defs.timing import Timing

ERROR = UnreachableError("metrics", "http://metrics", "timed out", is_late=True)


class Clock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.timing = Timing(monotonic=lambda: self.now_s)

    def build_pace(self, interval_s: float = 2.0) -> Pace:
        return Pace(self.timing, interval_s)

    def tick(self, pace: Pace, after_s: float = 5.0, waiting_runs: int = 0) -> str | None:
        """Poll in a tick, so long after the one before, or return why it does not poll."""
        self.now_s += after_s
        with pace.tick(waiting_runs) as reason:
            if reason is None:
                with pace.poll():
                    return None
            return reason


@pytest.fixture
def clock() -> Clock:
    return Clock()


def may_repeat(pace: Pace) -> bool:
    with pace.repeat_polls() as repeats:
        return repeats


def fail_twice(clock: Clock, pace: Pace) -> None:
    for _ in range(2):
        assert clock.tick(pace) is None
        pace.record_error(ERROR)


def test_a_tick_that_begins_in_time_takes_the_usual_time(clock: Clock) -> None:
    pace = clock.build_pace()
    for after_s in (3600, 5, 9):  # the sensor has just been switched on
        assert clock.tick(pace, after_s) is None
        assert (pace.share, may_repeat(pace)) == (1.0, True)


def test_a_tick_that_waited_for_its_turn_is_short_and_polls_once(clock: Clock) -> None:
    pace = clock.build_pace()
    clock.tick(pace)
    assert clock.tick(pace, 11) is None
    assert (pace.share, may_repeat(pace)) == (0.2, False)
    clock.tick(pace, 5)
    assert (pace.share, may_repeat(pace)) == (1.0, True)


def test_a_long_interval_is_no_wait_for_a_turn(clock: Clock) -> None:
    pace = clock.build_pace(60)
    for _ in range(3):
        assert clock.tick(pace, 63) is None
        assert pace.share == 1.0


@pytest.mark.parametrize(
    ("interval_s", "expected_s"), [(11, 10), (13, 20), (20, 20), (60, 60), (63, 70)]
)
def test_ticks_within_a_long_interval_are_skipped_and_the_others_are_in_time(
    clock: Clock, interval_s: float, expected_s: float
) -> None:
    """The sensor ticks at least every 10 s, to measure heartbeats."""
    pace, polled_at = clock.build_pace(interval_s), list[float]()
    for _ in range(50):
        if (reason := clock.tick(pace, 10.3)) is None:
            polled_at.append(clock.now_s)
            assert pace.share == 1.0
        else:
            assert "The interval is" in reason
    gaps = {round(after - before, 1) for before, after in itertools.pairwise(polled_at)}
    assert gaps == {round(1.03 * expected_s, 1)}


def test_a_tick_that_does_not_ask_airflow_begins_no_interval(clock: Clock) -> None:
    """It takes over from another process, or asks the event log where to begin."""
    pace = clock.build_pace(60)
    with pace.tick(0) as reason:
        assert reason is None
    assert clock.tick(pace, 10) is None
    assert clock.tick(pace, 10) is not None


def test_few_instances_poll_several_times_per_tick(clock: Clock) -> None:
    paces = [clock.build_pace() for _ in range(5)]
    with ExitStack() as ticks:
        repeats = [ticks.enter_context(pace.repeat_polls()) for pace in paces]
    assert repeats == [True, True, True, False, False]
    assert may_repeat(paces[4])


def test_of_instances_that_do_not_answer_two_are_asked_again_at_a_time(clock: Clock) -> None:
    paces = [clock.build_pace() for _ in range(4)]
    for pace in paces:
        fail_twice(clock, pace)
    clock.now_s += 60
    with ExitStack() as ticks:
        reasons = [ticks.enter_context(pace.tick(0)) for pace in paces]
        healthy = clock.build_pace()
        assert clock.tick(healthy) is None
    assert reasons[:2] == [None, None]
    assert all("asked again when it is its turn" in (reason or "") for reason in reasons[2:])
    assert clock.tick(paces[3]) is None


def test_the_first_time_an_instance_is_asked_again_it_waits_for_no_other(clock: Clock) -> None:
    silent, hiccup = [clock.build_pace() for _ in range(2)], clock.build_pace()
    for pace in silent:
        fail_twice(clock, pace)
    clock.tick(hiccup, 60)
    hiccup.record_error(ERROR)
    with ExitStack() as ticks:
        assert [ticks.enter_context(pace.tick(0)) for pace in silent] == [None, None]
        assert clock.tick(hiccup) is None


def test_an_instance_that_has_answered_lets_others_have_their_turn(clock: Clock) -> None:
    """It may have many runs to report."""
    paces = [clock.build_pace() for _ in range(3)]
    for pace in paces:
        fail_twice(clock, pace)
    clock.now_s += 60
    with ExitStack() as ticks:
        assert [ticks.enter_context(pace.tick(0)) for pace in paces[:2]] == [None, None]
        with paces[0].poll():
            assert clock.tick(paces[2], 0) is not None
        assert clock.tick(paces[2], 0) is None
    for pace in paces[:2]:
        assert clock.tick(pace, 0) is None


def test_an_instance_that_is_asked_again_has_the_usual_time_to_answer(clock: Clock) -> None:
    pace = clock.build_pace()
    clock.tick(pace)
    pace.record_error(ERROR)
    assert clock.tick(pace, 60) is None
    assert pace.share == 1.0


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
    pace, polled_at = clock.build_pace(usual_s), list[float]()
    for _ in range(100):
        reason = clock.tick(pace, 5, waiting_runs)
        if reason is None:
            polled_at.append(clock.now_s)
        elif interval_s > usual_s:
            assert f"{waiting_runs} Dagster runs poll the instance" in reason
    assert pace.interval_s == interval_s
    expected_s = max(5, 5 * -(-(interval_s - 1) // 5))  # the next tick
    gaps = {after - before for before, after in itertools.pairwise(polled_at)}
    assert gaps == {expected_s}


def test_dagster_runs_that_wait_do_not_shorten_a_long_interval(clock: Clock) -> None:
    pace = clock.build_pace(300)
    assert [clock.tick(pace, 300, 200) for _ in range(3)] == [None] * 3
