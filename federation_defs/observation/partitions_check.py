"""The check `partitions`: what is wrong with the partitions of DAGs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import dagster as dg
from typing_extensions import override

from federation_defs.dagster_io.event_log import (
    fetch_completed_evaluations,
    fetch_last_materializations,
)
from federation_defs.dagster_io.reports import fetch_reported_partitions
from federation_defs.declaration import DagDeclaration, InstanceDeclaration
from federation_defs.events import PARTITIONS_LABEL, build_partitions_metadata
from federation_defs.naming import PARTITIONS_CHECK_NAME, build_asset_key
from federation_defs.observation.periodic_check import Evaluations, Findings, PeriodicCheck
from federation_defs.outcome import join_names
from federation_defs.partitions import Partitioning

_PARTITIONS_PER_DAG = 50  # that are compared with the declaration
_TOO_FREQUENT = 1.5  # up to this many times as often is fine: a day may have 25 hours


class PartitionsCheck(PeriodicCheck):
    """The check of the DAGs of one instance that have partitions.

    When the declared partitions have changed, reported partitions are compared with them. The
    former declaration need not be known: the dates of a run, which its report has, give the
    partition to which the run belongs now. If all reports agree, or a person has accepted them, the
    declaration is stored with the evaluation of the check. Then nothing is compared until the
    declaration changes again.
    """

    name = PARTITIONS_CHECK_NAME

    def __post_init__(self) -> None:
        super().__post_init__()
        # By DAG id, the position of the last report when they were compared, and what was found.
        self._compared: dict[str, tuple[int | None, Findings]] = {}

    @override
    def evaluate(
        self, instance: dg.DagsterInstance, dag_ids: Sequence[str], last: Evaluations, until: float
    ) -> Iterator[dg.AssetCheckEvaluation]:
        keys = {dag_id: self.build_key(dag_id) for dag_id in dag_ids}
        # Of a check that a Dagster run is about to evaluate, Dagster shows no evaluation. Then the
        # last completed one counts.
        hidden = [key for key in keys.values() if key not in last]
        last = {**last, **(fetch_completed_evaluations(instance, hidden) if hidden else {})}
        partitionings = self.observed.partitionings
        changed = {
            dag_id: partitionings[dag_id]
            for dag_id, key in keys.items()
            if dag_id in partitionings and not _is_remembered(partitionings[dag_id], last.get(key))
        }
        changed_assets = [keys[dag_id].asset_key for dag_id in changed]
        positions = fetch_last_materializations(instance, changed_assets) if changed else {}
        for dag_id, key in keys.items():
            findings = Findings()
            metadata = last[key].metadata if key in last else {}
            if problem := self.observed.find_partition_problem(dag_id):
                findings.errors.append(problem)
            if (partitioning := changed.get(dag_id)) is not None:
                position = positions.get(key.asset_key)
                compared = self._compare(instance, dag_id, partitioning, position)
                findings.errors += compared.errors
                findings.warnings += compared.warnings
                agrees = not (compared.errors or compared.warnings)
                metadata = build_partitions_metadata(partitioning.declaration) if agrees else {}
            if dag_id in self.too_frequent:
                findings.warnings.append(self.too_frequent[dag_id])
            yield findings.build_evaluation(key, "Nothing is wrong with its partitions.", metadata)

    def _compare(
        self,
        instance: dg.DagsterInstance,
        dag_id: str,
        partitioning: Partitioning,
        position: int | None,
    ) -> Findings:
        """Compare what was reported with the declaration. If nothing was reported since the last
        comparison, return its findings."""
        known = self._compared.get(dag_id)
        if known is None or known[0] != position:
            key = build_asset_key(self.airflow, dag_id)
            known = self._compared[dag_id] = position, _find_changed(instance, key, partitioning)
        return known[1]


def _is_remembered(partitioning: Partitioning, last: dg.AssetCheckEvaluation | None) -> bool:
    """Whether the last evaluation has this declaration: the reports agree, or were accepted."""
    declared = build_partitions_metadata(partitioning.declaration)[PARTITIONS_LABEL]
    return last is not None and last.metadata.get(PARTITIONS_LABEL) == declared


def _find_changed(
    instance: dg.DagsterInstance, key: dg.AssetKey, partitioning: Partitioning
) -> Findings:
    reported = fetch_reported_partitions(instance, key, _PARTITIONS_PER_DAG)
    gone: list[str] = []
    moved: list[str] = []
    for each in reported:
        if not partitioning.is_partition(each.partition):
            gone.append(each.partition)
        elif each.partition_key is not None or partitioning.read_date(each) is not None:
            now = partitioning.find_partition(each).key
            if now != each.partition:
                moved.append(f"{each.partition} (now {now or 'no partition'})")
    findings, compared = Findings(), f"of {len(reported)} reported partitions that were compared"
    declared = f"Declared now: {partitioning.describe()}."
    if moved:
        findings.errors.append(
            f"{len(moved)} {compared} hold a run that now belongs to another one: "
            f"{join_names(moved)}. {declared} Run these partitions again, declare what they were "
            "reported with, or execute this check to accept them as they are."
        )
    if gone:
        findings.warnings.append(
            f"{len(gone)} {compared} are not partitions any more, and Dagster does not show them: "
            f"{join_names(gone)}. {declared} Declare what they were reported with, or execute this "
            "check to accept that."
        )
    return findings


def find_too_frequent_upstreams(
    dags: Mapping[str, DagDeclaration], instances: Mapping[str, InstanceDeclaration]
) -> dict[str, str]:
    """Return why upstreams have partitions too often for DAGs that look only at the latest one, in
    sentences, by DAG id.

    Args:
        instances: The declarations of all instances, by name.
    """
    found: dict[str, str] = {}
    for dag_id, dag in dags.items():
        upstreams = {
            f"{instance}/{upstream}": partitions
            for instance, upstream in dag.upstreams
            if instance in instances
            and (partitions := instances[instance].find_dag(upstream).partitions)
        }
        slowest, why, remedy = None, "", ""
        if dag.partitions and dag.granularity == "last":
            slowest, why = dag.partitions, "With `granularity: last`, a partition"
            remedy = "write `granularity: all`"
        elif not dag.partitions and dag.trigger.when == "all" and upstreams:
            slowest = max(upstreams.values(), key=lambda each: each.cadence_s)
            why = "With `when: all` and without `partitions`, a run"
            remedy = "declare `partitions` of the DAG"
        if slowest is None:
            continue
        faster = [
            f"{name} (`{each.cron}`)"
            for name, each in upstreams.items()
            if each.cadence_s * _TOO_FREQUENT < slowest.cadence_s
        ]
        if faster:
            found[dag_id] = (
                f"{why} for each tick of `{slowest.cron}` looks only at the latest "
                f"partition of {', '.join(faster)}. If it needs all of them, {remedy}."
            )
    return found
