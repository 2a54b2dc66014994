"""Whose turn it is to be started, where an instance's runs are limited."""

from __future__ import annotations

import time
from collections.abc import Collection
from functools import partial

from federation_defs.airflow.client import AirflowClient
from federation_defs.execution.calls import Calls
from federation_defs.execution.slots import Slots
from federation_defs.execution.telling import Teller
from federation_defs.execution.waiting import Wait

SLOT_S = 1.0
LEFT_S = 5.0


class Admission:
    """Gives the waits of a step their slots, one after the other, as there are any."""

    def __init__(self, client: AirflowClient, slots: Slots, teller: Teller, calls: Calls) -> None:
        self._client = client
        self._slots = slots
        self._teller = teller
        self._calls = calls
        self._next_left = time.monotonic()

    def admit(self, one: Wait, waits: Collection[Wait], now: float) -> bool:
        """Whether a wait has a slot. If not, neither have those after it."""
        if one.is_claimed:
            return True
        if self._slots.claim(one.target.name):
            one.claim(now)
            return True
        self._teller.tell_queued(one)
        for other in waits:
            if not other.is_claimed:
                other.next_look = now + SLOT_S
        if now >= self._next_left:
            self._next_left = now + LEFT_S
            self._calls.ask(partial(self._slots.free_left, self._client), _ignore)
        return False

    def leave(self, one: Wait) -> None:
        """Takes the slot back, or leaves it to a run that goes on and is not waited for."""
        if one.is_unwaited and one.run is not None and not one.run.is_finished:
            self._slots.leave(one.target.name, one.run)
        else:
            self._slots.free(one.target.name)


def _ignore(_: object) -> None:
    """Whether slots became free is seen when the next one is asked for."""
