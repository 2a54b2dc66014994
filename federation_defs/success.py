"""Whether a finished run left what its DAG is there for. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from federation_defs.airflow.records import TaskInstance
from federation_defs.declaration import SuccessDeclaration
from federation_defs.declaration.fields import suggest

# Not run, and rightly so: a branch that was not taken, an empty list to map over. `removed` is of
# a task that the DAG no longer has.
_PASSED_OVER = frozenset({"skipped", "removed"})
_NAMES_SHOWN = 10
# What is skipped by the end of a run, and not before it.
_AT_THE_END = timedelta(seconds=5)


def name_task(task: TaskInstance) -> str:
    return task.task_id if task.map_index < 0 else f"{task.task_id}[{task.map_index}]"


def select_failed(tasks: Sequence[TaskInstance]) -> list[TaskInstance]:
    """The tasks that failed themselves, not those that did not run because of them."""
    return [task for task in tasks if task.state == "failed"]


def find_shortfall(tasks: Sequence[TaskInstance], rule: SuccessDeclaration) -> str | None:
    """What is missing for a success, as a sentence; None if nothing is.

    A named task, or every task of a named group, has to have succeeded: all its mapped instances
    that were run, and at least one. What was skipped made no data, but hinders none; what never
    ran because something before it failed (upstream_failed) does.
    """
    present = [task for task in tasks if task.state != "removed"]
    if rule.tasks is None:
        excepted = rule.all_except or []
        left = [task for task in present if not any(_is_of(task, name) for name in excepted)]
        return _find_unmet(left, f"the tasks other than {', '.join(excepted)}")
    for name in rule.tasks:
        if not (named := [task for task in present if _is_of(task, name)]):
            near = suggest(name, {task.task_id for task in present})
            return f"it has no task or task group '{name}'{near}"
        if (unmet := _find_unmet(named, f"'{name}'")) is not None:
            return unmet
    return None


def is_mended_by_failed(tasks: Sequence[TaskInstance], rule: SuccessDeclaration) -> bool:
    """Whether nothing is missing once the failed tasks, and those behind them, have succeeded."""
    mended = [
        replace(task, state="success") if task.state in ("failed", "upstream_failed") else task
        for task in tasks
    ]
    return find_shortfall(mended, rule) is None


def _find_unmet(tasks: Sequence[TaskInstance], what: str) -> str | None:
    unmet = [task for task in tasks if task.state not in _PASSED_OVER | {"success"}]
    if unmet:
        return f"{join_tasks(unmet, with_state=True)}"
    if not any(task.state == "success" for task in tasks):
        return f"of {what} none was run"
    return None


def join_tasks(tasks: Sequence[TaskInstance], *, with_state: bool = False) -> str:
    """Their names; of many, the first."""
    names = [
        f"{name_task(task)} is {task.state or 'without a state'}" if with_state else name_task(task)
        for task in tasks[:_NAMES_SHOWN]
    ]
    rest = len(tasks) - len(names)
    return ", ".join(names) + (f" and {rest} more" if rest else "")


def _is_of(task: TaskInstance, name: str) -> bool:
    """Whether it is the named task, or in the named group (whose name begins its id)."""
    return task.task_id == name or task.task_id.startswith(f"{name}.")


def was_cut_short(tasks: Sequence[TaskInstance], end: datetime | None) -> bool:
    """Whether a failed run was ended before its tasks were: by a cancellation, or by hand.

    Airflow (2.11, 3.3) then sets what had not begun to "skipped", which running the failed tasks
    again leaves so. What is skipped by a branch is so from the branch on, mostly long before.
    """
    skipped = [task.end_date for task in tasks if task.state == "skipped"]
    return any(one is None or end is None or one >= end - _AT_THE_END for one in skipped)
