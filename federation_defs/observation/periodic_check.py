"""Checks that observation evaluates for some DAGs at a time, and stores only when they change."""

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
        rules: The `success_when` of all DAGs that are assets. Runs of other DAGs are not reported.
        declared: The declarations of these DAGs, by DAG id.
        partitionings: The partitions of DAGs that have some, by DAG id. Those with `cron: auto` are
            included once they are known.
        instances: The declarations of all instances of the code location, by name.
        absent: What is wrong with DAGs that the instance did not have at the last refresh, by id.
            Their check `dag_run` fails once, unless the instance has them again.
        find_problem: Takes an instance's name and a DAG id. Returns why the DAG can't run, as of
            the last refresh, as the end of a sentence; None if no problem is known.
        find_partition_problem: Takes a DAG id. Returns what is wrong with the partitions of the
            DAG, or of its upstreams, as of the last refresh, in sentences; None if no problem is
            known.
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
    """What a check has found about one DAG, one sentence each.

    Attributes:
        errors: What a person has to correct.
        warnings: What may pass by itself, or may be intended.
        notes: Information that is no problem.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def build_evaluation(
        self, key: dg.AssetCheckKey, nothing: str, metadata: Mapping[str, Any] | None = None
    ) -> dg.AssetCheckEvaluation:
        """Build the evaluation, which passes if there are neither errors nor warnings.

        Args:
            nothing: The description if nothing was found.
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
        name: The check's name.
        airflow: The instance's name.
        dags: The declarations of the DAGs that have the check, by DAG id.
        observed: All DAGs of the instance.
        too_frequent: The warnings of `find_too_frequent_upstreams`, by DAG id.
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
            last: The last evaluations of their checks.
            until: By the monotonic clock. Later answers of Airflow are not used.
        """

    def evaluate_due(self, tick: Tick, until: float) -> None:
        """Evaluate the check of the next DAGs, if `timing.check_interval_s` has passed since the
        last time. Store the evaluations that have changed.

        Args:
            until: By the monotonic clock. DAGs that are left then come first the next time.

        Raises:
            DeclaredTwiceError: Another code location observes the instance.
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
    """Return the content of an evaluation, without the time of the refresh that it is based on."""
    text = re.sub(r" \(as of [^)]*\)", "", evaluation.description or "")
    return evaluation.passed, evaluation.severity, text, evaluation.metadata
