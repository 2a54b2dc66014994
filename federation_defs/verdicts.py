"""What became of a finished run: whether its data is there, and if not, what a person needs to
know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.records import DagRun, TaskInstance
from federation_defs.declaration import SuccessDeclaration
from federation_defs.errors import AirflowError, PermissionMissingError
from federation_defs.success import find_shortfall, join_tasks, name_task, select_failed

LOG_TAIL_LINES = 40
LOG_TAIL_CHARACTERS = 8_000  # a line may be of any length
LOG_TAILS = 3


@dataclass(frozen=True)
class Verdict:
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


def judge_by_state(run: DagRun) -> Verdict:
    """The verdict that asks nothing of Airflow."""
    return Verdict(run, run.is_success)


def fetch_verdict(client: AirflowClient, run: DagRun, rule: SuccessDeclaration | None) -> Verdict:
    """The verdict on a finished run, its tasks asked for, but not their logs.

    Raises:
        AirflowError: There is a rule, and whether it is met can't be told now.
    """
    try:
        tasks = tuple(client.fetch_task_instances(run.dag_id, run.run_id))
    except AirflowError as error:
        if rule is None or isinstance(error, PermissionMissingError):
            return build_unjudged(run, rule, str(error))
        raise
    failed = join_tasks(select_failed(tasks)) or "none of its tasks"
    details = "" if run.is_success else f"Failed tasks: {failed}."
    if rule is None:
        return Verdict(run, run.is_success, details, tasks)
    if (shortfall := find_shortfall(tasks, rule)) is not None:
        details += f" By its `success_when` it is no success: {shortfall}."
    elif not run.is_success:
        details += " By its `success_when` it is a success all the same."
    return Verdict(run, shortfall is None, details.strip(), tasks)


def build_unjudged(run: DagRun, rule: SuccessDeclaration | None, why: str) -> Verdict:
    """The verdict on a run whose tasks are not to be had. If its DAG has a rule it is no success,
    for nobody can say that it is one."""
    if rule is None:
        details = "" if run.is_success else f"Failed tasks: unknown ({why})."
        return Verdict(run, run.is_success, details)
    return Verdict(run, is_success=False, details=f"`success_when` can't tell: {why}")


def add_log_tails(client: AirflowClient, verdict: Verdict) -> Verdict:
    """With the end of the logs of its first failed tasks; where there is none, with why."""
    failed = verdict.failed_tasks[:LOG_TAILS]
    tails = {name_task(task): _fetch_tail(client, verdict.run, task) for task in failed}
    return replace(verdict, log_tails=tails)


def _fetch_tail(client: AirflowClient, run: DagRun, task: TaskInstance) -> str:
    if task.try_number < 1:  # set to failed by hand before it ever ran
        return "It never ran."
    try:
        log = client.fetch_log(run.dag_id, run.run_id, task)
    except AirflowError as error:
        return str(error)
    tail = "\n".join(log.splitlines()[-LOG_TAIL_LINES:])[-LOG_TAIL_CHARACTERS:]
    return f"```\n{tail}\n```"
