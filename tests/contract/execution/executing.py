"""Run an instance's DAGs with Dagster: `materialize`, and `DagsterJob` for re-executions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.dagster_io.current_run import CurrentRun
from federation_defs.declaration import DagDeclaration, InstanceDeclaration
from federation_defs.execution import build_execution
from federation_defs.execution.launcher import StepContext
from federation_defs.naming import build_asset_key
from federation_defs.specs import build_specs
from federation_defs.timing import RetryPolicy, Timing
from tests.contract.fakes.airflow import PASSWORD
from tests.contract.worlds import SIGN_INS, connect
from tests.waiting import wait_for

SOURCE = "warehouse/load_customers"  # what starts a DAG here; it is never asked for
TIMEOUT = {"trigger": {"timeout": "1s"}}
# Of the tags of a run, by a re-execution of it; there are more (dagster 1.13).
NOT_INHERITED = {"dagster/retry_number", "dagster/will_retry", "dagster/run_failure_reason"}
DEFAULT_TRIGGER = {"timeout": "60s"}  # so that a test which waits for what never comes fails
# Polls without waiting. What is checked only now and then keeps its interval.
FAST = Timing(
    poll_run=RetryPolicy(first_s=0.02, max_s=0.2),
    unexpected_answer=RetryPolicy(first_s=0.02, max_s=0.2, give_up_after_s=600),
    ask_for_slot=RetryPolicy(first_s=0.05, max_s=0.2),
    run_group_s=0.05,
    status_s=0.1,
    repeat_step_s=0.05,
    repeat_stop_s=0.05,
    takeover_s=0.05,
)


def build_assets(
    client: AirflowClient,
    dags: Mapping[str, Any],
    max_active_runs: int | None = None,
    timing: Timing = FAST,
) -> dg.AssetsDefinition:
    """Build the multi_asset of an instance.

    Args:
        dags: The declarations of its DAGs, by id. Those without `depends_on` depend on another
            instance, and those without a time-out have a short one.
    """
    declaration = InstanceDeclaration.model_validate(
        {
            "name": client.instance,
            "url": client.url,
            "auth": {"type": "basic", "username": "nobody", "password": "nothing"},
            "dags": {
                dag_id: {
                    "depends_on": [SOURCE],
                    **declared,
                    "trigger": {**DEFAULT_TRIGGER, **declared.get("trigger", {})},
                }
                for dag_id, declared in dags.items()
            },
        }
    )
    specs = build_specs(declaration, None, set())
    return build_execution(client, declaration.downstreams, specs, max_active_runs, timing)


def build_context(
    client: AirflowClient, dag_ids: Sequence[str], current_run: CurrentRun
) -> StepContext:
    """Build the context of a step, for tests of one of its parts."""
    dags = {dag_id: DagDeclaration() for dag_id in dag_ids}
    return StepContext(client, dags, current_run, logging.getLogger("test"), FAST)


@dataclass(frozen=True)
class ExecutedRun:
    """What happened in a Dagster run.

    Attributes:
        log: Its messages, in order.
        materialized: DAG ids, in order.
        metadata: Of their materializations, by DAG id.
        failure: The message of the step's failure; None if it succeeded.
        failure_metadata: The metadata of that failure.
    """

    run_id: str
    success: bool
    status: dg.DagsterRunStatus
    log: list[str]
    materialized: list[str]
    metadata: dict[str, Mapping[str, dg.MetadataValue]]
    failure: str | None
    failure_metadata: Mapping[str, dg.MetadataValue]


def materialize(
    client: AirflowClient,
    dags: Sequence[str] | Mapping[str, Any],
    instance: dg.DagsterInstance,
    selection: Sequence[str] | None = None,
    *,
    tags: Mapping[str, str] | None = None,
    max_active_runs: int | None = None,
    timing: Timing = FAST,
    is_printed: bool = True,
) -> ExecutedRun:
    """Materialize DAGs of an instance: those selected, or all.

    Args:
        tags: Of the Dagster run.
        is_printed: Whether its log is printed.
    """
    declared = dags if isinstance(dags, Mapping) else {dag_id: {} for dag_id in dags}
    keys = [build_asset_key(client.instance, dag_id) for dag_id in selection or declared]
    silent = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    result = dg.materialize(
        [build_assets(client, declared, max_active_runs, timing)],
        selection=dg.AssetSelection.assets(*keys),
        instance=instance,
        run_config=None if is_printed else silent,
        tags=tags,
        raise_on_error=False,
    )
    return _read_outcome(result, instance)


def fail_after(give_up_after_s: float) -> Timing:
    """Build a timing that gives up on unexpected answers after a time."""
    policy = replace(FAST.unexpected_answer, give_up_after_s=give_up_after_s)
    return replace(FAST, unexpected_answer=policy)


EXECUTORS = {each.name: each for each in (dg.in_process_executor, dg.multiprocess_executor)}


def build_job(airflows: Sequence[Mapping[str, Any]], executor: str) -> dg.JobDefinition:
    """Build the job over the DAGs of some instances. Dagster calls this for each execution."""
    assets = [
        build_assets(
            connect(airflow["url"], SIGN_INS[airflow["api"]], PASSWORD, airflow["name"]),
            airflow["dags"],
            airflow["max_active_runs"],
            replace(fail_after(airflow["give_up_after_s"]), **airflow["timing"]),
        )
        for airflow in airflows
    ]
    job = dg.define_asset_job("attempt", executor_def=EXECUTORS[executor])
    return dg.Definitions(assets, jobs=[job]).resolve_job_def("attempt")


class DagsterJob:
    """A Dagster job over some DAGs, which can be executed and re-executed.

    Args:
        declared: What is declared of each of the DAGs.
        executor: "in_process" or "multiprocess".
        timing: Fields of `Timing`.
    """

    def __init__(
        self,
        client: AirflowClient,
        dag_ids: Sequence[str],
        instance: dg.DagsterInstance,
        declared: Mapping[str, Any] | None = None,
        *,
        max_active_runs: int | None = None,
        give_up_after_s: float = 600,
        executor: str = "in_process",
        **timing: float,
    ) -> None:
        dags = {dag_id: dict(declared or {}) for dag_id in dag_ids}
        described = _describe(client, dags, max_active_runs, give_up_after_s)
        self._airflows = [{**described, "timing": timing}]
        self._executor = executor
        self._instance = instance

    @classmethod
    def of(
        cls, instance: dg.DagsterInstance, *airflows: tuple[AirflowClient, Mapping[str, Any]]
    ) -> DagsterJob:
        """Build a job over DAGs of several instances, or with declarations of their own."""
        job = cls(airflows[0][0], [], instance)
        job._airflows = [_describe(client, dags) for client, dags in airflows]
        return job

    def execute(
        self,
        parent: ExecutedRun | None = None,
        tags: Mapping[str, str] | None = None,
        *,
        is_from_failure: bool = False,
    ) -> ExecutedRun:
        """Execute the job, or re-execute a run of it.

        Args:
            parent: The run to re-execute; None for a new run.
            tags: Added to those of the parent, which a re-execution inherits.
            is_from_failure: Only the steps that did not succeed are re-executed.
        """
        before = self._instance.get_run_by_id(parent.run_id) if parent else None
        inherited = before.tags.items() if before else ()
        tags = {name: value for name, value in inherited if name not in NOT_INHERITED} | {
            **(tags or {})
        }
        if before:
            tags |= {
                "dagster/parent_run_id": before.run_id,
                "dagster/root_run_id": before.root_run_id or before.run_id,
            }
        executor = {"executor": self._executor}
        job = dg.build_reconstructable_job(__name__, "build_job", (self._airflows,), executor)
        options = dg.ReexecutionOptions(parent.run_id) if parent else None
        if parent and is_from_failure:
            options = dg.ReexecutionOptions.from_failure(parent.run_id, self._instance)
        with dg.execute_job(
            job, self._instance, tags=tags, raise_on_error=False, reexecution_options=options
        ) as result:
            return _read_outcome(result, self._instance)


def _describe(
    client: AirflowClient,
    dags: Mapping[str, Any],
    max_active_runs: int | None = None,
    give_up_after_s: float = 600,
) -> dict[str, Any]:
    return {
        "name": client.instance,
        "url": client.url,
        "api": client.api_version.api,
        "dags": dict(dags),
        "max_active_runs": max_active_runs,
        "give_up_after_s": give_up_after_s,
        "timing": {},
    }


@contextmanager
def meanwhile(act: Callable[[], object]) -> Iterator[None]:
    """Call a function in another thread, and raise what it raises."""
    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(act)
        yield
        done.result(60)


def wait_for_log(instance: dg.DagsterInstance, text: str) -> None:
    """Wait until the log of a started Dagster run contains a text."""

    def is_logged() -> bool:
        runs = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        logs = [entry for run in runs for entry in instance.all_logs(run.run_id)]
        return any(text in entry.user_message for entry in logs)

    wait_for(is_logged, f"a run logs: {text}", timeout_s=60, interval_s=0.02)


def _read_outcome(
    result: dg.ExecuteInProcessResult | dg.ExecuteJobResult, instance: dg.DagsterInstance
) -> ExecutedRun:
    materializations = [
        event.step_materialization_data.materialization
        for event in result.all_events
        if event.is_step_materialization
    ]
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    user_failure = failures[0].user_failure_data if failures else None
    error = failures[0].error if failures else None
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    entries = instance.all_logs(result.run_id)
    return ExecutedRun(
        run_id=result.run_id,
        success=result.success,
        status=run.status,
        log=[entry.user_message for entry in entries if entry.dagster_event is None],
        materialized=[event.asset_key.path[-1] for event in materializations],
        metadata={event.asset_key.path[-1]: event.metadata for event in materializations},
        failure=user_failure.description if user_failure else error and error.to_string(),
        failure_metadata=user_failure.metadata if user_failure else {},
    )
