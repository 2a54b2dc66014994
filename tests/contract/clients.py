"""Clients as a defs.yaml declares them, a fake Airflow behind a fault proxy, and fake clocks."""

from __future__ import annotations

import os
import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from threading import Condition, Event, Thread
from types import MappingProxyType
from typing import Any, TypeVar

import pytest

from federation_defs.airflow.client import AirflowClient, build_client
from federation_defs.declaration import InstanceDeclaration
from federation_defs.timing import RetryPolicy, Timing
from tests.contract.fakes.airflow import PASSWORD, USERNAME, FakeAirflow
from tests.contract.fakes.fault_proxy import FaultProxy

ACCOUNT_HINT = "METRICS_PASSWORD"
ACCOUNT = {"username": USERNAME, "password": PASSWORD}
SIGN_INS = {"v1": {"type": "basic", **ACCOUNT}, "v2": {"type": "password", **ACCOUNT}}
NO_RATE_LIMIT = {"max_requests_per_minute": 60_000}
# For tests of what stalls. An overloaded machine has to answer all else within them.
SHORT_TIMEOUTS: dict[str, Any] = {
    "connect_timeout": 4,
    "read_timeout": 4,
    "answer_timeout": 8,
    **NO_RATE_LIMIT,
}
# For all other tests.
LONG_TIMEOUTS: dict[str, Any] = {
    "connect_timeout": 30,
    "read_timeout": 30,
    "answer_timeout": 60,
    **NO_RATE_LIMIT,
}
DEADLINE_S = 300  # only matters when a test fails, and has room for a machine that is busy
FAST_RETRIES = Timing(retry_request=RetryPolicy(first_s=0.001, max_s=0.001))

# The variables of a machine's environment that requests, OpenSSL and the clouds' packages read.
AMBIENT_VARIABLES = re.compile(
    r"(?i)(HTTPS?|ALL|NO)_PROXY|SSL_CERT_.*|(REQUESTS|CURL|AWS)_CA_BUNDLE|AWS_.*|GOOGLE_.*"
    r"|CLOUDSDK_.*|GCE_.*|NO_GCE_CHECK"
)

T = TypeVar("T")
F = TypeVar("F")  # a fault of the server, or of the proxy


