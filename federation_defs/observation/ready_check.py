"""The check `ready`: what keeps DAGs from running when their upstreams succeed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import dagster as dg
from typing_extensions import override

from federation_defs.airflow.client import AirflowClient
from federation_defs.dagster_io.event_log import (
    fetch_last_evaluations,
    fetch_last_materializations,
    fetch_last_request,
)
from federation_defs.declaration import DependencyDeclaration
from federation_defs.errors import AirflowError
from federation_defs.naming import READY_CHECK_NAME, build_asset_key, build_check_key
from federation_defs.observation.periodic_check import Evaluations, Findings, PeriodicCheck
from federation_defs.outcome import join_names
from federation_defs.threads import run_in_threads


@dataclass
class ReadyCheck(PeriodicCheck):
    """The check of the DAGs of one instance that depend on others.

    The content of the event log is current. The state of a DAG in its Airflow is as of the last
    refresh, so the check does not see that a DAG was paused later. If a DAG of this instance had a
    problem then, Airflow is asked whether the DAG still has one.

    Attributes:
        by_events: The ids of the DAGs that the event sensor starts.
    """

    name = READY_CHECK_NAME
    client: AirflowClient
    by_events: Collection[str]

    @override
    def evaluate(
        self, instance: dg.DagsterInstance, dag_ids: Sequence[str], last: Evaluations, until: float
    ) -> Iterator[dg.AssetCheckEvaluation]:
        edges = {dag_id: self._find_needed(dag_id) for dag_id in dag_ids}
        keys = {dag_id: {edge.key for edge in needed} for dag_id, needed in edges.items()}
        checks = {
            build_check_key(edge.key)
            for dag_id in filter(self._waits_for_all, dag_ids)
            for edge in edges[dag_id]
            if edge.upstream  # other assets have no such check
        }
        updates = fetch_last_materializations(instance, set().union(*keys.values()))
        outcomes = fetch_last_evaluations(instance, checks)
        find_problem = cache(partial(self._find_present_problem, until))
        for dag_id in dag_ids:
            dag, findings = self.dags[dag_id], Findings()
            if problem := find_problem(self.airflow, dag_id):
                findings.errors.append(f"The DAG {problem}.")
            for upstream in dag.upstreams:
                if problem := find_problem(*upstream):
                    findings.errors.append(f"{'/'.join(upstream)} {problem}.")
            findings.warnings += [
                f"{edge.name} has never {'succeeded' if edge.upstream else 'been materialized'}."
                for edge in edges[dag_id]
                if edge.key not in updates
            ]
            if dag.partitions is None and dag_id in self.too_frequent:
                findings.warnings.append(self.too_frequent[dag_id])
            if dag.partitions is None and (problem := self.observed.find_partition_problem(dag_id)):
                findings.errors.append(problem)
            elif self._waits_for_all(dag_id):
                self._find_awaited(instance, dag_id, updates, outcomes, findings)
            yield findings.build_evaluation(
                self.build_key(dag_id), "Nothing keeps it from running."
            )

    def _waits_for_all(self, dag_id: str) -> bool:
        """Whether the DAG's automation condition waits until several upstreams have succeeded."""
        return dag_id not in self.by_events and self.dags[dag_id].trigger.when == "all"

    def _find_awaited(
        self,
        instance: dg.DagsterInstance,
        dag_id: str,
        updates: Mapping[dg.AssetKey, int],
        outcomes: Evaluations,
        findings: Findings,
    ) -> None:
        """Find what the DAG's automation condition waits for, and add it to `findings`.

        Args:
            updates: Positions of the last materializations in the event log.
            outcomes: The last evaluations of the checks `dag_run`.
        """
        names = {edge.key: edge.name for edge in self.dags[dag_id].depends_on}
        for key, name in names.items():
            last = outcomes.get(build_check_key(key))
            if last is not None and not last.passed:
                findings.warnings.append(f"The last run of {name} failed.")
        requested_at = fetch_last_request(instance, build_asset_key(self.airflow, dag_id))
        is_new = {key: position > requested_at for key, position in updates.items()}
        waiting = [name for key, name in names.items() if is_new.get(key) is False]
        if waiting and any(is_new.get(key) for key in names):
            findings.notes.append(f"The DAG waits for the next success of {join_names(waiting)}.")

    def _find_needed(self, dag_id: str) -> list[DependencyDeclaration]:
        """Find the dependencies that must have succeeded once before the DAG can run.

        If the event sensor decides, with `when: any`, an event of any dependency starts a run, so
        none is needed. With `runs: latest`, a partition needs the partitions of all upstreams.
        """
        dag = self.dags[dag_id]
        is_any = dag_id in self.by_events and dag.trigger.when == "any"
        if is_any and (dag.partitions is None or dag.trigger.runs == "each"):
            return []
        return [edge for edge in dag.depends_on if edge.state == "success"]

    def _find_present_problem(self, until: float, airflow: str, dag_id: str) -> str | None:
        known = self.observed.find_problem(airflow, dag_id)
        if known is None or airflow != self.airflow:
            return known
        try:
            rest_s = self.timing.find_rest_s(until)
            (dag,) = run_in_threads([partial(self.client.fetch_dag, dag_id)], 1, rest_s)
        except AirflowError:
            return known
        return dag.problem if dag else known
