"""The outcome of a finished DAG run: whether it is a success, and if not, why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Literal

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import UNREADABLE_STATE, DagRun, TaskInstance
from federation_defs.declaration import SuccessDeclaration
from federation_defs.declaration.fields import suggest
from federation_defs.errors import AirflowError, PermissionMissingError
from federation_defs.redaction import clean_text

# The `success_when` of each DAG, by DAG id. If a DAG has none, the state of its run decides.
Rules = Mapping[str, SuccessDeclaration | None]

LOG_TAILS = 3
LOG_TAIL_LINES = 40
LOG_TAIL_CHARACTERS = 8_000  # a line may have any length
_FOLDS = ("::group::", "::endgroup::")  # in lines at which Airflow's UI folds a log

_TASKS_NAMED = 10

# Tasks that are skipped less than this before the end of a run were skipped because it was ended.
_SKIPPED_AT_END = timedelta(seconds=5)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a finished run.

    Attributes:
        is_success: Decided by the DAG's `success_when` if it has one, else by the run's state.
        details: Sentences that explain the outcome; empty for a plain success.
        tasks: All task instances of the run; empty if they were not fetched.
        log_tails: The ends of the failed tasks' logs as Markdown, by task name.
    """

    run: DagRun
    is_success: bool
    details: str = ""
    tasks: Sequence[TaskInstance] = ()
    log_tails: Mapping[str, str] = field(default_factory=dict)

    @property
    def result(self) -> Literal["success", "failure"]:
        return "success" if self.is_success else "failure"


def fetch_outcome(client: AirflowClient, run: DagRun, rule: SuccessDeclaration | None) -> Outcome:
    """Fetch the tasks of a finished run and return its outcome, without log tails.

    Raises:
        AirflowError: There is a rule, and the tasks can't be fetched at present. If a permission is
            missing, nothing is raised, and the outcome is not a success.
    """
    try:
        tasks = client.fetch_task_instances(run.dag_id, run.run_id)
    except AirflowError as error:
        if rule is None or isinstance(error, PermissionMissingError):
            return build_unknown_outcome(run, rule, str(error))
        raise
    states = ("failed", UNREADABLE_STATE)
    failed = join_names([name_task(task) for task in tasks if task.state in states])
    failed = failed or "none of its tasks"
    details = "" if run.is_success else f"Failed tasks: {failed}."
    if rule is None:
        return Outcome(run, run.is_success, details, tasks)
    if (unmet := find_unmet_condition(tasks, rule)) is not None:
        details += f" By its `success_when` it is not a success: {unmet}."
    elif not run.is_success:
        details += " By its `success_when` it is a success all the same."
    return Outcome(run, unmet is None, details.strip(), tasks)


def build_unknown_outcome(run: DagRun, rule: SuccessDeclaration | None, reason: str) -> Outcome:
    """Return the outcome of a run whose tasks are not known.

    With a rule it is not a success, because the rule can't be checked.
    """
    if rule is None:
        details = "" if run.is_success else f"Failed tasks: unknown ({reason})."
        return Outcome(run, run.is_success, details)
    return Outcome(run, is_success=False, details=f"`success_when` can't be checked: {reason}")


def add_log_tails(client: AirflowClient, outcome: Outcome) -> Outcome:
    """Fetch the ends of the logs of the first three failed tasks. If a log can't be fetched, the
    error takes its place."""
    failed = select_failed(outcome.tasks)[:LOG_TAILS]
    tails = {name_task(task): _fetch_log_tail(client, outcome.run, task) for task in failed}
    return replace(outcome, log_tails=tails)


def _fetch_log_tail(client: AirflowClient, run: DagRun, task: TaskInstance) -> str:
    if task.try_number < 1:  # set to failed by hand before its first try
        return "It never ran."
    try:
        log = client.fetch_log(run.dag_id, run.run_id, task, LOG_TAIL_CHARACTERS)
    except AirflowError as error:
        return quote_as_code(str(error))
    lines = [line for line in clean_text(log).splitlines() if not any(f in line for f in _FOLDS)]
    return quote_as_code("\n".join(lines[-LOG_TAIL_LINES:]))


