"""What many threads need at once, done by one of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Whoever comes while another one is at it waits, and shares what becomes of it: also the
    error, for asking a server that stalls once more, one after another, helps nobody."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: Future[T] | None = None

    def do(self, act: Callable[[], T]) -> T:
        with self._lock:
            pending, is_ours = self._pending, self._pending is None
            if pending is None:
                pending = self._pending = Future()
        if not is_ours:
            return pending.result()
        try:
            pending.set_result(act())
        except BaseException as error:  # noqa: BLE001 - raised below, in all of them
            pending.set_exception(error)
        finally:
            with self._lock:
                self._pending = None
        return pending.result()