class FakeClock:
    """A clock that stands still until a test advances it. Sleeping only records the time.

    Attributes:
        now_s: What the clock shows.
        sleeps_s: All pauses so far.
        timing: A `Timing` with this clock.
    """

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.sleeps_s: list[float] = []
        self.timing = replace(FAST_RETRIES, monotonic=lambda: self.now_s, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.sleeps_s.append(seconds)

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


class BlockingClock(FakeClock):
    """A clock that stands still, so that threads sleep until it is released.

    A wait that fails releases it, so that no thread waits for a deadline of its own after that.
    """

    def __init__(self) -> None:
        super().__init__()
        self._asleep = Condition()
        self._released = Event()
        self.timing = replace(self.timing, retry_request=RetryPolicy(0, 0))

    def sleep(self, seconds: float) -> None:
        if seconds <= 0 or self._released.is_set():
            return
        with self._asleep:
            self.sleeps_s.append(seconds)
            self._asleep.notify_all()
        self._expect(self._released.wait(DEADLINE_S), "nobody has released the clock")

    def wait_for_sleepers(self, count: int) -> None:
        with self._asleep:
            are_asleep = self._asleep.wait_for(lambda: len(self.sleeps_s) >= count, DEADLINE_S)
        self._expect(are_asleep, f"{len(self.sleeps_s)} of {count} threads sleep")

    def release(self) -> None:
        self._released.set()

    def _expect(self, is_so: bool, seen: str) -> None:
        if not is_so:
            self.release()
            raise AssertionError(f"after {DEADLINE_S} s, {seen}")


def clear_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove proxies, certificate authorities and cloud accounts from the environment."""
    for name in list(os.environ):
        if AMBIENT_VARIABLES.fullmatch(name):
            monkeypatch.delenv(name)


def declare_client(
    url: str,
    auth: dict[str, Any] | None = None,
    timing: Timing = FAST_RETRIES,
    http: Mapping[str, Any] = MappingProxyType({}),
    **declared: Any,
) -> AirflowClient:
    """Build the client of an instance called metrics.

    Args:
        auth: By default the sign-in of Airflow 3.
        http: Declared in place of `LONG_TIMEOUTS`, key by key.
        declared: Other keys of the declaration.
    """
    values = {"name": "metrics", "url": url, "auth": auth or SIGN_INS["v2"], **declared}
    values["http"] = {**LONG_TIMEOUTS, **http}
    return build_client(InstanceDeclaration.model_validate(values), ACCOUNT_HINT, timing)


@dataclass(frozen=True)
class ProxiedAirflow:
    """A fake Airflow behind a fault proxy, and a client that only knows the proxy."""

    server: FakeAirflow
    proxy: FaultProxy
    client: AirflowClient

    def declare_client(self, **http: Any) -> AirflowClient:
        """Build another client."""
        auth = SIGN_INS[self.server.api]
        return declare_client(self.proxy.url, auth, http=http)


@contextmanager
def start_proxied_airflow(api: str = "v2", **http: Any) -> Iterator[ProxiedAirflow]:
    """Start a fake Airflow with one DAG, and a client that has read it once."""
    with FakeAirflow(api) as server, FaultProxy(server.url) as proxy:
        server.database.add_dag("load_customers")
        client = declare_client(proxy.url, SIGN_INS[api], http=http)
        client.fetch_dags()
        yield ProxiedAirflow(server, proxy, client)


class Stopwatch:
    """Measures how long the `with` block took."""

    seconds = 0.0

    def __enter__(self) -> Stopwatch:
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._began


def call_within(timeout_s: float, call: Callable[[], T]) -> T:
    """Return the call's result, or raise its error. A call that hangs fails, and its thread is
    left behind."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout_s)
    assert not thread.is_alive(), f"the call hangs: not done after {timeout_s} s"
    if errors:
        raise errors[0]
    return results[0]


def check_all(cases: Mapping[str, T], check: Callable[[T], None], timeout_s: float = 60) -> None:
    """Check all cases at the same time, since they mostly wait. Fails with the names of those that
    fail or hang.

    Args:
        timeout_s: For all of them together.
    """
    failures: dict[str, str] = {}

    def run(name: str) -> None:
        try:
            check(cases[name])
        except (Exception, pytest.fail.Exception):  # noqa: BLE001 - reported below
            failures[name] = traceback.format_exc()

    threads = {name: Thread(target=run, args=(name,), daemon=True) for name in cases}
    for thread in threads.values():
        thread.start()
    deadline = time.monotonic() + timeout_s
    for name, thread in threads.items():
        thread.join(max(0, deadline - time.monotonic()))
        if thread.is_alive():
            failures[name] = f"hangs: not done after {timeout_s} s"
    report = "".join(f"\n--- {name}\n{failure}" for name, failure in failures.items())
    assert not failures, f"{len(failures)} of {len(cases)}: {', '.join(failures)}{report}"


def check_all_faults(
    faults: Mapping[str, F],
    check: Callable[[ProxiedAirflow, F], None],
    api: str = "v2",
    **http: Any,
) -> None:
    """Check all faults at the same time, each with a fake Airflow of its own."""
    with ExitStack() as running:
        # Started one by one: Python 3.11 can't compile in threads, which werkzeug's routes need.
        cases = {
            name: (running.enter_context(start_proxied_airflow(api, **http)), fault)
            for name, fault in faults.items()
        }
        check_all(cases, lambda case: check(*case))


def format_error_chain(error: BaseException | None) -> str:
    """Return the error and its causes, as a traceback or a logger shows them."""
    text = ""
    while error is not None:
        text += f"{error!r} {error} "
        error = error.__cause__ or error.__context__
    return text
