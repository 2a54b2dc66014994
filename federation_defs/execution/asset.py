"""The multi_asset of an instance's downstream DAGs: one op that runs those that are selected."""

# No `from __future__ import annotations` here: Dagster refuses a context annotated with text.

import os
import time
from collections.abc import Iterator, Mapping

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.checks import build_check_spec, run_checks
from federation_defs.dagster_io.heartbeat import send_heartbeats
from federation_defs.dagster_io.run_tags import CurrentRun, Target
from federation_defs.declaration import DagDeclaration
from federation_defs.execution.cancellation import CancellationWatcher
from federation_defs.execution.concurrency import ConcurrencyLimit
from federation_defs.execution.launcher import Launcher, StepContext
from federation_defs.execution.monitor import Monitor
from federation_defs.execution.reporter import Event, Reporter
from federation_defs.execution.step import Step
from federation_defs.naming import (
    CHECK_NAME,
    build_dag_id,
    build_input_names,
    build_op_name,
    build_output_names,
)
from federation_defs.redaction import redact
from federation_defs.timing import Timing

TRIGGERS_VARIABLE = "FEDERATION_TRIGGERS"

_BRANCH_VARIABLE = "DAGSTER_CLOUD_IS_BRANCH_DEPLOYMENT"  # set by Dagster+
_PARTITION_TAGS = {"dagster/partition", "dagster/asset_partition_range_start"}


def build_execution(
    client: AirflowClient,
    dags: Mapping[str, DagDeclaration],
    specs: Mapping[str, dg.AssetSpec],
    max_active_runs: int | None = None,
    timing: Timing = Timing(),  # noqa: B008 - frozen
) -> dg.AssetsDefinition:
    """Build the multi_asset that runs an instance's downstream DAGs.

    Args:
        dags: The declarations of the DAGs with dependencies, by DAG id.
        specs: Their asset specs, by DAG id.
        max_active_runs: `limits.max_active_runs`; None for no limit.
    """
    # An op, because @multi_asset derives output names from the keys. That fails for DAG ids with
    # letters outside ASCII, and for two that differ only in a dot and a dash.
    outputs = build_output_names(list(specs))
    upstream_keys = {dep.asset_key for spec in specs.values() for dep in spec.deps}
    inputs = build_input_names(upstream_keys - {spec.key for spec in specs.values()})
    checks = {f"{name}__{CHECK_NAME}": dag_id for dag_id, name in outputs.items()}
    limit = ConcurrencyLimit(client, dags, max_active_runs, timing) if max_active_runs else None

    @dg.op(
        name=build_op_name(client.instance, "dags"),
        ins={name: dg.In(dg.Nothing) for name in inputs},
        out={name: dg.Out(dg.Nothing, is_required=False) for name in (*outputs.values(), *checks)},
    )
    def run_dags(context: dg.AssetExecutionContext) -> Iterator[Event]:
        current_run = CurrentRun(context.instance, context.run, client.instance)
        shared = StepContext(client, dags, current_run, context.log, timing)
        targets = _find_targets(context, client.instance, dags)
        checked = {key.asset_key for key in context.selected_asset_check_keys}
        with send_heartbeats(context.instance, context.run.run_id, client.instance, timing):
            if (reason := find_safe_mode_reason(os.environ)) is not None:
                _log_safe_mode(shared, targets, reason)
            elif targets:
                _wait_for_earlier_attempts(shared)
                reporter = Reporter(shared, context, specs, outputs, targets)
                launcher = Launcher(shared)
                step = Step(shared, targets, Monitor(shared, launcher, limit), reporter)
                yield from step.run(CancellationWatcher(shared, launcher))
            rules = {dag_id: dag.success_when for dag_id, dag in dags.items()}
            yield from run_checks(client, rules, checked - context.selected_asset_keys, context)

    return dg.AssetsDefinition(
        specs=list(specs.values()),
        node_def=run_dags,
        keys_by_input_name=inputs,
        keys_by_output_name={outputs[dag_id]: spec.key for dag_id, spec in specs.items()},
        check_specs_by_output_name={
            name: build_check_spec(client.instance, dag_id) for name, dag_id in checks.items()
        },
        can_subset=True,
        # A backfill is one Dagster run, and so one process, however many partitions it has.
        backfill_policy=dg.BackfillPolicy.single_run(),
    )


def find_safe_mode_reason(environment: Mapping[str, str]) -> str | None:
    """Return why no DAG may be triggered, cleared or stopped, or None if it may.

    Raises:
        ValueError: FEDERATION_TRIGGERS says neither on nor off.
    """
    value = environment.get(TRIGGERS_VARIABLE, "").strip().lower()
    if value in ("off", "0", "false", "no"):
        return f"{TRIGGERS_VARIABLE} is '{value}'"
    if value in ("on", "1", "true", "yes"):
        return None
    if value:
        raise ValueError(f"{TRIGGERS_VARIABLE} is '{value}': write on or off.")
    if environment.get(_BRANCH_VARIABLE, "").strip().lower() in ("1", "true"):
        return f"this is a branch deployment ({TRIGGERS_VARIABLE}=on would allow it)"
    return None


def _find_targets(
    context: dg.AssetExecutionContext, instance: str, dags: Mapping[str, DagDeclaration]
) -> list[Target]:
    """Find the DAGs of this instance, and their partitions, that the Dagster run selects."""
    targets: list[Target] = []
    for key in sorted(context.selected_asset_keys):
        dag_id = build_dag_id(instance, key)
        if dag_id is None:
            continue
        if dags[dag_id].partitions is None:
            targets.append(Target(dag_id))
            continue
        if not _PARTITION_TAGS & context.run.tags.keys():
            raise dg.Failure(
                f"DAG '{dag_id}' of Airflow '{instance}' has partitions, and this run names none: "
                "nothing was triggered. Choose one or more when you materialize the asset.",
                allow_retries=False,
            )
        targets += [Target(dag_id, partition) for partition in context.partition_keys]
    return targets


def _wait_for_earlier_attempts(context: StepContext) -> None:
    """Wait while an earlier attempt is active. Observation ends attempts whose worker died."""
    logged: list[str] = []
    while earlier := context.current_run.find_earlier_attempts():
        if earlier != logged:
            logged = earlier
            context.log.info(f"Waiting for {', '.join(earlier)}: an earlier attempt at the same.")
        time.sleep(context.timing.earlier_run_s)


def _log_safe_mode(context: StepContext, targets: list[Target], reason: str) -> None:
    for target in targets:
        conf = redact(context.dags[target.dag_id].trigger.conf)
        context.log.warning(
            f"Nothing is triggered, for {reason}. DAG {target.name} of Airflow "
            f"'{context.client.instance}' would have been, as run "
            f"{context.current_run.build_run_id(target)} with conf {conf}."
        )
