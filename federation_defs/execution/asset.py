"""The multi_asset of an instance's downstream DAGs: one op that runs the selected ones in order."""

# No `from __future__ import annotations` here: Dagster refuses a context annotated with text.

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from graphlib import TopologicalSorter

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.checks import (
    build_check_specs,
    name_check_outputs,
    repeat_evaluations,
    run_checks,
)
from federation_defs.dagster_io.code_locations import wait_for_observing_location
from federation_defs.dagster_io.current_run import CurrentRun
from federation_defs.dagster_io.deployment import has_step_processes
from federation_defs.dagster_io.heartbeat import HeartbeatMonitor, Heartbeats
from federation_defs.dagster_io.run_tags import Target, has_partitions, is_only_request
from federation_defs.declaration import DagDeclaration
from federation_defs.errors import DeclarationError, DeclaredTwiceError
from federation_defs.execution.cancellation import CancellationMonitor
from federation_defs.execution.concurrency import ConcurrencyLimit
from federation_defs.execution.launcher import Launcher, RunCanceledError, StepContext
from federation_defs.execution.monitor import Monitor
from federation_defs.execution.polling import MonitoredRun
from federation_defs.execution.reporter import Event, Reporter, join_failures
from federation_defs.naming import (
    CHECK_NAME,
    build_dag_id,
    build_input_names,
    build_op_name,
    build_output_names,
)
from federation_defs.redaction import redact
from federation_defs.safety import find_safe_mode_reason
from federation_defs.timing import Timing

_MAX_REPEATS = 5


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
    outputs = build_output_names(specs)
    upstream_keys = {dep.asset_key for spec in specs.values() for dep in spec.deps}
    inputs = build_input_names(upstream_keys - {spec.key for spec in specs.values()})
    checks = name_check_outputs(
        spec
        for dag_id in specs
        for spec in build_check_specs(client.instance, dag_id, dags[dag_id])
    )
    limit = ConcurrencyLimit(client, dags, max_active_runs, timing) if max_active_runs else None

    @dg.op(
        name=build_op_name(client.instance, "dags"),
        ins={name: dg.In(dg.Nothing) for name in inputs},
        out={name: dg.Out(dg.Nothing, is_required=False) for name in (*outputs.values(), *checks)},
    )
    def run_dags(context: dg.AssetExecutionContext) -> Iterator[Event]:
        try:
            yield from run(context)
        except (dg.Failure, dg.DagsterError):
            raise
        except DeclarationError as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        except RunCanceledError as error:
            # After an interruption, the Dagster run stays canceled; after a failure it would not
            # (dagster 1.13). But if the step has a process of its own, Dagster takes the
            # interruption for a crash, and runs the whole step again.
            if has_step_processes(context.job_def):
                raise dg.Failure("This run was canceled.", allow_retries=False) from error
            raise dg.DagsterExecutionInterruptedError from error
        except Exception as error:
            # Not an Airflow's error, but one of Dagster's database, for example. The repeated step
            # takes over its DAG runs. An op's `RetryPolicy` would repeat canceled steps, too
            # (dagster 1.13).
            raise dg.RetryRequested(_MAX_REPEATS, timing.repeat_step_s) from error

    def run(context: dg.AssetExecutionContext) -> Iterator[Event]:
        current_run = CurrentRun(context.instance, context.run, client.instance)
        step_context = StepContext(client, dags, current_run, context.log, timing)
        targets = _find_targets(context, client.instance, dags)
        # For DAGs that this step runs, the reporter evaluates the check `dag_run`, and sensors
        # evaluate the other checks.
        own = set(context.selected_asset_keys)
        by_sensors = {
            key
            for key in context.selected_asset_check_keys
            if key.asset_key in own and key.name != CHECK_NAME
        }
        yield from repeat_evaluations(context.instance, by_sensors)
        heartbeats = Heartbeats(context.instance, context.run.run_id, client.instance, timing)
        with heartbeats:
            if (reason := find_safe_mode_reason(os.environ)) is not None:
                _log_safe_mode(step_context, targets, reason)
            elif targets:
                _wait_for_other_location(context, client.instance, timing)
                _wait_for_run_group(step_context, heartbeats)
                reporter = Reporter(step_context, context, specs, outputs, targets)
                launcher = Launcher(step_context)
                monitor = Monitor(step_context, launcher, limit)
                step = _Step(step_context, targets, monitor, reporter)
                yield from step.run(CancellationMonitor(step_context, launcher))
                own -= {specs[target.dag_id].key for target in step.repeated}
            others = {key for key in context.selected_asset_check_keys if key.asset_key not in own}
            yield from run_checks(client, dags, others - by_sensors, context)

    return dg.AssetsDefinition(
        specs=list(specs.values()),
        node_def=run_dags,
        keys_by_input_name=inputs,
        keys_by_output_name={outputs[dag_id]: spec.key for dag_id, spec in specs.items()},
        check_specs_by_output_name=checks,
        can_subset=True,
        # A backfill is one Dagster run, and so one process, however many partitions it has.
        backfill_policy=dg.BackfillPolicy.single_run(),
    )


