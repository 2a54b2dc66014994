"""Ticks that go on while there is no news."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.scheduler.instigation import SensorInstigatorData

from federation_defs.dagster_io import long_poll as module
from federation_defs.dagster_io.long_poll import count_threads, long_poll
from federation_defs.timing import Timing
from tests.contract.storages import OpenInstance
from tests.unit.sensors import store_sensor

THREADS = {"use_threads": True, "num_workers": 3}


class Ticks:
    """Evaluates ticks by a clock that only pauses advance.

    Attributes:
        shares: That the polls so far were given.
        polled_s: When each of them began.
    """

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance, self.now_s = instance, 0.0
        self.timing = Timing(monotonic=lambda: self.now_s, sleep=self.sleep)
        self.shares: list[float] = []
        self.polled_s: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def tick(
        self,
        interval_s: float | None = 4.0,
        news_after: int = 99,
        takes_s: float = 0.0,
        started_at: float | None = 1.0,
    ) -> int:
        """Return the number of the poll whose result the tick has."""

        def poll(share: float) -> tuple[int, float | None]:
            self.shares.append(share)
            self.polled_s.append(self.now_s)
            self.now_s += takes_s
            count = len(self.polled_s)
            return count, None if count >= news_after else interval_s

        with dg.build_sensor_context(self.instance, last_sensor_start_time=started_at) as context:
            return long_poll(context, self.instance, self.timing, poll)


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
    assert ticks.tick() == 3
    assert ticks.polled_s == [0, 4, 8]
    assert ticks.shares == [1, 0.5, 0.5]  # so that Dagster does not end the tick


def test_news_ends_a_tick(build_ticks: Callable[..., Ticks]) -> None:
    ticks = build_ticks(THREADS)
    assert ticks.tick(news_after=2) == 2
    assert ticks.tick(interval_s=None) == 3
    assert ticks.polled_s == [0, 4, 4]


def test_the_interval_is_between_the_beginnings_of_polls(
    build_ticks: Callable[..., Ticks],
) -> None:
    ticks = build_ticks(THREADS)
    ticks.tick(takes_s=1)
    assert ticks.polled_s == [0, 4, 8]
    slow = Ticks(ticks.instance)
    slow.tick(takes_s=5)
    assert slow.polled_s == [0, 5]


def test_a_rare_poll_is_left_to_the_next_tick(build_ticks: Callable[..., Ticks]) -> None:
    ticks = build_ticks(THREADS)
    assert ticks.tick(interval_s=10) == 1
    assert ticks.now_s == 0


@pytest.mark.parametrize("sensors", [None, {}, {"use_threads": False, "num_workers": 9}])
def test_a_daemon_without_threads_evaluates_one_sensor_after_the_other(
    build_ticks: Callable[..., Ticks], sensors: dict[str, Any] | None
) -> None:
    assert build_ticks(sensors).tick() == 1


def test_a_person_who_evaluates_a_sensor_in_the_ui_does_not_wait(
    build_ticks: Callable[..., Ticks],
) -> None:
    assert build_ticks(THREADS).tick(started_at=None) == 1


def test_the_daemon_needs_a_thread_for_each_sensor_that_ticks(
    build_ticks: Callable[..., Ticks],
) -> None:
    ticks = build_ticks(THREADS)
    now = ticks.timing.utc_now().timestamp()
    for number, ticked_at in enumerate([now, now - 3600, now - 299, now - 1, None]):
        data = SensorInstigatorData(last_tick_start_timestamp=ticked_at)
        store_sensor(ticks.instance, f"team{number % 2}", f"sensor{number}", data)
    assert ticks.tick() == 3
    data = SensorInstigatorData(last_tick_start_timestamp=now)
    store_sensor(ticks.instance, "others", "fourth", data)
    ticks.now_s += 3600  # the count is some seconds old
    fresh = Ticks(ticks.instance)
    fresh.timing = Timing(
        monotonic=ticks.timing.monotonic, sleep=ticks.timing.sleep, count_sensors_s=0
    )
    assert fresh.tick() == 1


def test_the_code_server_keeps_threads_for_others(build_ticks: Callable[..., Ticks]) -> None:
    ticks = build_ticks(THREADS)
    with taking_all_threads():
        assert ticks.tick() == 1
    assert ticks.tick(news_after=3) == 3


def test_a_poll_that_fails_gives_its_thread_back(build_ticks: Callable[..., Ticks]) -> None:
    ticks = build_ticks(THREADS)

    def poll(share: float) -> tuple[None, float]:
        if share < 1:
            raise RuntimeError
        return None, 2.0

    for _ in range(100):
        with (
            dg.build_sensor_context(ticks.instance, last_sensor_start_time=1.0) as context,
            pytest.raises(RuntimeError),
        ):
            long_poll(context, ticks.instance, ticks.timing, poll)


@contextmanager
def taking_all_threads() -> Iterator[None]:
    taken = 0
    while module.long_ticks.acquire(blocking=False):
        taken += 1
    try:
        yield
    finally:
        module.long_ticks.release(taken)


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
