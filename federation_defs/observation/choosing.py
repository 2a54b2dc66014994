"""What of the finished runs is reported by a tick. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from itertools import chain

from federation_defs.airflow.records import DagRun


def sort_by_end(runs: Iterable[DagRun]) -> list[DagRun]:
    """In the order in which they ended; those without an end last."""
    without = datetime.max.replace(tzinfo=timezone.utc)
    return sorted(runs, key=lambda run: (run.end_date or without, run.run_id))


def group_by_dag(runs: Iterable[DagRun]) -> dict[str, list[DagRun]]:
    groups: dict[str, list[DagRun]] = {}
    for run in runs:
        groups.setdefault(run.dag_id, []).append(run)
    return groups


def choose(runs: Iterable[DagRun], at_most: int) -> list[DagRun]:
    """The runs that are reported now, in the order in which they ended.

    If there are too many, order is kept only within each DAG: those with the fewest go first, so
    that news of one does not wait behind the history of another.
    """
    ordered = sort_by_end(runs)
    if len(ordered) <= at_most:
        return ordered
    groups = sorted(group_by_dag(ordered).values(), key=len)
    return list(chain.from_iterable(groups))[:at_most]