def _find_targets(
    context: dg.AssetExecutionContext, instance: str, dags: Mapping[str, DagDeclaration]
) -> list[Target]:
    """Return the DAGs of this instance, and their partitions, that the Dagster run selects.

    Raises:
        dagster.Failure: A DAG has partitions, and the run selects none.
    """
    targets: list[Target] = []
    for key in sorted(context.selected_asset_keys):
        dag_id = build_dag_id(instance, key)
        if dag_id is None:
            continue
        if dags[dag_id].partitions is None:
            targets.append(Target(dag_id))
            continue
        if not has_partitions(context.run):
            raise dg.Failure(
                f"DAG '{dag_id}' of Airflow '{instance}' has partitions, and this run names none: "
                "nothing was triggered. Choose one or more when you materialize the asset.",
                allow_retries=False,
            )
        targets += [Target(dag_id, partition) for partition in context.partition_keys]
    return targets


def _wait_for_other_location(
    context: dg.AssetExecutionContext, airflow: str, timing: Timing
) -> None:
    if (origin := context.run.remote_job_origin) is None:
        return
    location = origin.repository_origin.code_location_origin.location_name
    other = wait_for_observing_location(context.instance, airflow, location, timing, context.log)
    # If the event sensor requested this run before the instance moved, the event sensor of the
    # other location does not request it again.
    if other and not is_only_request(context.instance, context.run, airflow):
        error = DeclaredTwiceError(airflow, location, other)
        raise dg.Failure(f"{error} Nothing was triggered.", allow_retries=False)


def _wait_for_run_group(context: StepContext, heartbeats: Heartbeats) -> None:
    """Wait while another attempt may launch or report DAG runs of this instance.

    Of several attempts that wait, the one with the smallest Dagster run id continues. Each attempt
    announces itself, then pauses, and then looks for the others. After the pause, it sees all that
    announced themselves before it.
    """
    timing, current_run, logged = context.timing, context.current_run, list[str]()
    monitor = HeartbeatMonitor(context.client.instance, timing, timing.run_group_s)
    while not current_run.is_first:
        timing.sleep(timing.run_group_s)
        group = current_run.fetch_run_group()
        monitor.measure(group)
        others = [
            run.run_id
            for run in filter(monitor.is_in_step, group)
            if not monitor.is_waiting(run) or run.run_id < current_run.run_id
        ]
        if not others:
            break
        if others != logged:
            logged = others
            context.log.info(f"Waiting for {', '.join(others)}: another attempt at the same run.")
    heartbeats.begin()


def _log_safe_mode(context: StepContext, targets: list[Target], reason: str) -> None:
    for target in targets:
        conf = redact(context.dags[target.dag_id].trigger.conf)
        context.log.warning(
            f"Nothing is triggered, because {reason}. DAG {target.name} of Airflow "
            f"'{context.client.instance}' would have been triggered as run "
            f"{context.current_run.build_run_id(target)} with conf {conf}."
        )


