"""What is written into a Dagster run's tags while it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from threading import Lock

import dagster as dg

_lock = Lock()


def tag_run(instance: dg.DagsterInstance, run_id: str, tags: Mapping[str, str]) -> None:
    """Adds tags to a Dagster run, one thread of this process at a time.

    Dagster reads all tags of the run, and writes them back with the new ones (1.13,
    `SqlRunStorage.add_run_tags`): of two threads that do so at once, one's would be lost.
    """
    with _lock:
        instance.add_run_tags(run_id, tags)


def read_plans(run: dg.DagsterRun | None, tag: str) -> dict[str, tuple[str, str]]:
    """The DAG runs of somebody else's that a Dagster run took over, as its tag tells.

    By target (a DAG id, and maybe a partition): run id, and how the run was when that was decided.
    """
    try:
        plans = json.loads(run.tags.get(tag, "{}")) if run else {}
        return {name: (run_id, mark) for name, (run_id, mark) in plans.items()}
    except (AttributeError, TypeError, ValueError):  # a person may edit tags
        return {}