def quote_as_code(text: str) -> str:
    """Return a text as a code block in Markdown.

    The fence is longer than any in the text. Otherwise a fence in the text would end the block, and
    the rest would be shown as Markdown, with links and images.
    """
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def find_unmet_condition(tasks: Sequence[TaskInstance], rule: SuccessDeclaration) -> str | None:
    """Return the first unmet condition of a `success_when` as a clause; None if all are met.

    For each name, at least one task instance has to succeed, and all others have to succeed or be
    skipped (a branch that was not taken, an empty list to map over). The instances are those of the
    named task, or of all tasks of the named group. A task that did not run because an earlier one
    failed (upstream_failed) is not a success. Tasks that the DAG no longer has (removed) don't
    count.
    """
    if any(task.state == UNREADABLE_STATE for task in tasks):
        return "the row of one of its tasks can't be read"
    present = [task for task in tasks if task.state != "removed"]
    if rule.tasks is None:
        excepted = rule.all_except or []
        others = [task for task in present if not any(_is_in(task, name) for name in excepted)]
        return _find_unmet(others, f"the tasks other than {', '.join(excepted)}")
    for name in rule.tasks:
        if not (named := [task for task in present if _is_in(task, name)]):
            suggestion = suggest(name, {task.task_id for task in present})
            return f"it has no task or task group '{name}'{suggestion}"
        if (unmet := _find_unmet(named, f"'{name}'")) is not None:
            return unmet
    return None


def _find_unmet(tasks: Sequence[TaskInstance], what: str) -> str | None:
    unmet = [
        f"{name_task(task)} is {task.state or 'without a state'}"
        for task in tasks
        if task.state not in ("success", "skipped")
    ]
    if unmet:
        return join_names(unmet)
    is_run = any(task.state == "success" for task in tasks)
    return None if is_run else f"{what} did not run"


def _is_in(task: TaskInstance, name: str) -> bool:
    """Whether a name is that of the task, or of a group that contains it: a group's name is a
    prefix of the task id."""
    return task.task_id == name or task.task_id.startswith(f"{name}.")


def can_succeed_by_failed_tasks(
    run: DagRun, tasks: Sequence[TaskInstance], rule: SuccessDeclaration | None
) -> bool:
    """Whether a failed run becomes a success if its failed tasks, and those after them, succeed.

    False if the run was ended before all of its tasks were, by a cancellation or by hand. Airflow
    (2.11, 3.3) then skips the tasks that have not started, and clearing the failed tasks leaves
    them skipped. A branch skips tasks, too, but usually long before the run's end.
    """
    end, skipped_at = run.end_date, [task.end_date for task in tasks if task.state == "skipped"]
    if any(at is None or end is None or at >= end - _SKIPPED_AT_END for at in skipped_at):
        return False
    repaired = [
        replace(task, state="success") if task.state in ("failed", "upstream_failed") else task
        for task in tasks
    ]
    return rule is None or find_unmet_condition(repaired, rule) is None


def select_failed(tasks: Sequence[TaskInstance]) -> list[TaskInstance]:
    """Return the tasks that failed themselves, without those that did not run because of that
    (upstream_failed)."""
    return [task for task in tasks if task.state == "failed"]


def name_task(task: TaskInstance) -> str:
    """Return the id of a task, with the index of a mapped instance in brackets."""
    return task.task_id if task.map_index < 0 else f"{task.task_id}[{task.map_index}]"


def join_names(names: Sequence[str]) -> str:
    """Return the first ten names, joined by commas, and the number of the others."""
    others = len(names) - _TASKS_NAMED
    return ", ".join(names[:_TASKS_NAMED]) + (f" and {others} more" if others > 0 else "")
