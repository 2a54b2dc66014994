"""Ticks that go on while there is no news."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.sensor_definition import SensorType
from dagster._core.remote_origin import RegisteredCodeLocationOrigin
from dagster._core.scheduler.instigation import InstigatorStatus, SensorInstigatorData

from federation_defs.dagster_io.long_poll import count_threads, long_poll
from federation_defs.errors import TickOutdatedError
from federation_defs.timing import Timing
from tests.contract.storages import OpenInstance
from tests.unit.sensors import store_sensor

THREADS = {"use_threads": True, "num_workers": 3}
SENSOR, LOCATION = "sales__events", "sales_team"


class Ticks:
    """Evaluates ticks of a sensor by a clock that only pauses advance.

    Attributes:
        shares: That the polls so far were given.
        polled_s: When each of them began.
        began_at: When the daemon has begun the tick, in seconds since 1970.
        delay_s: How long before the code server.
        at_pause: Is called at the end of each pause.
    """

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance, self.now_s = instance, 0.0
        self.began_at, self.delay_s = time.time(), 0.0
        self.timing = Timing(
            monotonic=lambda: self.now_s,
            utc_now=lambda: datetime.fromtimestamp(self.began_at + self.delay_s, timezone.utc),
            sleep=self.sleep,
            count_sensors_s=0,
            sensor_state_s=1e-9,
        )
        self.shares: list[float] = []
        self.polled_s: list[float] = []
        self.at_pause: Callable[[], object] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.at_pause()

    def tick(
        self,
        interval_s: float | None = 4.0,
        news_after: int = 99,
        takes_s: float = 0.0,
        during: Callable[[], object] = lambda: None,
        started_at: float | None = 1.0,
        ticked_at: float | None = None,
        threads: int = 32,
        lead_s: float | None = None,
    ) -> int:
        """Return the number of the poll whose result the tick has."""

        def poll(share: float) -> tuple[int, float | None]:
            self.shares.append(share)
            self.polled_s.append(self.now_s)
            self.now_s += takes_s
            during()
            count = len(self.polled_s)
            return count, None if count >= news_after else interval_s

        with dg.SensorEvaluationContext(
            instance_ref=None,
            instance=self.instance,
            last_tick_completion_time=ticked_at,
            last_sensor_start_time=started_at,
            last_run_key=None,
            cursor="as stored",
            repository_name=None,
            sensor_name=SENSOR,
            code_location_origin=RegisteredCodeLocationOrigin(LOCATION),
        ) as context:
            return long_poll(context, self.instance, self.timing, poll, threads, lead_s=lead_s)

    def store(self, name: str = SENSOR, location: str = LOCATION, **changed: Any) -> None:
        """Store a sensor that has just ticked."""
        status = changed.pop("status", InstigatorStatus.DECLARED_IN_CODE)
        at = self.began_at
        given = {"last_tick_start_timestamp": at, "cursor": "as stored", **changed}
        store_sensor(self.instance, location, name, SensorInstigatorData(**given), status)

    def store_automation(self, name: str, at_s: float, **changed: Any) -> None:
        """Store a sensor of automation conditions that has ticked so long after the tick began."""
        # As the daemon leaves it, which forgets when the last tick started (1.13).
        ticked = {"last_tick_start_timestamp": None, "last_tick_timestamp": self.began_at + at_s}
        self.store(name, sensor_type=SensorType.AUTO_MATERIALIZE, **ticked, **changed)


@pytest.fixture
def build_ticks(open_instance: OpenInstance, tmp_path: Path) -> Iterator[Callable[..., Ticks]]:
    with ExitStack() as stack:

        def build(sensors: dict[str, Any] | None = None) -> Ticks:
            settings = {} if sensors is None else {"sensors": sensors}
            return Ticks(stack.enter_context(open_instance(tmp_path / "dagster", **settings)))

        yield build


def test_a_tick_without_news_goes_on_until_the_daemons_loop(
    build_ticks: Callable[..., Ticks],
) -> None:
    ticks = build_ticks(THREADS)
    assert ticks.tick(interval_s=2) == 6
    assert ticks.polled_s == [0, 2, 4, 5, 7, 9]
    assert ticks.shares == [1, *[0.5] * 5]  # so that Dagster does not end the tick


def test_news_ends_a_tick(build_ticks: Callable[..., Ticks]) -> None:
    ticks = build_ticks(THREADS)
    assert ticks.tick(news_after=2) == 2
    assert ticks.tick(interval_s=None) == 3
    assert ticks.polled_s == [0, 4, 4]


@pytest.mark.parametrize(
    ("interval_s", "takes_s", "expected", "ends_at_s"),
    [
        (1, 0, [*range(10)], 9),
        (2, 0.9, [0, 2, 4, 5, 7, 9], 9.9),
        (3.15, 0, [0, 3.15, 5], 6.1),  # the daemon's next loop would begin another tick at once
        (4, 0, [0, 4, 5], 6.1),
        (5, 0, [0, 5], 6.1),
        (7, 0, [0], 0),
        (1, 3, [0, 3, 6], 9),
        (2, 6, [0], 6),
        (60, 0, [0], 0),
    ],
)
def test_polls_begin_at_the_interval_and_end_before_the_daemons_loop(
    build_ticks: Callable[..., Ticks],
    interval_s: float,
    takes_s: float,
    expected: list[float],
    ends_at_s: float,
) -> None:
    """The next tick polls after ten seconds: not much sooner than the interval is."""
    ticks = build_ticks(THREADS)
    ticks.tick(interval_s=interval_s, takes_s=takes_s)
    assert ticks.polled_s == expected
    assert ticks.now_s == pytest.approx(ends_at_s)


@pytest.mark.parametrize(
    ("conditions_at_s", "interval_s", "expected"),
    [
        ([3.1], 2, [2.3, 7.3]),  # at 4.3, news would end the tick after the daemon's next loop
        ([3.1], 1, [2.3, 3.3, 7.3, 8.3]),
        ([-1.9], 2, [2.3, 7.3]),
        ([3.1 - 250], 2, [2.3, 7.3]),
        ([0.9], 2, [0.1, 2.1, 4.1, 5.1, 7.1, 9.1]),
        ([0.7], 2, [4.2, 9.2]),  # not at 4.9: news would end the tick after the next loop
        ([4.5], 2, [3.7, 8.7]),
        ([4.5], 5.4, [3.7, 8.7]),
        ([4.5], 60, [3.7]),
        ([-1.5, -1.9, -1.7, -6.5, -250], 2, [2.3, 7.3]),  # of one loop, the first
        ([-6, -5.2, -4.4, -3.6, -2.8, -2], 2, [0, 2, 4, 5, 7, 9]),  # loops without a pause
        ([-4, -2.6, -1.3], 2, [0, 2, 4, 5, 7, 9]),
        ([-301], 2, [0, 2, 4, 5, 7, 9]),
        ([3700], 2, [0, 2, 4, 5, 7, 9]),
    ],
)
def test_polls_are_over_when_the_daemon_evaluates_conditions(
    build_ticks: Callable[..., Ticks],
    conditions_at_s: list[float],
    interval_s: float,
    expected: list[float],
) -> None:
    """One in each loop of the daemon is over just before. Seconds are since the tick began."""
    ticks = build_ticks({"use_threads": True, "num_workers": 9})
    ticks.store()
    for number, at_s in enumerate(conditions_at_s):
        ticks.store_automation(f"automation{number}", at_s)
    ticks.store_automation("switched_off", 2, status=InstigatorStatus.STOPPED)
    ticks.tick(interval_s, lead_s=0.8)
    assert ticks.polled_s == pytest.approx(expected, abs=0.01)
    ticks.now_s, ticks.polled_s = 0, []
    ticks.tick(interval_s, lead_s=0.8, started_at=None)  # by a person
    ticks.tick(interval_s, lead_s=0.8, threads=2)
    ticks.tick(interval_s, news_after=3)
    assert ticks.polled_s == [0, 0, 0]


@pytest.mark.parametrize(
    ("delay_s", "expected"), [(0.3, [2.0, 7.0]), (-0.3, [2.3, 7.3]), (9, [2.3, 7.3])]
)
def test_polls_are_as_long_after_the_beginning_of_the_tick_if_its_code_begins_later(
    build_ticks: Callable[..., Ticks], delay_s: float, expected: list[float]
) -> None:
    """By a clock that is wrong, it began in the future, or long ago."""
    ticks = build_ticks(THREADS)
    ticks.store()
    ticks.store_automation("automation", 3.1)
    ticks.delay_s = delay_s
    ticks.tick(2, lead_s=0.8)
    assert ticks.polled_s == pytest.approx(expected, abs=0.01)


def test_a_sensor_that_is_changed_before_the_first_poll_does_not_poll(
    build_ticks: Callable[..., Ticks],
) -> None:
    ticks = build_ticks(THREADS)
    ticks.store()
    ticks.store_automation("automation", 3)
    ticks.at_pause = lambda: ticks.store(status=InstigatorStatus.STOPPED)
    with pytest.raises(TickOutdatedError):
        ticks.tick(lead_s=0.8)
    assert ticks.polled_s == []


@pytest.mark.parametrize(
    "sensors", [None, {}, {"use_threads": False, "num_workers": 9}, {"use_threads": True}]
)
def test_a_daemon_that_may_lack_threads_is_not_kept_waiting(
    build_ticks: Callable[..., Ticks], sensors: dict[str, Any] | None
) -> None:
    assert build_ticks(sensors).tick() == 1


def test_a_person_who_evaluates_a_sensor_in_the_ui_does_not_wait(
    build_ticks: Callable[..., Ticks],
) -> None:
    ticks = build_ticks(THREADS)
    assert ticks.tick(started_at=None) == 1
    assert ticks.tick(started_at=None, ticked_at=1.0) == 4  # the daemon, after a cursor was set


def test_the_daemon_needs_a_thread_for_each_sensor_that_ticks(
    build_ticks: Callable[..., Ticks],
) -> None:
    ticks = build_ticks(THREADS)
    now = ticks.timing.utc_now().timestamp()
    ticks.store()
    for number, ticked_at in enumerate([now - 3600, now - 299, now - 1, None]):
        ticks.store(f"sensor{number}", f"team{number % 2}", last_tick_start_timestamp=ticked_at)
    ticks.store("sales__automation", sensor_type=SensorType.AUTO_MATERIALIZE)
    assert ticks.tick() == 3
    ticks.store("fourth", "others")
    assert ticks.tick() == 4


def test_the_code_server_needs_a_thread_for_each_of_its_sensors_and_two_more(
    build_ticks: Callable[..., Ticks],
) -> None:
    ticks = build_ticks({"use_threads": True, "num_workers": 99})
    ticks.store()
    for number in range(9):
        ticks.store(f"sensor{number}", "others")
    assert ticks.tick(threads=3) == 3
    assert ticks.tick(threads=2) == 4
    ticks.store("second")
    assert ticks.tick(threads=3) == 5
    assert ticks.tick(threads=4) == 8


@pytest.mark.parametrize("settings", [THREADS, None])
@pytest.mark.parametrize(
    ("interval_s", "takes_s", "news_after", "polls"),
    [(2, 3, 1, 1), (2, 1, 3, 3), (2, 6, 99, 1), (7, 3, 99, 1)],
)
def test_a_sensor_that_is_changed_during_a_slow_poll_stays_as_it_is_then(
    build_ticks: Callable[..., Ticks],
    settings: dict[str, Any] | None,
    interval_s: float,
    takes_s: float,
    news_after: int,
    polls: int,
) -> None:
    """A poll asks a user's function, or waits for an Airflow. It may be the tick's only one."""
    ticks = build_ticks(settings)
    ticks.store()
    polls = polls if settings else 1

    def reset() -> None:
        if len(ticks.polled_s) == polls:
            ticks.store(cursor=None)

    with pytest.raises(TickOutdatedError):
        ticks.tick(interval_s, news_after, takes_s, reset)
    assert len(ticks.polled_s) == polls


@pytest.mark.parametrize(
    "change", [{"cursor": None}, {"cursor": "set"}, {"status": InstigatorStatus.STOPPED}]
)
def test_a_sensor_that_a_person_changes_during_a_tick_stays_as_it_is_then(
    build_ticks: Callable[..., Ticks], change: dict[str, Any]
) -> None:
    """Dagster stores the cursor of a tick whatever happened meanwhile, unless it fails (1.13)."""
    ticks = build_ticks(THREADS)
    ticks.store()
    assert ticks.tick() == 3
    ticks.at_pause = lambda: ticks.store(**change)
    with pytest.raises(TickOutdatedError, match="'sales__events' was switched off, or its cursor"):
        ticks.tick()
    assert len(ticks.polled_s) == 4  # it was not polled once more
    with pytest.raises(TickOutdatedError):  # changed before, or during the first poll
        ticks.tick()
    assert len(ticks.polled_s) == 5
    assert ticks.tick(started_at=None) == 6  # by a person, with another cursor


def test_polls_share_what_was_read_of_sensors(
    build_ticks: Callable[..., Ticks], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = build_ticks(THREADS)
    ticks.store()
    reads, read = list[None](), ticks.instance.all_instigator_state

    def read_and_count() -> Sequence[Any]:
        reads.append(None)
        return read()

    monkeypatch.setattr(ticks.instance, "all_instigator_state", read_and_count)
    ticks.timing = replace(ticks.timing, sensor_state_s=60, count_sensors_s=60)
    assert ticks.tick(interval_s=2) == 6
    assert len(reads) == 1
    ticks.timing = replace(ticks.timing, sensor_state_s=1e-9)
    assert ticks.tick(interval_s=2) == 12
    assert len(reads) == 1 + 6


@pytest.mark.parametrize(
    ("grpc", "code_server", "expected"),
    [
        (None, None, 6),
        ("32", None, 6),
        (None, "32", 6),
        ("32", "40", 32),
        ("3", "2", 2),
        ("", "x", 6),
    ],
)
def test_the_threads_of_a_code_server_are_those_of_its_settings(
    grpc: str | None, code_server: str | None, expected: int
) -> None:
    given = {"DAGSTER_GRPC_MAX_WORKERS": grpc, "DAGSTER_CODE_SERVER_MAX_WORKERS": code_server}
    environment = {name: value for name, value in given.items() if value is not None}
    assert count_threads(environment, cpus=2) == expected
