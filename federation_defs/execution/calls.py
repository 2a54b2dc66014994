"""Asking in threads: whoever asks goes on, and is told the answer in a thread of its own choice."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from federation_defs.airflow.client import AirflowClient
from federation_defs.errors import AirflowError

T = TypeVar("T")


class DroppedError(Exception):
    """What was to be done need not be done any more, for the Dagster run is being canceled."""


class Calls:
    """What an instance is being asked, as many things at a time as is declared."""

    def __init__(self, client: AirflowClient) -> None:
        self._open: dict[Future[Any], Callable[[Any], None]] = {}
        at_once = client.session.transport.http.max_connections
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix=f"airflow-{client.instance}")

    def ask(self, act: Callable[[], T], then: Callable[[T | AirflowError], None]) -> None:
        """Has something asked; `then` is told the answer, or the error."""

        def call() -> T | AirflowError:
            try:
                return act()
            except AirflowError as error:
                return error

        self._open[self._pool.submit(call)] = then

    def tell_next(self, timeout_s: float) -> None:
        """Tells what is answered, as soon as anything is; nothing if nothing is in time."""
        if not self._open:
            time.sleep(timeout_s)
            return
        done, _ = wait(self._open, timeout_s, FIRST_COMPLETED)
        for future in done:
            self._open.pop(future)(future.result())

    def close(self) -> None:
        """Asks nothing any more; what is under way is seen to its end, and nobody is told."""
        self._pool.shutdown(wait=False, cancel_futures=True)
