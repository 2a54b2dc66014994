"""How fast an instance is asked: by the turns themselves, and by what arrives at the server."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count, pairwise
from typing import Any

import pytest

from federation_defs.airflow.http import RateLimiter
from federation_defs.errors import AirflowError
from tests.contract.declaring import QUICK, declare
from tests.contract.fakes.airflow import Asked, FakeAirflow, asks
from tests.contract.fakes.faults import answer


def take_turns(pace: RateLimiter, seconds: float, threads: int = 1) -> list[float]:
    """When turns came, of so many threads that each wait for the next, for so long."""
    ends = time.monotonic() + seconds

    def take() -> list[float]:
        turns = []
        while time.monotonic() < ends:
            pace.acquire()
            turns.append(time.monotonic())
        return turns

    with ThreadPoolExecutor(threads) as pool:
        takers = [pool.submit(take) for _ in range(threads)]
        return sorted(turn for taker in takers for turn in taker.result(timeout=60))


def assert_keeps_to(per_minute: int, turns: list[float], late_s: float = 0.02) -> None:
    """In any window there are at most a quarter of a minute's turns, and its share of the rest:
    so in one of a minute, at most all of them.

    Args:
        late_s: How much later than its turn the first of a window may have been noted.
    """
    burst = max(1, per_minute // 4)
    per_second = (per_minute - burst) / 60
    for first, begins in enumerate(turns):
        for last in range(first + burst, len(turns)):
            window_s = turns[last] - begins
            assert last - first + 1 <= burst + (window_s + late_s) * per_second, window_s


@pytest.mark.parametrize(("per_minute", "threads"), [(600, 1), (6000, 8)])
def test_no_window_has_more_turns_than_its_share(per_minute: int, threads: int) -> None:
    turns = take_turns(RateLimiter(per_minute), 0.5, threads)
    assert_keeps_to(per_minute, turns)
    # Nor fewer: they are saved up and given out as they come.
    assert len(turns) >= per_minute // 4 + 0.4 * per_minute * 3 / 4 / 60


def test_a_quarter_comes_at_once_and_the_rest_evenly() -> None:
    """Of 240 a minute: 60, and then one each 1/3 s."""
    pace, began = RateLimiter(240), time.monotonic()
    turns = []
    for _ in range(62):
        pace.acquire()
        turns.append(time.monotonic() - began)
    assert turns[59] < 0.2
    assert 0.3 < turns[60] < 0.6
    assert 0.6 < turns[61] < 1


def test_quiet_saves_turns_up_and_no_more_than_a_quarter() -> None:
    pace = RateLimiter(2400)  # 600 at once, and then 30 a second
    for _ in range(600):
        pace.acquire()
    time.sleep(0.3)  # of quiet: what is timed here is time itself
    turns = take_turns(pace, 0.2)
    assert 9 <= sum(turn - turns[0] < 0.03 for turn in turns) <= 11


def test_a_pause_holds_all_threads_back_and_frees_no_burst_after_it() -> None:
    pace, began = RateLimiter(2400), time.monotonic()
    pace.acquire()
    pace.pause(0.3)
    turns = take_turns(pace, 0.5, threads=4)
    assert min(turns) - began >= 0.3
    assert sum(turn - began < 0.5 for turn in turns) <= 1 + 0.2 * 30 + 1


def test_a_shorter_pause_does_not_shorten_a_longer_one() -> None:
    pace, began = RateLimiter(6000), time.monotonic()
    pace.pause(0.3)
    pace.pause(0.1)
    pace.acquire()
    assert time.monotonic() - began >= 0.3


def collect(server: FakeAirflow) -> Callable[[], list[float]]:
    """When requests came to the server, from now on."""
    times: list[float] = []

    def note(_: Asked) -> bool:
        times.append(time.monotonic())
        return False

    server.fail_next(note, answer(500))
    return lambda: sorted(times)


def ask_for(seconds: float, ask: Callable[[], Any], threads: int) -> None:
    ends = time.monotonic() + seconds

    def go_on() -> None:
        while time.monotonic() < ends:
            with suppress(AirflowError):
                ask()

    with ThreadPoolExecutor(threads) as pool:
        for asking in [pool.submit(go_on) for _ in range(threads)]:
            asking.result(timeout=60)


def test_no_more_arrives_at_the_server_than_is_declared_whoever_asks() -> None:
    """Retries, sign-ins and the look for the version are requests as others are."""
    with FakeAirflow("v2") as server:
        arrived = collect(server)
        client = declare(server.url, http={**QUICK, "max_requests_per_minute": 1200})
        asked = count(1)

        def ask() -> None:
            client.fetch_dags()
            if next(asked) % 10 == 0:
                server.change_secret()  # which has the next ones sign in again
                server.fail_next(asks("GET", "/dags"), answer(503))

        ask_for(1.5, ask, threads=8)
        assert server.count("POST", "/auth/token") > 5
        times = arrived()
    assert len(times) > 310, "then nothing was held back"
    assert_keeps_to(1200, times, late_s=0.2)


def test_who_is_asked_to_come_later_is_not_asked_by_other_threads_meanwhile() -> None:
    with FakeAirflow("v2") as server:
        client = declare(server.url, http=QUICK)
        client.fetch_dags()
        arrived = collect(server)
        server.fail_next(asks("GET", "/dags"), answer(429, {}, {"Retry-After": "3"}))
        ask_for(0.3, client.fetch_dags, threads=8)
        times = arrived()
    gaps = [later - sooner for sooner, later in pairwise(times)]
    assert max(gaps) > 1.5
    # Those whose turn had come already, one per thread; on a busy machine they take their time.
    assert sum(moment < times[0] + 1.5 for moment in times) <= 8
