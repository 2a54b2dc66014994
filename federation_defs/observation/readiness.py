"""Finds what keeps DAGs from running when their upstreams succeed: the check `ready`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.dagster_io.event_log import (
    fetch_last_evaluations,
    fetch_last_materializations,
    fetch_last_request,
)
from federation_defs.declaration import DagDeclaration, DependencyDeclaration
from federation_defs.errors import AirflowError
from federation_defs.naming import READY_CHECK_NAME, build_asset_key, build_check_key
from federation_defs.observation.alignment import FindPartitionProblem
from federation_defs.observation.findings import Findings, Last
from federation_defs.outcome import join_names
from federation_defs.threads import run_in_threads
from federation_defs.timing import Timing

FindProblem = Callable[[str, str], str | None]


class Readiness:
    """Evaluates the check of the DAGs of one instance that depend on others.

    What the event log holds is as of now. The state of a DAG in its Airflow is as of the last
    refresh, so that a DAG that is paused later is not known to be. If it is bad, and the DAG one of
    this instance, Airflow is asked whether it still is.

    Args:
        dags: The declarations, by DAG id.
        by_events: The ids of those on which the event sensor decides.
        find_problem: Returns why a DAG can't run by the last refresh, given instance and DAG id, as
            the end of a sentence; None if nothing is known to be wrong with it.
        find_partition_problem: Returns what is wrong with the partitions of a DAG by the last
            refresh, or those that it depends on, given its id, as sentences.
        unfit: Why upstreams have partitions too often for a DAG without, by DAG id.
    """

    def __init__(
        self,
        client: AirflowClient,
        dags: Mapping[str, DagDeclaration],
        by_events: Collection[str],
        find_problem: FindProblem,
        find_partition_problem: FindPartitionProblem,
        unfit: Mapping[str, str],
        timing: Timing,
    ) -> None:
        self._client = client
        self._dags = dags
        self._by_events = by_events
        self._find_known_problem = find_problem
        self._find_partition_problem = find_partition_problem
        self._unfit = unfit
        self._timing = timing

    def evaluate(
        self, instance: dg.DagsterInstance, chosen: Sequence[str], _last: Last, deadline: float
    ) -> Iterator[dg.AssetCheckEvaluation]:
        """Evaluate the check of some DAGs.

        Args:
            deadline: By the monotonic clock. Later answers of Airflow don't count.
        """
        known = self._fetch_known(instance, chosen)
        find_problem = cache(partial(self._find_problem, deadline))
        for dag_id in chosen:
            findings = self._examine(instance, dag_id, known, find_problem)
            key = build_check_key(self._build_key(dag_id), READY_CHECK_NAME)
            yield findings.build_evaluation(key, "Nothing keeps it from running.")

    def _examine(
        self, instance: dg.DagsterInstance, dag_id: str, known: _Known, find_problem: FindProblem
    ) -> Findings:
        dag, findings = self._dags[dag_id], Findings()
        if problem := find_problem(self._client.instance, dag_id):
            findings.errors.append(f"The DAG {problem}.")
        for upstream in dag.upstreams:
            if problem := find_problem(*upstream):
                findings.errors.append(f"{'/'.join(upstream)} {problem}.")
        findings.warnings += [
            f"{each.name} has never {'succeeded' if each.upstream else 'been materialized'}."
            for each in self._find_needed(dag_id)
            if each.key not in known.updates
        ]
        if dag.partitions is None and dag_id in self._unfit:
            findings.warnings.append(self._unfit[dag_id])
        if dag.partitions is None and (problem := self._find_partition_problem(dag_id)):
            findings.errors.append(problem)
        elif dag_id not in self._by_events:
            self._examine_latches(instance, dag_id, known, findings)
        return findings

    def _examine_latches(
        self, instance: dg.DagsterInstance, dag_id: str, known: _Known, findings: Findings
    ) -> None:
        """Find what the DAG's automation condition waits for, if it waits for several."""
        dag, updates = self._dags[dag_id], known.updates
        names = {each.key: each.name for each in dag.depends_on}
        if dag.trigger.when == "all":
            for key, name in names.items():
                last = known.evaluations.get(build_check_key(key))
                if last is not None and not last.passed:
                    findings.warnings.append(f"The last run of {name} failed.")
            requested_at = fetch_last_request(instance, self._build_key(dag_id))
            is_new = {key: position > requested_at for key, position in updates.items()}
            waiting = [name for key, name in names.items() if is_new.get(key) is False]
            if waiting and any(is_new.get(key) for key in names):
                listed = join_names(waiting)
                findings.notes.append(f"It waits for the next success of {listed}.")

    def _find_needed(self, dag_id: str) -> list[DependencyDeclaration]:
        """Find the dependencies without whose successes the DAG never runs. Of several, of which
        any starts a run by an event, none is needed, unless partitions are what is needed."""
        dag = self._dags[dag_id]
        is_any = dag_id in self._by_events and dag.trigger.when == "any"
        if is_any and (dag.partitions is None or dag.trigger.runs == "each"):
            return []
        return [each for each in dag.depends_on if each.state == "success"]

    def _fetch_known(self, instance: dg.DagsterInstance, dag_ids: Iterable[str]) -> _Known:
        checks: set[dg.AssetCheckKey] = set()
        upstreams: set[dg.AssetKey] = set()
        for dag_id in dag_ids:
            keys = {each.key for each in self._find_needed(dag_id)}
            upstreams |= keys
            if self._dags[dag_id].trigger.when == "all" and dag_id not in self._by_events:
                checks |= {build_check_key(key) for key in keys}
        return _Known(
            fetch_last_materializations(instance, upstreams),
            fetch_last_evaluations(instance, checks),
        )

    def _find_problem(self, deadline: float, airflow: str, dag_id: str) -> str | None:
        known = self._find_known_problem(airflow, dag_id)
        if known is None or airflow != self._client.instance:
            return known
        try:
            rest_s = self._timing.find_rest_s(deadline)
            (dag,) = run_in_threads([partial(self._client.fetch_dag, dag_id)], 1, rest_s)
        except AirflowError:
            return known
        return dag.problem if dag else known

    def _build_key(self, dag_id: str) -> dg.AssetKey:
        return build_asset_key(self._client.instance, dag_id)


@dataclass(frozen=True)
class _Known:
    """What the event log holds of some DAGs.

    Attributes:
        updates: Positions of the last materializations of their upstreams, of those that have one.
        evaluations: The last ones of the checks `dag_run` of upstreams of which all have to
            succeed.
    """

    updates: Mapping[dg.AssetKey, int]
    evaluations: Mapping[dg.AssetCheckKey, dg.AssetCheckEvaluation]
