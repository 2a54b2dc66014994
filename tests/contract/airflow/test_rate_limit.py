"""The rate limit: when requests may start, and that every request to the server obeys it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.http import RateLimiter
from federation_defs.errors import AirflowError
from tests.contract.clients import (
    DEADLINE_S,
    BlockingClock,
    FakeClock,
    declare_client,
)
from tests.contract.fakes.airflow import FakeAirflow, asks
from tests.contract.fakes.faults import answer


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def acquire(limiter: RateLimiter, clock: FakeClock, count: int) -> list[float]:
    """Return in how many seconds each of the next requests may start."""
    before = len(clock.sleeps_s)
    for _ in range(count):
        limiter.acquire()
    return clock.sleeps_s[before:]


@pytest.mark.parametrize(("per_minute", "threads"), [(1, 1), (600, 1), (6000, 8)])
def test_no_window_has_more_requests_than_its_share(
    clock: FakeClock, per_minute: int, threads: int
) -> None:
    """In any window there are at most a quarter of a minute's requests and its share of the rest:
    so in a minute, no more than all of them."""
    limiter = RateLimiter(per_minute, clock.timing)
    with ThreadPoolExecutor(threads) as pool:
        for acquired in [pool.submit(limiter.acquire) for _ in range(per_minute * 2)]:
            acquired.result(timeout=DEADLINE_S)
    starts = sorted(clock.sleeps_s)
    burst = max(1, per_minute // 4)
    per_second = max(1, per_minute - burst) / 60
    for first in range(0, len(starts), max(1, per_minute // 50)):
        for last in range(first + burst, len(starts), max(1, per_minute // 50)):
            window_s = starts[last] - starts[first]
            assert last - first + 1 <= burst + 1 + window_s * per_second + 1e-6
    # Nor fewer: a request waits no longer than it must.
    assert starts[-1] == pytest.approx((len(starts) - burst) / per_second)


def test_a_quarter_comes_at_once_and_the_rest_evenly(clock: FakeClock) -> None:
    """Of 240 a minute: 60, and then one each 1/3 s."""
    starts = acquire(RateLimiter(240, clock.timing), clock, 63)
    assert starts[:60] == pytest.approx([0] * 60, abs=1e-9)
    assert starts[60:] == pytest.approx([1 / 3, 2 / 3, 1])


@pytest.mark.parametrize(("quiet_s", "saved"), [(0, 0), (0.3, 9), (3600, 600)])
def test_quiet_saves_requests_up_and_no_more_than_a_quarter(
    clock: FakeClock, quiet_s: float, saved: int
) -> None:
    limiter = RateLimiter(2400, clock.timing)  # 600 at once, and then 30 a second
    acquire(limiter, clock, 600)
    clock.advance(quiet_s)
    starts = acquire(limiter, clock, 700)
    assert sum(start < 0.001 for start in starts) == saved


def test_a_pause_delays_all_requests_and_frees_no_burst_after_it(clock: FakeClock) -> None:
    limiter = RateLimiter(2400, clock.timing)
    acquire(limiter, clock, 1)
    limiter.pause(3)
    starts = acquire(limiter, clock, 3)
    assert starts == pytest.approx([3, 3 + 1 / 30, 3 + 2 / 30])


def test_a_shorter_pause_does_not_shorten_a_longer_one(clock: FakeClock) -> None:
    limiter = RateLimiter(6000, clock.timing)
    limiter.pause(3)
    limiter.pause(1)
    assert acquire(limiter, clock, 1) == pytest.approx([3])


@contextmanager
def ask_in_threads(client: AirflowClient, threads: int, times: int) -> Iterator[None]:
    def ask() -> None:
        for _ in range(times):
            with suppress(AirflowError):
                client.fetch_dags()

    with ThreadPoolExecutor(threads) as pool:
        calls = [pool.submit(ask) for _ in range(threads)]
        yield
        for call in calls:
            call.result(timeout=DEADLINE_S)


def test_no_more_requests_arrive_than_declared_whatever_they_are_for() -> None:
    """Retries, sign-ins and version requests count like any other. The clock stands still, so no
    more than the burst of a quarter may arrive."""
    clock = BlockingClock()
    with FakeAirflow("v2") as server:
        client = declare_client(
            server.url, timing=clock.timing, http={"max_requests_per_minute": 160}
        )
        server.fail_next(asks("GET", "/dags"), answer(503), times=5)
        server.fail_next(asks("GET", "/dags"), answer(401), times=5)
        # Alone, as threads share a sign-in: those that wait for another's never sleep.
        with ask_in_threads(client, threads=1, times=4):
            pass
        assert server.count("POST", "/auth/token") == 4
        # So often that none ends within the burst, however late the others start.
        with ask_in_threads(client, threads=8, times=40):
            clock.wait_for_sleepers(8)
            arrived = len(server.requests)
            kinds = {request.path for request in server.requests}
            clock.release()
    assert arrived == 40
    assert kinds == {"/version", "/auth/token", "/dags"}


def test_a_server_that_asks_for_a_pause_is_left_alone_by_all_threads() -> None:
    clock = BlockingClock()
    with FakeAirflow("v2") as server:
        client = declare_client(server.url, timing=clock.timing)
        client.fetch_dags()
        server.fail_next(asks("GET", "/dags"), answer(429, {}, {"Retry-After": "3"}))
        with ask_in_threads(client, threads=1, times=1):
            clock.wait_for_sleepers(1)
            with ask_in_threads(client, threads=8, times=1):
                clock.wait_for_sleepers(9)
                arrived = server.count("GET", "/dags")
                clock.release()
    assert arrived == 2
    assert min(clock.sleeps_s) >= 3
