"""Checks that observation evaluates: some DAGs at a time, and stored only when they change."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar, TypeAlias

import dagster as dg

from federation_defs.dagster_io.event_log import fetch_last_evaluations
from federation_defs.declaration import DagDeclaration, InstanceDeclaration
from federation_defs.naming import build_asset_key, build_check_key
from federation_defs.observation.tick import Tick
from federation_defs.outcome import Rules
from federation_defs.partitions import Partitioning
from federation_defs.timing import Timing

_DAGS_AT_ONCE = 50

Evaluations: TypeAlias = Mapping[dg.AssetCheckKey, dg.AssetCheckEvaluation]


FindProblem: TypeAlias = Callable[[str, str], str | None]
FindPartitionProblem: TypeAlias = Callable[[str], str | None]


@dataclass(frozen=True)
class ObservedDags:
    """What is known of the DAGs of one instance.

    Attributes:
        rules: Of all DAGs that are assets. Runs of other DAGs are not reported.
        declared: What is declared of them, by DAG id.
        partitionings: Of DAGs that have partitions, by DAG id; with `cron: auto`, once it is
            resolved.
        instances: The declarations of all instances of the code location, by name.
        absent: What is wrong with DAGs that the instance did not have at the last refresh, by id.
            Their checks fail once, unless the instance has them by now.
        find_problem: Returns why a DAG can't run by the last refresh, given instance and DAG id, as
            the end of a sentence; None if nothing is known to be wrong with it.
        find_partition_problem: Returns what is wrong with the partitions of a DAG by the last
            refresh, or with those that it depends on, given its id, in sentences; None if nothing
            is known to be wrong with them.
    """

    rules: Rules
    declared: Mapping[str, DagDeclaration]
    partitionings: Mapping[str, Partitioning]
    instances: Mapping[str, InstanceDeclaration]
    absent: Mapping[str, str]
    find_problem: FindProblem
    find_partition_problem: FindPartitionProblem


@dataclass
class Findings:
    """What was found of one DAG, one sentence each.

    Attributes:
        errors: What a person has to end.
        warnings: What ends by itself, or may be meant.
        notes: What is as it should be.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def build_evaluation(
        self, key: dg.AssetCheckKey, nothing: str, metadata: Mapping[str, Any] | None = None
    ) -> dg.AssetCheckEvaluation:
        """Build the evaluation, which passes if there are neither errors nor warnings.

        Args:
            nothing: What it says if nothing was found.
        """
        problems = [*self.errors, *self.warnings]
        sentences = [*problems, *self.notes] or [nothing]
        severity = dg.AssetCheckSeverity
        return dg.AssetCheckEvaluation(
            asset_key=key.asset_key,
            check_name=key.name,
            passed=not problems,
            severity=severity.WARN if self.warnings and not self.errors else severity.ERROR,
            description=" ".join(sentences),
            metadata=metadata,
        )


@dataclass
class PeriodicCheck(ABC):
    """A check of some DAGs of an Airflow instance that is evaluated from time to time.

    Attributes:
        name: Of the check.
        airflow: The instance's name.
        dags: The declarations of the DAGs that have the check, by DAG id.
        observed: All DAGs of the instance.
        too_frequent: Why upstreams have partitions too often, by DAG id.
    """

    name: ClassVar[str]
    airflow: str
    dags: Mapping[str, DagDeclaration]
    timing: Timing
    observed: ObservedDags
    too_frequent: Mapping[str, str]

    def __post_init__(self) -> None:
        self._queue = deque(self.dags)
        self._evaluated_at = -math.inf

    @abstractmethod
    def evaluate(
        self, instance: dg.DagsterInstance, dag_ids: Sequence[str], last: Evaluations, until: float
    ) -> Iterator[dg.AssetCheckEvaluation]:
        """Evaluate the check of some DAGs, one after the other.

        Args:
            last: Their last evaluations.
            until: By the monotonic clock. Later answers of Airflow don't count.
        """

    def evaluate_due(self, tick: Tick, until: float) -> None:
        """If it is time, evaluate the check of the next DAGs, and store what has changed.

        Args:
            until: By the monotonic clock. Later DAGs are left for the next time.
        """
        now = self.timing.monotonic()
        if not self._queue or now - self._evaluated_at < self.timing.check_interval_s:
            return
        self._evaluated_at = now
        dag_ids = list(islice(self._queue, _DAGS_AT_ONCE))
        last = fetch_last_evaluations(tick.instance, map(self.build_key, dag_ids))
        for evaluation in self.evaluate(tick.instance, dag_ids, last, until):
            known = last.get(evaluation.asset_check_key)
            has_changed = known is None or _get_content(known) != _get_content(evaluation)
            if has_changed and tick.may_store():
                tick.instance.report_runless_asset_event(evaluation)
            self._queue.rotate(-1)
            if self.timing.monotonic() > until:
                break

    def build_key(self, dag_id: str) -> dg.AssetCheckKey:
        return build_check_key(build_asset_key(self.airflow, dag_id), self.name)


def _get_content(evaluation: dg.AssetCheckEvaluation) -> tuple[object, ...]:
    """Return what an evaluation says, without the time as of which its Airflow is known."""
    text = re.sub(r" \(as of [^)]*\)", "", evaluation.description or "")
    return evaluation.passed, evaluation.severity, text, evaluation.metadata
