"""The checks that observation evaluates besides `dag_run`, and the signals of slow runs and late
DAGs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from federation_defs.airflow.client import AirflowClient
from federation_defs.errors import DeclaredTwiceError
from federation_defs.observation.cursor import Cursor, EndedRuns
from federation_defs.observation.deadline_check import DeadlineCheck
from federation_defs.observation.max_duration_check import MaxDurationCheck
from federation_defs.observation.partitions_check import (
    PartitionsCheck,
    find_too_frequent_upstreams,
)
from federation_defs.observation.periodic_check import ObservedDags
from federation_defs.observation.ready_check import ReadyCheck
from federation_defs.observation.tick import Tick
from federation_defs.partition_mapping import select_decided_by_events
from federation_defs.timing import Timing


class CheckEvaluator:
    """Evaluates the checks of the DAGs of one instance that declare `max_duration`, `deadline`,
    `depends_on` or `partitions`. Other DAGs cost nothing."""

    def __init__(
        self, client: AirflowClient, dags: ObservedDags, lookback_s: float, timing: Timing
    ) -> None:
        airflow, declared = client.instance, dags.declared.items()
        limits_s = {dag_id: dag.max_duration for dag_id, dag in declared if dag.max_duration}
        deadlines = {dag_id: dag.deadline for dag_id, dag in declared if dag.deadline}
        downstreams = {dag_id: dag for dag_id, dag in declared if dag.depends_on}
        partitioned = {dag_id: dag for dag_id, dag in declared if dag.declares_partitions}
        by_events = select_decided_by_events(downstreams, dags.instances)
        too_frequent = find_too_frequent_upstreams(dags.declared, dags.instances)
        self._timing = timing
        self._max_duration = MaxDurationCheck(client, limits_s, dags.partitionings, timing)
        self._deadline = DeadlineCheck(airflow, deadlines, lookback_s, timing)
        self._ready = ReadyCheck(
            airflow, downstreams, timing, dags, too_frequent, client, by_events
        )
        self._partitions = PartitionsCheck(airflow, partitioned, timing, dags, too_frequent)

    def evaluate(
        self, tick: Tick, ended_runs: EndedRuns, cursor: Cursor, deadline: float
    ) -> tuple[Cursor, bool]:
        """Evaluate the checks that are due, and store what has changed. Errors other than
        `DeclaredTwiceError` are logged, and delay no report.

        Args:
            deadline: By the monotonic clock. What is left then is evaluated in a later tick.

        Returns:
            The cursor with the time up to which deadlines were evaluated, and whether the check
            `max_duration` or `deadline` has news: an evaluation, a signal, or a new deadline.

        Raises:
            DeclaredTwiceError: Another code location observes the instance.
        """
        airflow, is_late, is_slow = tick.airflow, False, False
        with _logging_errors(f"which DAGs of Airflow '{airflow}' are late", tick.log):
            evaluated, is_late = self._deadline.evaluate(
                tick, ended_runs, cursor.deadlines, deadline
            )
            cursor = replace(cursor, deadlines=evaluated)
        with _logging_errors(f"what keeps DAGs of Airflow '{airflow}' from running", tick.log):
            self._ready.evaluate_due(tick, self._limit(deadline))
        with _logging_errors(f"what is wrong with partitions in Airflow '{airflow}'", tick.log):
            self._partitions.evaluate_due(tick, self._limit(deadline))
        with _logging_errors(f"which runs of Airflow '{airflow}' are slow", tick.log):
            limit, begun_at = self._limit(deadline), cursor.begun_at
            is_slow = self._max_duration.evaluate(tick, ended_runs, begun_at, limit)
        return cursor, is_slow or is_late

    def _limit(self, deadline: float) -> float:
        return min(deadline, self._timing.monotonic() + self._timing.check_s)


@contextmanager
def _logging_errors(what: str, log: Callable[[], logging.Logger]) -> Iterator[None]:
    try:
        yield
    except DeclaredTwiceError:
        raise
    except Exception:  # noqa: BLE001 - logged; the reports of other ticks must not wait for it
        log().exception("Could not find out %s. A later tick tries again.", what)
