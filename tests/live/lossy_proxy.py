"""A proxy that also loses and delays triggers on their way to Airflow."""

from __future__ import annotations

import re
import time

from tests.contract.fakes.fault_proxy import Fault, FaultProxy

_TRIGGER = r"POST \S*/dagRuns "


class LossyProxy(FaultProxy):
    """A fault proxy for triggers and their responses.

    Attributes:
        is_delaying: A delayed trigger is on its way.
    """

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.is_delaying = False
        self._delays_s: list[float | None] = []

    def lose_trigger(self) -> None:
        """Break the connection of the next trigger before Airflow receives it."""
        self._delays_s.append(None)

    def delay_trigger(self, seconds: float) -> None:
        """Pass the next trigger on later, even if its client hangs up. Other requests wait too."""
        self._delays_s.append(seconds)

    def lose_response(self, fault: Fault) -> None:
        """Apply a fault to the response of the next trigger that passes."""
        self.fail_next(fault, _TRIGGER)

    def _choose_fault(self, request: bytes) -> Fault | None:
        if self._delays_s and re.match(_TRIGGER.encode(), request):
            delay_s = self._delays_s.pop(0)
            if delay_s is None:
                raise ConnectionAbortedError
            self.is_delaying = True
            time.sleep(delay_s)
            self.is_delaying = False
        return super()._choose_fault(request)
