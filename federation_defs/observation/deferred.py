"""Runs that were left to a Dagster run, and that their owner has not reported before it ended."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from random import sample
from typing import Literal

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun, RunKey
from federation_defs.errors import AirflowError
from federation_defs.threads import run_calls
from federation_defs.timing import Timing

_RUNS_PER_TICK = 50  # there is a request for each


@dataclass
class ReturnedRuns:
    """What became of some deferred runs.

    Attributes:
        finished: To be reported.
        gone: They were deleted, or run again: their end is news by itself.
        unreadable: They could not be read for too long, with the reason.
    """

    finished: list[DagRun] = field(default_factory=list)
    gone: set[RunKey] = field(default_factory=set)
    unreadable: dict[RunKey, str] = field(default_factory=dict)


class DeferredRuns:
    """Fetches the runs of one instance that were deferred and have no owner any more.

    A run that can't be read is tried again and holds up no other one.
    """

    def __init__(self, client: AirflowClient, timing: Timing) -> None:
        self._client = client
        self._timing = timing
        self._failing_since: dict[RunKey, float] = {}

    def fetch(
        self, keys: Collection[RunKey], deadline: float, log: Callable[[], logging.Logger]
    ) -> ReturnedRuns:
        """Fetch runs, of many a random choice: some may always fail.

        Args:
            deadline: By the monotonic clock.
        """
        chosen = sample(sorted(keys), min(len(keys), _RUNS_PER_TICK))
        calls = [partial(self._fetch, key) for key in chosen]
        answers = run_calls(calls, self._client.max_connections, deadline)
        now, returned = self._timing.monotonic(), ReturnedRuns()
        known = self._failing_since.items()
        self._failing_since = {key: since for key, since in known if key in keys}
        for key, answer in zip(chosen, answers, strict=True):
            if answer is None or isinstance(answer, AirflowError):
                reason = str(answer or "no answer in time")
                log().warning("The deferred run %s of DAG %s can't be read: %s", *key[::-1], reason)
                since = self._failing_since.setdefault(key, now)
                if self._timing.fetch_outcome.is_over(now - since):
                    returned.unreadable[key] = reason
            elif isinstance(answer, DagRun) and answer.is_finished:
                returned.finished.append(answer)
            else:
                returned.gone.add(key)
        return returned

    def forget_failures(self) -> None:
        """Start the time for failing runs anew: the whole instance has failed."""
        self._failing_since.clear()

    def _fetch(self, key: RunKey) -> DagRun | AirflowError | Literal["absent"]:
        try:
            return self._client.fetch_run(*key) or "absent"
        except AirflowError as error:
            return error
