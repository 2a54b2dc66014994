"""Whose turn it is to be started, where an instance's runs are limited."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from functools import partial

from federation_defs.airflow.client import AirflowClient
from federation_defs.declaration import DagDeclaration
from federation_defs.errors import AirflowError
from federation_defs.execution.calls import Calls
from federation_defs.execution.slots import Slots
from federation_defs.execution.telling import Teller
from federation_defs.execution.waiting import Wait

SLOT_S = 1.0
OTHERS_S = 5.0


class Admission:
    """Gives the waits of a step their slots, one after the other, as there are any.

    Args:
        dags: What is declared of the instance's DAGs.
    """

    def __init__(
        self,
        client: AirflowClient,
        dags: Mapping[str, DagDeclaration],
        slots: Slots,
        teller: Teller,
        calls: Calls,
    ) -> None:
        self._client = client
        self._dags = dags
        self._slots = slots
        self._teller = teller
        self._calls = calls
        self._next_look = time.monotonic()
        self._is_looking = False

    def admit(self, one: Wait, waits: Collection[Wait], now: float) -> bool:
        """Whether a wait has a slot. If not, neither have those after it."""
        if one.is_claimed:
            return True
        if self._slots.claim(one.target):
            one.claim(now)
            return True
        self._teller.tell_queued(one)
        for other in waits:
            if not other.is_claimed:
                other.next_look = now + SLOT_S
        if now >= self._next_look and not self._is_looking:
            self._is_looking = True
            act = partial(self._slots.look_after, self._client, self._dags)
            self._calls.ask(act, self._on_looked)
        return False

    def dismiss(self, one: Wait) -> None:
        """Takes the slot back, or hands it over to a run that goes on and is not waited for."""
        if one.is_left and one.run is not None and not one.run.is_finished:
            self._slots.hand_over(one.target, one.run)
        else:
            self._slots.free(one.target)

    def _on_looked(self, answer: AirflowError | None) -> None:
        """Whether slots became free is seen when the next one is asked for."""
        self._is_looking = False
        self._next_look = time.monotonic() + OTHERS_S
        if answer is not None:
            self._teller.tell_trouble(answer)
