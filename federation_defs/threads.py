"""Runs functions in threads: with callbacks, with a time-out, or once for concurrent callers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Generic, TypeVar, overload

from federation_defs.errors import AirflowError

T = TypeVar("T")


class CallbackPool:
    """Runs functions in threads, and their callbacks in the thread that calls `run_callbacks`.

    Args:
        threads: The largest number of functions that run at a time.
        name: A prefix for the threads' names.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._callbacks: dict[Future[Any], Callable[[Any], None]] = {}

    def submit(
        self, function: Callable[[], T], callback: Callable[[T | AirflowError], None]
    ) -> None:
        """Run a function in a thread. `run_callbacks` passes its result, or the `AirflowError` that
        it raised, to the callback."""

        def run() -> T | AirflowError:
            try:
                return function()
            except AirflowError as error:
                return error

        self._callbacks[self._pool.submit(run)] = callback

    def run_callbacks(self, timeout_s: float) -> None:
        """Wait until a function is done, or for the timeout. Run the callbacks of all done ones.

        Raises:
            Exception: A function raised something other than an `AirflowError`.
        """
        if not self._callbacks:
            time.sleep(timeout_s)
            return
        done, _ = wait(self._callbacks, timeout_s, FIRST_COMPLETED)
        for future in done:
            self._callbacks.pop(future)(future.result())

    def close(self) -> None:
        """Drop functions that have not started. Those under way finish, without a callback."""
        self._pool.shutdown(wait=False, cancel_futures=True)


@overload
def run_in_threads(functions: Sequence[Callable[[], T]], threads: int) -> list[T]: ...
@overload
def run_in_threads(
    functions: Sequence[Callable[[], T]], threads: int, timeout_s: float
) -> list[T | None]: ...
def run_in_threads(
    functions: Sequence[Callable[[], T]], threads: int, timeout_s: float | None = None
) -> list[Any]:
    """Run functions in threads and return their results in order.

    Args:
        threads: The largest number of functions that run at a time.
        timeout_s: The time-out of all functions together. If a function is not done by then, its
            result is None, and its thread runs until the time-outs of its requests end it. Without
            a time-out, all functions are waited for.

    Raises:
        Exception: What a function raised in time: of several, the first one in order.
    """
    if timeout_s is None and len(functions) <= 1:
        return [function() for function in functions]
    threads = max(1, min(threads, len(functions)))
    pool = ThreadPoolExecutor(threads, thread_name_prefix="airflow")
    try:
        futures = [pool.submit(function) for function in functions]
        if timeout_s is None:
            return [future.result() for future in futures]
        done, _ = wait(futures, max(0.0, timeout_s))
        return [future.result() if future in done else None for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class SingleFlight(Generic[T]):
    """Lets concurrent callers share one run of a function and its result, or its error."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: Future[T] | None = None

    def do(self, function: Callable[[], T]) -> T:
        """Run the function, or wait for the run that is under way, and return its result.

        Raises:
            Exception: What the function raised, in all callers. If each of them repeated a request
                to a server that stalls, one after the other, their waits would add up.
        """
        with self._lock:
            pending, own = self._pending, Future[T]()
            self._pending = pending or own
        if pending is not None:
            return pending.result()
        try:
            own.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised below, in all callers
            own.set_exception(error)
        with self._lock:
            self._pending = None
        return own.result()
