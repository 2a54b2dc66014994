"""The multi_asset that runs an instance's downstream DAGs, in the order of their dependencies."""

import os
import time
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.checks import build_check_spec, run_checks
from federation_defs.dagster_io.heartbeat import Heartbeat
from federation_defs.dagster_io.run_tags import CurrentRun, Target
from federation_defs.declaration import DagDeclaration
from federation_defs.execution.concurrency import Slots
from federation_defs.execution.monitor import Monitor
from federation_defs.execution.polling import MonitoredRun
from federation_defs.execution.reporter import (
    Event,
    Reporter,
    build_failure,
    build_run_failure,
    join_failures,
)
from federation_defs.naming import (
    CHECK_NAME,
    build_dag_id,
    build_execution_name,
    build_input_names,
    build_output_names,
)
from federation_defs.redaction import redact

VARIABLE = "FEDERATION_TRIGGERS"

_BRANCH = "DAGSTER_CLOUD_IS_BRANCH_DEPLOYMENT"  # set by Dagster+


def find_safe_mode_reason(environment: Mapping[str, str]) -> str | None:
    """Why no DAG may be triggered, cleared or stopped; None if it may.

    Raises:
        ValueError: The variable says neither on nor off.
    """
    said = environment.get(VARIABLE, "").strip().lower()
    if said in ("off", "0", "false", "no"):
        return f"{VARIABLE} is '{said}'"
    if said in ("on", "1", "true", "yes"):
        return None
    if said:
        raise ValueError(f"{VARIABLE} is '{said}': write on or off.")
    if environment.get(_BRANCH, "").strip().lower() in ("1", "true"):
        return f"this is a branch deployment ({VARIABLE}=on would allow it)"
    return None


class Step:
    """The targets of a step, each run as soon as what it depends on has succeeded.

    Args:
        dags: What is declared of the instance's DAGs.
        targets: What is to run.
    """

    def __init__(
        self,
        client: AirflowClient,
        dags: Mapping[str, DagDeclaration],
        targets: list[Target],
        watch: Monitor,
        reporter: Reporter,
    ) -> None:
        self._client = client
        self._dags = dags
        self._watch = watch
        self._reporter = reporter
        self._failures: dict[Target, dg.Failure] = {}
        self._skipped: set[Target] = set()
        by_dag: dict[str, dict[str | None, Target]] = {}
        for target in targets:
            by_dag.setdefault(target.dag_id, {})[target.partition] = target
        self._upstreams = {target: self._find_upstreams(target, by_dag) for target in targets}

    def run(self) -> Iterator[Event]:
        """Materializes what succeeds, as it succeeds.

        Raises:
            dagster.Failure: One or more DAGs failed; what did not depend on them was run.
        """
        try:
            yield from self._work()
        except (dg.DagsterExecutionInterruptedError, GeneratorExit):
            self._watch.interrupt()
            raise
        finally:
            self._watch.close()
        if self._failures:
            raise join_failures({one.name: failure for one, failure in self._failures.items()})

    def _work(self) -> Iterator[Event]:
        order = TopologicalSorter(self._upstreams)
        order.prepare()
        while order.is_active():
            for target in order.get_ready():
                if broken := self._find_broken(target):
                    self._skipped.add(target)
                    self._reporter.log_skipped(target, broken)
                    order.done(target)
                else:
                    self._watch.add(target)
            over = self._watch.turn()
            yield from self._reporter.take_events()
            for one in over:
                yield from self._conclude(one)
                order.done(one.target)

    def _find_upstreams(
        self, target: Target, targets: Mapping[str, Mapping[str | None, Target]]
    ) -> set[Target]:
        """What the target depends on in this step: the same partition of a DAG, or all of it."""
        found: set[Target] = set()
        for instance, dag_id in self._dags[target.dag_id].upstreams:
            own = targets.get(dag_id, {}) if instance == self._client.instance else {}
            same = own.get(target.partition)
            found |= {same} if same else set(own.values())
        return found

    def _find_broken(self, target: Target) -> list[str]:
        """What the target depends on and did not succeed, or is not waited for."""
        broken = self._failures.keys() | self._skipped
        return sorted(
            up.name
            for up in self._upstreams[target]
            if up in broken or not self._dags[up.dag_id].trigger.wait
        )

    def _conclude(self, one: MonitoredRun) -> Iterator[Event]:
        if one.error is not None:
            self._failures[one.target] = build_failure(one.error)
        if one.outcome is None:  # it failed before it ended, or is not waited for
            return
        if not one.outcome.is_success:
            self._failures[one.target] = build_run_failure(self._client, one.outcome)
        yield from self._reporter.report(one.target, one.outcome)


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
        current_run = CurrentRun(context.instance, context.run, client.instance)
        targets = _find_targets(context, client.instance, dags)
        checked = {key.asset_key for key in context.selected_asset_check_keys}
        with Heartbeat(context.instance, context.run.run_id, client.instance):
            if (reason := find_safe_mode_reason(os.environ)) is not None:
                _tell_held(context, client.instance, current_run, dags, targets, reason)
            elif targets:
                _wait_for_earlier(context, current_run)
                slots = Slots(context.instance, context.run, client.instance, max_active_runs)
                reporter = Reporter(context, client, current_run, specs, outputs, targets)
                watch = Monitor(client, current_run, dags, slots, reporter)
                yield from Step(client, dags, targets, watch, reporter).run()
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


def _wait_for_earlier(context: dg.AssetExecutionContext, current_run: CurrentRun) -> None:
    """Returns when no earlier attempt at the same goes on. One whose worker is dead is ended by
    the observation sensor."""
    told: list[str] = []
    while earlier := current_run.find_earlier_runs():
        if earlier != told:
            told = earlier
            context.log.info(f"Waiting for {', '.join(earlier)}: an earlier attempt at the same.")
        time.sleep(EARLIER_S)


def _tell_held(
    context: dg.AssetExecutionContext,
    instance: str,
    current_run: CurrentRun,
    dags: Mapping[str, DagDeclaration],
    targets: list[Target],
    reason: str,
) -> None:
    """What would have been done."""
    for target in targets:
        conf = redact(dags[target.dag_id].trigger.conf)
        context.log.warning(
            f"Nothing is triggered, for {reason}. DAG {target.name} of Airflow '{instance}' would "
            f"have been, as run {current_run.build_run_id(target)} with conf {conf}."
        )
