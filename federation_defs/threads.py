"""Functions in threads: in parallel with a time-out, with callbacks, or shared by their callers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Generic, TypeVar, overload

from federation_defs.errors import AirflowError

T = TypeVar("T")


class CallbackPool:
    """Runs functions in threads and passes their results to callbacks in the thread of the caller.

    Args:
        threads: The number of functions at a time.
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
        """Wait until a function is done, or for the timeout; run the callbacks of all that are.

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
        threads: The number of functions at a time.
        timeout_s: For all of them. One that is not done by then gives None; its thread runs on
            until the time-outs of its requests end it. Without one, all are waited for.

    Raises:
        Exception: The first error that one of the functions raised in time.
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
            Exception: What the function raised. All callers get it: repeating a request to a server
                that stalls, one caller after another, would only add up the waiting.
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
