"""A proxy that also loses and delays triggers on their way to Airflow."""

from __future__ import annotations

import re
import time

from tests.contract.fakes.fault_proxy import Fault, FaultProxy

_ANY_DAG = "[^/ ]+"


class LossyProxy(FaultProxy):
    """A fault proxy for triggers and their responses.

    Attributes:
        is_delaying: A delayed trigger is on its way.
    """

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.is_delaying = False
        self._delays_s: list[tuple[str, float | None]] = []  # by pattern

    def lose_trigger(self, dag_id: str = _ANY_DAG) -> None:
        """Break the connection of the next trigger of a DAG before Airflow receives it."""
        self._delays_s.append((_match_trigger(dag_id), None))

    def delay_trigger(self, seconds: float, dag_id: str) -> None:
        """Pass the next trigger of a DAG on later, even if its client hangs up. Other requests wait
        too."""
        self._delays_s.append((_match_trigger(dag_id), seconds))

    def lose_response(self, fault: Fault, dag_id: str = _ANY_DAG) -> None:
        """Apply a fault to the response of the next trigger of a DAG that passes."""
        self.fail_next(fault, _match_trigger(dag_id))

    def _choose_fault(self, request: bytes) -> Fault | None:
        if self._delays_s and re.match(self._delays_s[0][0].encode(), request):
            _, delay_s = self._delays_s.pop(0)
            if delay_s is None:
                raise ConnectionAbortedError
            self.is_delaying = True
            time.sleep(delay_s)
            self.is_delaying = False
        return super()._choose_fault(request)


def _match_trigger(dag_id: str) -> str:
    return rf"POST \S*/dags/{dag_id}/dagRuns "
