"""What a person is told when a DAG run does not end well."""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.records import DagRun, TaskInstance
from federation_defs.errors import AirflowError, RunLostError
from federation_defs.reporting import build_run_metadata

LOG_TAIL_LINES = 40
LOG_TAILS = 3


def join_failures(failures: Mapping[str, dg.Failure]) -> dg.Failure:
    """One failure as it is; several, by DAG id, as one that tells of them all."""
    if len(failures) == 1:
        (failure,) = failures.values()
        return failure
    return dg.Failure(
        "\n".join(failure.description or "" for failure in failures.values()),
        metadata={
            f"{dag_id}: {name}": value
            for dag_id, failure in failures.items()
            for name, value in failure.metadata.items()
        },
        allow_retries=False,
    )


def build_timeout_error(client: AirflowClient, run: DagRun, waited_s: float) -> RunLostError:
    return RunLostError(
        client.instance,
        f"still has run '{run.run_id}' of DAG '{run.dag_id}' {run.state} after {waited_s:.0f} s, "
        "which is its `trigger.timeout`. The run goes on: "
        f"{client.build_run_url(run.dag_id, run.run_id)}",
    )


def build_run_failure(client: AirflowClient, run: DagRun) -> dg.Failure:
    """A failed DAG run, with the tasks that failed and the end of their logs."""
    metadata = dict(build_run_metadata(client, run))
    try:
        tasks = client.fetch_task_instances(run.dag_id, run.run_id)
        failed = [task for task in tasks if task.state == "failed"]
        for task in failed[:LOG_TAILS]:
            metadata[f"Log of {_name(task)}"] = dg.MetadataValue.md(_read_tail(client, run, task))
        names = ", ".join(_name(task) for task in failed) or "none of its tasks"
    except AirflowError as error:
        names = f"unknown ({error})"
    url = client.build_run_url(run.dag_id, run.run_id)
    return dg.Failure(
        f"DAG '{run.dag_id}' failed in Airflow '{client.instance}'. Failed tasks: {names}. {url}",
        metadata=metadata,
        allow_retries=False,
    )


def _read_tail(client: AirflowClient, run: DagRun, task: TaskInstance) -> str:
    try:
        log = client.fetch_log(run.dag_id, run.run_id, task)
    except AirflowError as error:
        return str(error)
    tail = "\n".join(log.splitlines()[-LOG_TAIL_LINES:])
    return f"```\n{tail}\n```"


def _name(task: TaskInstance) -> str:
    return task.task_id if task.map_index < 0 else f"{task.task_id}[{task.map_index}]"
