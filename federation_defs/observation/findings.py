"""Checks that observation evaluates: some DAGs at a time, and stored only when they change."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeAlias

import dagster as dg

from federation_defs.dagster_io.event_log import fetch_last_evaluations
from federation_defs.naming import build_asset_key, build_check_key
from federation_defs.timing import Timing

_DAGS_PER_LOOK = 50

# The last evaluations of a check, by the assets that have one.
Last: TypeAlias = Mapping[dg.AssetKey, dg.AssetCheckEvaluation]
# Evaluates a check of some DAGs, one after the other, until a moment of the monotonic clock.
Evaluate: TypeAlias = Callable[
    [dg.DagsterInstance, Sequence[str], Last, float], Iterator[dg.AssetCheckEvaluation]
]


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
        self,
        key: dg.AssetCheckKey,
        nothing: str,
        metadata: Mapping[str, Any] | None = None,
    ) -> dg.AssetCheckEvaluation:
        """Build the evaluation, which passes if there are neither errors nor warnings.

        Args:
            nothing: What it says if nothing was found.
        """
        problems = [*self.errors, *self.warnings]
        said = [*problems, *self.notes] or [nothing]
        severity = dg.AssetCheckSeverity
        return dg.AssetCheckEvaluation(
            asset_key=key.asset_key,
            check_name=key.name,
            passed=not problems,
            severity=severity.WARN if self.warnings and not self.errors else severity.ERROR,
            description=" ".join(said),
            metadata=metadata,
        )


class CheckWatcher:
    """Evaluates one check of the DAGs of an instance from time to time.

    Args:
        name: Of the check.
    """

    def __init__(
        self,
        airflow: str,
        name: str,
        dag_ids: Iterable[str],
        evaluate: Evaluate,
        timing: Timing,
    ) -> None:
        self._airflow = airflow
        self._name = name
        self._evaluate = evaluate
        self._timing = timing
        self._queue = deque(dag_ids)
        self._looked_at = -math.inf

    def watch(
        self, instance: dg.DagsterInstance, deadline: float, may_tell: Callable[[], bool]
    ) -> None:
        """From time to time, store the evaluations that differ from the last ones.

        Args:
            deadline: By the monotonic clock. Later DAGs are left for the next time.
            may_tell: Whether no other process does.
        """
        now = self._timing.monotonic()
        if not self._queue or now - self._looked_at < self._timing.look_s:
            return
        self._looked_at = now
        chosen = list(islice(self._queue, _DAGS_PER_LOOK))
        keys = [
            build_check_key(build_asset_key(self._airflow, each), self._name) for each in chosen
        ]
        evaluations = fetch_last_evaluations(instance, keys)
        last = {key.asset_key: evaluation for key, evaluation in evaluations.items()}
        for evaluation in self._evaluate(instance, chosen, last, deadline):
            known = last.get(evaluation.asset_key)
            if (known is None or _tell(known) != _tell(evaluation)) and may_tell():
                instance.report_runless_asset_event(evaluation)
            self._queue.rotate(-1)
            if self._timing.monotonic() > deadline:
                break


def _tell(evaluation: dg.AssetCheckEvaluation) -> tuple[object, ...]:
    """Return what an evaluation tells, whenever its Airflow was asked."""
    words = re.sub(r" \(as of [^)]*\)", "", evaluation.description or "")
    return evaluation.passed, evaluation.severity, words, evaluation.metadata
