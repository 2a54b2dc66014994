"""The multi_asset that runs an instance's downstream DAGs."""

# No `from __future__ import annotations` here: Dagster refuses a context annotated with text.

import os
import time
from collections.abc import Iterator, Mapping

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.checks import build_check_spec, run_checks
from federation_defs.declaration import DagDeclaration
from federation_defs.execution.attempt import Attempt, Target
from federation_defs.execution.safety import find_hold_reason
from federation_defs.execution.slots import Slots
from federation_defs.execution.step import Step
from federation_defs.execution.telling import Event, Teller
from federation_defs.execution.watching import Watch
from federation_defs.masking import mask
from federation_defs.naming import (
    CHECK_NAME,
    build_dag_id,
    build_execution_name,
    build_input_names,
    build_output_names,
)
from federation_defs.recovery import Heartbeat

EARLIER_S = 2.0
_PARTITION_TAGS = {"dagster/partition", "dagster/asset_partition_range_start"}


def build_execution(
    client: AirflowClient,
    dags: Mapping[str, DagDeclaration],
    specs: Mapping[str, dg.AssetSpec],
    max_active_runs: int | None = None,
) -> dg.AssetsDefinition:
    """The multi_asset that runs an instance's downstream DAGs.

    Args:
        dags: The declarations of the DAGs with dependencies, by DAG id.
        specs: Their asset specs, by DAG id.
        max_active_runs: Of the instance by our doing; None for what is set in Dagster, if it is.
    """
    # By an op and not by @multi_asset, which derives the outputs' names (of the checks at least)
    # from the keys: that fails on DAG ids with letters outside ASCII, and on two that differ in a
    # dot and a dash.
    outputs = build_output_names(list(specs))
    upstream_keys = {dep.asset_key for spec in specs.values() for dep in spec.deps}
    inputs = build_input_names(upstream_keys - {spec.key for spec in specs.values()})
    checks = {f"{name}__{CHECK_NAME}": dag_id for dag_id, name in outputs.items()}

    @dg.op(
        name=build_execution_name(client.instance),
        ins={name: dg.In(dg.Nothing) for name in inputs},
        out={name: dg.Out(dg.Nothing, is_required=False) for name in (*outputs.values(), *checks)},
    )
    def run_dags(context: dg.AssetExecutionContext) -> Iterator[Event]:
        attempt = Attempt(context.instance, context.run, client.instance)
        targets = _find_targets(context, client.instance, dags)
        checked = {key.asset_key for key in context.selected_asset_check_keys}
        with Heartbeat(context.instance, context.run.run_id, client.instance):
            if (reason := find_hold_reason(os.environ)) is not None:
                _tell_held(context, client.instance, attempt, dags, targets, reason)
            elif targets:
                _wait_for_earlier(context, attempt)
                slots = Slots(context.instance, context.run, client.instance, max_active_runs)
                teller = Teller(context, client, attempt, specs, outputs, targets)
                watch = Watch(client, attempt, dags, slots, teller)
                yield from Step(client, dags, targets, watch, teller).run()
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


def _find_targets(
    context: dg.AssetExecutionContext,
    instance: str,
    dags: Mapping[str, DagDeclaration],
) -> list[Target]:
    """What the Dagster run selects of this instance."""
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


def _wait_for_earlier(context: dg.AssetExecutionContext, attempt: Attempt) -> None:
    """Returns when no earlier attempt at the same goes on. One whose worker is dead is ended by
    the observation sensor."""
    told: list[str] = []
    while earlier := attempt.find_earlier():
        if earlier != told:
            told = earlier
            context.log.info(f"Waiting for {', '.join(earlier)}: an earlier attempt at the same.")
        time.sleep(EARLIER_S)


def _tell_held(
    context: dg.AssetExecutionContext,
    instance: str,
    attempt: Attempt,
    dags: Mapping[str, DagDeclaration],
    targets: list[Target],
    reason: str,
) -> None:
    """What would have been done."""
    for target in targets:
        conf = mask(dags[target.dag_id].trigger.conf)
        context.log.warning(
            f"Nothing is triggered, for {reason}. DAG {target.name} of Airflow '{instance}' would "
            f"have been, as run {attempt.build_run_id(target)} with conf {conf}."
        )