class _Step:
    """Runs targets in the order of their dependencies, independent ones in parallel.

    Attributes:
        repeated: Targets that are not launched here, because an earlier Dagster run that automation
            requested for the same updates launches them.
    """

    def __init__(
        self, context: StepContext, targets: Sequence[Target], monitor: Monitor, reporter: Reporter
    ) -> None:
        self._dags = context.dags
        self._log = context.log
        self._monitor = monitor
        self._reporter = reporter
        self._failures: dict[Target, dg.Failure] = {}
        self._skipped: set[Target] = set()
        self.repeated: set[Target] = set()
        by_dag: dict[tuple[str, str], dict[str | None, Target]] = {}
        for target in targets:
            dag = context.client.instance, target.dag_id
            by_dag.setdefault(dag, {})[target.partition] = target
        self._upstreams = {target: self._find_upstreams(target, by_dag) for target in targets}

    def run(self, cancellation: CancellationMonitor) -> Iterator[Event]:
        """Run the targets, and yield their events as they come.

        Raises:
            dagster.Failure: One or more DAGs failed, and those that don't depend on them were run.
                Or Dagster has ended the Dagster run, or a person has deleted it.
            dagster.DagsterExecutionInterruptedError: The Dagster run is canceled, or its process is
                ended.
            RunCanceledError: The Dagster run is canceled, but Dagster sent no signal, as after a
                forced termination.
        """
        with ExitStack() as resources:
            resources.callback(cancellation.close)
            resources.callback(self._monitor.close)
            try:
                yield from self._run_in_order()
            except GeneratorExit:
                # An interruption or an error in Dagster's code ended the step, and the garbage
                # collector closes this generator: in any thread, which may hold a lock, or be the
                # heartbeat's or the cancellation's own. So nothing takes a lock or waits for a
                # thread, here and in `Heartbeats`.
                cancellation.keep(self._monitor.close)
                resources.pop_all()
                raise
            except dg.DagsterExecutionInterruptedError:
                # After an interruption without a cancellation, as when the machine shuts down,
                # Dagster's retry takes over the DAG runs.
                if cancellation.stop_if_canceled() is False:
                    self._log.warning(
                        "Interrupted, but not canceled: DAG runs that were started stay active."
                    )
                raise
            except RunCanceledError:
                if cancellation.stop_if_canceled() is False:
                    self._reporter.refuse_if_ended()
                raise
            if self._failures and cancellation.stop_if_canceled():
                raise RunCanceledError
        if self._failures:
            raise join_failures({target.name: error for target, error in self._failures.items()})

    def _run_in_order(self) -> Iterator[Event]:
        order = TopologicalSorter(self._upstreams)
        order.prepare()
        notes: dict[str, str] = {}
        while order.is_active():
            for target in order.get_ready():
                if blocking := self._find_blocking(target):
                    self._skipped.add(target)
                    names = ", ".join(blocking)
                    self._log.warning(f"{target.name} is skipped: it needs a success of {names}.")
                    order.done(target)
                    continue
                if same_request := self._reporter.find_same_request(target):
                    self.repeated.add(target)
                    self._log.info(
                        f"{target.name} is not launched here: Dagster requested it twice for the "
                        f"same update, and Dagster run {same_request} launches it."
                    )
                    yield from self._reporter.report_unmaterialized(target)
                    order.done(target)
                    continue
                if target.dag_id not in notes:
                    notes[target.dag_id] = self._reporter.build_note(target.dag_id)
                    self._reporter.warn_of_short_timeout(target.dag_id)
                self._monitor.add(target, notes[target.dag_id])
            launched, ended = self._monitor.wait()
            for run, dag_run in launched:
                yield self._reporter.report_launch(run.target, dag_run)
            for run in ended:
                yield from self._conclude(run)
                order.done(run.target)

    def _find_upstreams(
        self, target: Target, by_dag: Mapping[tuple[str, str], Mapping[str | None, Target]]
    ) -> set[Target]:
        """Return the targets of this step on which a target depends: of each upstream DAG the same
        partition, or all its targets if the step does not have that one."""
        found: set[Target] = set()
        for dag in self._dags[target.dag_id].upstreams:
            partitions = by_dag.get(dag, {})
            same = partitions.get(target.partition)
            found |= {same} if same else set(partitions.values())
        return found

    def _find_blocking(self, target: Target) -> list[str]:
        """Return the names of a target's upstreams that did not succeed, or are not waited for."""
        failed = self._failures.keys() | self._skipped
        return sorted(
            upstream.name
            for upstream in self._upstreams[target]
            if upstream in failed or not self._dags[upstream.dag_id].trigger.wait
        )

    def _conclude(self, run: MonitoredRun) -> Iterator[Event]:
        if run.error is not None:
            # No retry: the message names what a person has to do.
            self._failures[run.target] = dg.Failure(str(run.error), allow_retries=False)
        if run.outcome is None:  # it was given up, or is not waited for
            return
        if not run.outcome.is_success:
            self._failures[run.target] = self._reporter.build_failure(run.outcome)
        yield from self._reporter.report_outcome(run.target, run.outcome)
