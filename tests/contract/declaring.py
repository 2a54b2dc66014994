"""Clients as a defs.yaml makes them, and the faults' stand-ins that they are pointed at."""

from __future__ import annotations

import os
import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import Any, TypeVar

import pytest

from federation_defs.airflow.client import AirflowClient, build_client
from federation_defs.declaration import InstanceDeclaration
from tests.contract.fakes.airflow import PASSWORD, USERNAME, FakeAirflow
from tests.contract.fakes.fault_proxy import FaultProxy

HINT = "METRICS_PASSWORD"
ACCOUNT = {"username": USERNAME, "password": PASSWORD}
SIGN_INS = {"v1": {"type": "basic", **ACCOUNT}, "v2": {"type": "password", **ACCOUNT}}
UNPACED = {"max_requests_per_minute": 60_000}
# In time, or an error: the tests' patience is a second or two.
QUICK = {"connect_timeout": 0.5, "read_timeout": 0.5, "answer_timeout": 2, **UNPACED}

# What of a machine's own environment has a say in requests, OpenSSL and the clouds.
SURROUNDINGS = re.compile(
    r"(?i)(HTTPS?|ALL|NO)_PROXY|SSL_CERT_.*|(REQUESTS|CURL|AWS)_CA_BUNDLE|AWS_.*|GOOGLE_.*"
    r"|CLOUDSDK_.*|GCE_.*|NO_GCE_CHECK"
)

T = TypeVar("T")
F = TypeVar("F")  # a fault: of the server, or of what is before it


def forget_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the proxies, authorities and cloud accounts out of the environment."""
    for name in list(os.environ):
        if SURROUNDINGS.fullmatch(name):
            monkeypatch.delenv(name)


def declare(url: str, auth: dict[str, Any] | None = None, **declared: Any) -> AirflowClient:
    """The client of an instance called metrics; Airflow 3's sign-in unless said."""
    values = {"name": "metrics", "url": url, "auth": auth or SIGN_INS["v2"], **declared}
    return build_client(InstanceDeclaration.model_validate(values), HINT)


@dataclass(frozen=True)
class Reached:
    """A fake Airflow behind a proxy, and a client that knows it by the proxy only."""

    server: FakeAirflow
    proxy: FaultProxy
    client: AirflowClient

    def declare(self, **http: Any) -> AirflowClient:
        """Another client, in as much of a hurry."""
        auth = SIGN_INS[self.server.api]
        return declare(self.proxy.url, auth, http={**QUICK, **http})


@contextmanager
def reach(api: str = "v2", **http: Any) -> Iterator[Reached]:
    """A fake Airflow with one DAG, and a client in a hurry that has read it once."""
    with FakeAirflow(api) as server, FaultProxy(server.url) as proxy:
        server.database.add_dag("load_customers")
        client = declare(proxy.url, SIGN_INS[api], http={**QUICK, **http})
        client.fetch_dags()
        yield Reached(server, proxy, client)


class Stopwatch:
    """How long the `with` took."""

    seconds = 0.0

    def __enter__(self) -> Stopwatch:
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._began


def within(seconds: float, call: Callable[[], T]) -> T:
    """What the call gives, or raises; one that hangs fails, and leaves its thread behind."""
    given: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            given.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again below
            raised.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"hangs: {seconds} s and no end"
    if raised:
        raise raised[0]
    return given[0]


def for_each(cases: Mapping[str, T], check: Callable[[T], None], timeout_s: float = 60) -> None:
    """Checks all cases at a time, as what they do is wait; fails with the names of those that do.

    Args:
        timeout_s: For all of them; what hangs fails.
    """
    failed: dict[str, str] = {}

    def run(name: str) -> None:
        try:
            check(cases[name])
        except (Exception, pytest.fail.Exception):  # noqa: BLE001 - told below
            failed[name] = traceback.format_exc()

    threads = {name: Thread(target=run, args=(name,), daemon=True) for name in cases}
    for thread in threads.values():
        thread.start()
    ends = time.monotonic() + timeout_s
    for name, thread in threads.items():
        thread.join(max(0, ends - time.monotonic()))
        if thread.is_alive():
            failed[name] = f"hangs: {timeout_s} s and no end"
    told = "".join(f"\n--- {name}\n{why}" for name, why in failed.items())
    assert not failed, f"{len(failed)} of {len(cases)}: {', '.join(failed)}{told}"


def for_each_fault(
    faults: Mapping[str, F],
    check: Callable[[Reached, F], None],
    api: str = "v2",
    **http: Any,
) -> None:
    """Checks them all at a time, each with a fake Airflow of its own."""
    with ExitStack() as running:
        # One after another: Python 3.11 can't compile in threads, which werkzeug's routes are.
        cases = {
            name: (running.enter_context(reach(api, **http)), fault)
            for name, fault in faults.items()
        }
        for_each(cases, lambda case: check(*case))


def tell_all(error: BaseException | None) -> str:
    """The error and all that it came from, as a traceback or a logger would show them."""
    told = ""
    while error is not None:
        told += f"{error!r} {error} "
        error = error.__cause__ or error.__context__
    return told
