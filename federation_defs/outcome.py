"""The outcome of a finished DAG run: whether its data is there, and why if not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import DagRun, TaskInstance
from federation_defs.declaration import SuccessDeclaration
from federation_defs.declaration.fields import suggest
from federation_defs.errors import AirflowError, PermissionMissingError

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


def find_unmet_condition(tasks: Sequence[TaskInstance], rule: SuccessDeclaration) -> str | None:
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


def is_met_by_failed_tasks(tasks: Sequence[TaskInstance], rule: SuccessDeclaration) -> bool:
    """Whether nothing is missing once the failed tasks, and those behind them, have succeeded."""
    mended = [
        replace(task, state="success") if task.state in ("failed", "upstream_failed") else task
        for task in tasks
    ]
    return find_unmet_condition(mended, rule) is None


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


def was_ended_early(tasks: Sequence[TaskInstance], end: datetime | None) -> bool:
    """Whether a failed run was ended before its tasks were: by a cancellation, or by hand.

    Airflow (2.11, 3.3) then sets what had not begun to "skipped", which running the failed tasks
    again leaves so. What is skipped by a branch is so from the branch on, mostly long before.
    """
    skipped = [task.end_date for task in tasks if task.state == "skipped"]
    return any(one is None or end is None or one >= end - _AT_THE_END for one in skipped)


LOG_TAIL_LINES = 40

LOG_TAIL_CHARACTERS = 8_000  # a line may be of any length

LOG_TAILS = 3


@dataclass(frozen=True)
class Outcome:
    """What became of a finished run.

    Attributes:
        is_success: By the DAG's `success_when` if it has one, else by the run's own state.
        details: What is to be said besides, in sentences; none of a plain success.
        tasks: All its task instances; None if they were not asked for, or not told.
        log_tails: The end of the failed tasks' logs, as Markdown, by the task's name.
    """

    run: DagRun
    is_success: bool
    details: str = ""
    tasks: tuple[TaskInstance, ...] | None = None
    log_tails: Mapping[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """What became of it, for a person."""
        ended = "succeeded" if self.run.is_success else "failed"
        return f"Run {self.run.run_id} {ended}. {self.details}".rstrip()

    @property
    def failed_tasks(self) -> list[TaskInstance]:
        return select_failed(self.tasks or ())


def build_outcome_by_state(run: DagRun) -> Outcome:
    """The verdict that asks nothing of Airflow."""
    return Outcome(run, run.is_success)


def fetch_outcome(client: AirflowClient, run: DagRun, rule: SuccessDeclaration | None) -> Outcome:
    """The verdict on a finished run, its tasks asked for, but not their logs.

    Raises:
        AirflowError: There is a rule, and whether it is met can't be told now.
    """
    try:
        tasks = tuple(client.fetch_task_instances(run.dag_id, run.run_id))
    except AirflowError as error:
        if rule is None or isinstance(error, PermissionMissingError):
            return build_unknown_outcome(run, rule, str(error))
        raise
    failed = join_tasks(select_failed(tasks)) or "none of its tasks"
    details = "" if run.is_success else f"Failed tasks: {failed}."
    if rule is None:
        return Outcome(run, run.is_success, details, tasks)
    if (unmet := find_unmet_condition(tasks, rule)) is not None:
        details += f" By its `success_when` it is no success: {unmet}."
    elif not run.is_success:
        details += " By its `success_when` it is a success all the same."
    return Outcome(run, unmet is None, details.strip(), tasks)


def build_unknown_outcome(run: DagRun, rule: SuccessDeclaration | None, why: str) -> Outcome:
    """The verdict on a run whose tasks are not to be had. If its DAG has a rule it is no success,
    for nobody can say that it is one."""
    if rule is None:
        details = "" if run.is_success else f"Failed tasks: unknown ({why})."
        return Outcome(run, run.is_success, details)
    return Outcome(run, is_success=False, details=f"`success_when` can't tell: {why}")


def add_log_tails(client: AirflowClient, outcome: Outcome) -> Outcome:
    """With the end of the logs of its first failed tasks; where there is none, with why."""
    failed = outcome.failed_tasks[:LOG_TAILS]
    tails = {name_task(task): _fetch_tail(client, outcome.run, task) for task in failed}
    return replace(outcome, log_tails=tails)


def _fetch_tail(client: AirflowClient, run: DagRun, task: TaskInstance) -> str:
    if task.try_number < 1:  # set to failed by hand before it ever ran
        return "It never ran."
    try:
        log = client.fetch_log(run.dag_id, run.run_id, task)
    except AirflowError as error:
        return str(error)
    tail = "\n".join(log.splitlines()[-LOG_TAIL_LINES:])[-LOG_TAIL_CHARACTERS:]
    return f"```\n{tail}\n```"
