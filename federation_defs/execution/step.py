"""The order in which a step runs its targets: each once what it depends on has succeeded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from graphlib import TopologicalSorter

import dagster as dg

from federation_defs.dagster_io.run_tags import Target
from federation_defs.execution.cancellation import CancellationWatcher
from federation_defs.execution.launcher import StepContext
from federation_defs.execution.monitor import Monitor
from federation_defs.execution.polling import MonitoredRun
from federation_defs.execution.reporter import Event, Reporter, join_failures


class Step:
    """Runs targets of one Airflow instance, independent ones at the same time."""

    def __init__(
        self,
        context: StepContext,
        targets: Sequence[Target],
        monitor: Monitor,
        reporter: Reporter,
    ) -> None:
        self._dags = context.dags
        self._log = context.log
        self._monitor = monitor
        self._reporter = reporter
        self._failures: dict[Target, dg.Failure] = {}
        self._skipped: set[Target] = set()
        by_dag: dict[tuple[str, str], dict[str | None, Target]] = {}
        for target in targets:
            dag = context.client.instance, target.dag_id
            by_dag.setdefault(dag, {})[target.partition] = target
        self._upstreams = {target: self._find_upstreams(target, by_dag) for target in targets}

    def run(self, cancellation: CancellationWatcher) -> Iterator[Event]:
        """Run the targets, and yield their events as they come.

        Raises:
            dagster.Failure: One or more DAGs failed. Those that don't depend on them were run.
        """
        try:
            yield from self._run_in_order()
        except (dg.DagsterExecutionInterruptedError, GeneratorExit):
            # An interruption without a cancellation, as when the machine is taken away, leaves
            # the DAG runs to Dagster's retry.
            if not cancellation.stop_if_canceled():
                self._log.warning(
                    "Interrupted, and not canceled: DAG runs that were started go on."
                )
            raise
        finally:
            self._monitor.close()
            cancellation.close()
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
                    self._log.warning(f"{target.name} is skipped: it depends on {names}.")
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
        """Find what a target depends on in this step: the same partition of a DAG, or all of it."""
        found: set[Target] = set()
        for dag in self._dags[target.dag_id].upstreams:
            partitions = by_dag.get(dag, {})
            same = partitions.get(target.partition)
            found |= {same} if same else set(partitions.values())
        return found

    def _find_blocking(self, target: Target) -> list[str]:
        """Name the upstreams that did not succeed, or are not waited for."""
        failed = self._failures.keys() | self._skipped
        return sorted(
            upstream.name
            for upstream in self._upstreams[target]
            if upstream in failed or not self._dags[upstream.dag_id].trigger.wait
        )

    def _conclude(self, run: MonitoredRun) -> Iterator[Event]:
        if run.error is not None:
            # No retry: the error says what a person has to do.
            self._failures[run.target] = dg.Failure(str(run.error), allow_retries=False)
        if run.outcome is None:  # it was given up, or is not waited for
            return
        if not run.outcome.is_success:
            self._failures[run.target] = self._reporter.build_failure(run.outcome)
        yield from self._reporter.report_outcome(run.target, run.outcome)
