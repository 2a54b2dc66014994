"""What observation tells besides the ends of runs: slow runs, late DAGs, what blocks DAGs, and what
is wrong with their partitions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.declaration import DagDeclaration, InstanceDeclaration
from federation_defs.errors import DeclaredTwiceError
from federation_defs.naming import PARTITIONS_CHECK_NAME, READY_CHECK_NAME
from federation_defs.observation.alignment import (
    Alignment,
    FindPartitionProblem,
    find_unfit_cadences,
)
from federation_defs.observation.cursor import Ends, JudgedDeadlines
from federation_defs.observation.findings import CheckWatcher
from federation_defs.observation.lateness import Lateness
from federation_defs.observation.readiness import FindProblem, Readiness
from federation_defs.observation.slowness import Slowness
from federation_defs.partition_mapping import select_decided_by_events
from federation_defs.partitions import Partitioning
from federation_defs.timing import Timing


class Watchers:
    """Watches the DAGs of one instance that declare `max_duration`, `deadline`, `depends_on` or
    `partitions`.

    Costs nothing for others.

    Attributes:
        has_limits: Some of them declare `max_duration`.
    """

    def __init__(
        self,
        client: AirflowClient,
        dags: Mapping[str, DagDeclaration],
        partitionings: Mapping[str, Partitioning],
        instances: Mapping[str, InstanceDeclaration],
        find_problem: FindProblem,
        find_partition_problem: FindPartitionProblem,
        lookback_s: float,
        timing: Timing,
    ) -> None:
        limits_s = {dag_id: dag.max_duration for dag_id, dag in dags.items() if dag.max_duration}
        deadlines = {dag_id: dag.deadline for dag_id, dag in dags.items() if dag.deadline}
        downstreams = {dag_id: dag for dag_id, dag in dags.items() if dag.depends_on}
        self.has_limits = bool(limits_s)
        self._timing = timing
        self._slowness = Slowness(client, limits_s, partitionings, timing)
        self._lateness = Lateness(client.instance, deadlines, lookback_s, timing)
        by_events = select_decided_by_events(downstreams, instances)
        unfit = find_unfit_cadences(dags, instances)
        finds = find_problem, find_partition_problem
        readiness = Readiness(client, downstreams, by_events, *finds, unfit, timing)
        partitioned = {
            dag_id: partitionings.get(dag_id)
            for dag_id, dag in dags.items()
            if dag.declares_partitions
        }
        alignment = Alignment(client.instance, partitioned, find_partition_problem, unfit)
        self._readiness = CheckWatcher(
            client.instance, READY_CHECK_NAME, downstreams, readiness.evaluate, timing
        )
        self._alignment = CheckWatcher(
            client.instance, PARTITIONS_CHECK_NAME, partitioned, alignment.evaluate, timing
        )

    def watch(
        self,
        instance: dg.DagsterInstance,
        ends: Ends,
        judged: JudgedDeadlines | None,
        deadline: float,
        may_tell: Callable[[], bool],
        log: Callable[[], logging.Logger],
    ) -> tuple[JudgedDeadlines | None, bool]:
        """Store what is to be told. What goes wrong here is logged, and holds up no report.

        Args:
            judged: Up to when deadlines were judged; None if the cursor does not know.
            deadline: By the monotonic clock. What is left then is told in a later call.
            may_tell: Whether no other process does.
            log: Opens the tick's log.

        Returns:
            The next value of `judged`, and whether anybody was told that a DAG is slow or late.
        """
        has_slow = has_late = False
        with _logging_errors("which DAGs are late", log):
            judged, has_late = self._lateness.watch(instance, judged, ends, deadline, may_tell)
        with _logging_errors("what keeps DAGs from running", log):
            self._readiness.watch(instance, self._limit(deadline), may_tell)
        with _logging_errors("what is wrong with partitions", log):
            self._alignment.watch(instance, self._limit(deadline), may_tell)
        with _logging_errors("which runs are slow", log):
            has_slow = self._slowness.watch(instance, ends, self._limit(deadline), may_tell)
        return judged, has_slow or has_late

    def _limit(self, deadline: float) -> float:
        return min(deadline, self._timing.monotonic() + self._timing.watch_s)


@contextmanager
def _logging_errors(what: str, log: Callable[[], logging.Logger]) -> Iterator[None]:
    try:
        yield
    except DeclaredTwiceError:
        raise
    except Exception:  # noqa: BLE001 - logged; the reports of other ticks must not wait for it
        log().exception("It is not known %s. The next tick tries again.", what)
