"""One step of a Dagster run: the selected DAGs of an instance, in the order of what they need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.declaration import DagDeclaration
from federation_defs.execution.attempt import Target
from federation_defs.execution.failures import build_failure, build_run_failure, join_failures
from federation_defs.execution.telling import Event, Teller
from federation_defs.execution.waiting import Wait
from federation_defs.execution.watching import Watch


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
        watch: Watch,
        teller: Teller,
    ) -> None:
        self._client = client
        self._dags = dags
        self._watch = watch
        self._teller = teller
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
                    self._teller.tell_skipped(target, broken)
                    order.done(target)
                else:
                    self._watch.add(target)
            over = self._watch.turn()
            yield from self._teller.take()
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

    def _conclude(self, one: Wait) -> Iterator[Event]:
        if one.error is not None:
            self._failures[one.target] = build_failure(one.error)
        if one.verdict is None:  # it failed before it ended, or is not waited for
            return
        if not one.verdict.is_success:
            self._failures[one.target] = build_run_failure(self._client, one.verdict)
        yield from self._teller.report(one.target, one.verdict)
