"""The definitions of one instance: its assets, checks, sensors and jobs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import dagster as dg

from federation_defs.airflow.client import AirflowClient
from federation_defs.automation import build_automation_sensor, compute_interval
from federation_defs.checks import build_checks
from federation_defs.declaration import InstanceDeclaration
from federation_defs.execution import build_execution
from federation_defs.partition_mapping import select_decided_by_events
from federation_defs.partitions import Partitioning

if TYPE_CHECKING:
    from federation_defs.observation import FindPartitionProblem, FindProblem


def build_assets(
    client: AirflowClient, declaration: InstanceDeclaration, specs: Mapping[str, dg.AssetSpec]
) -> list[dg.AssetSpec | dg.AssetsDefinition]:
    """Return an instance's assets. Pure.

    Args:
        specs: Those of its DAGs, by id. Unless they include all DAGs that Dagster runs, it runs
            none.
    """
    downstreams = _select_downstreams(declaration, specs)
    assets: list[dg.AssetSpec | dg.AssetsDefinition] = [
        spec for dag_id, spec in specs.items() if dag_id not in downstreams
    ]
    if downstreams:
        limit = declaration.limits.max_active_runs
        assets.append(build_execution(client, declaration.downstreams, downstreams, limit))
    return assets


def _select_downstreams(
    declaration: InstanceDeclaration, specs: Mapping[str, dg.AssetSpec]
) -> dict[str, dg.AssetSpec]:
    are_run = declaration.downstreams.keys() <= specs.keys()
    return {dag_id: specs[dag_id] for dag_id in declaration.downstreams} if are_run else {}


def build_instance_defs(
    client: AirflowClient,
    declaration: InstanceDeclaration,
    specs: Mapping[str, dg.AssetSpec],
    absent: Mapping[str, str] = MappingProxyType({}),
    instances: Mapping[str, InstanceDeclaration] = MappingProxyType({}),
    find_problem: FindProblem = lambda *_: None,
    find_partition_problem: FindPartitionProblem = lambda _: None,
    undecided: Collection[str] = (),
    state_error: str = "",
) -> dg.Definitions:
    """Return an instance's assets, checks, sensors and jobs. Pure.

    Args:
        specs: As `build_assets` takes them.
        absent: A sentence for each named DAG that the instance does not have, because its file is
            missing or does not parse. By id.
        instances: The declarations of all instances of the code location, by name.
        find_problem, find_partition_problem: As in `ObservedDags`.
        undecided: The ids of DAGs that nothing starts, because of their partitions.
        state_error: Why states could not be read; empty if they could. Unless it is empty, and as
            long as any DAG is undecided, the event sensor starts and drops nothing.
    """
    # Run workers build no sensors and do not import them: each import delays what they run.
    from federation_defs.dependencies.sensor import build_drop_job, build_event_sensor
    from federation_defs.observation import ObservedDags, build_observation_sensor

    instances = {**instances, declaration.name: declaration}
    downstreams = _select_downstreams(declaration, specs)
    dags = {dag_id: declaration.find_dag(dag_id) for dag_id in specs}
    observed = {dag_id: dag for dag_id, dag in dags.items() if dag_id not in downstreams}
    observed_dags = ObservedDags(
        {dag_id: dag.success_when for dag_id, dag in dags.items()},
        declaration.dags,
        {
            dag_id: Partitioning(dag.partitions)
            for dag_id, dag in declaration.dags.items()
            if dag.partitions
        },
        instances,
        absent,
        find_problem,
        find_partition_problem,
    )
    sensors = [build_observation_sensor(client, observed_dags, declaration.observe)]
    decided = {
        dag_id: dag for dag_id, dag in declaration.downstreams.items() if dag_id not in undecided
    }
    by_events = select_decided_by_events(decided, instances)
    by_condition = [
        spec.key
        for dag_id, spec in downstreams.items()
        if dag_id in decided and dag_id not in by_events
    ]
    interval_s = compute_interval(len(each.downstreams) for each in instances.values())
    jobs = list[dg.JobDefinition]()
    if by_condition:
        sensors.append(build_automation_sensor(declaration.name, by_condition, interval_s))
    # The event sensor is there even if all DAGs are undecided. It continues to read events, so that
    # those of this time start nothing later, and it drops what waits.
    if downstreams and (by_events or undecided):
        pause = state_error if undecided else ""
        sensors.append(build_event_sensor(client, by_events, instances, interval_s, pause))
    if downstreams and by_events:
        jobs.append(build_drop_job(declaration.name, by_events.keys()))
    return dg.Definitions(
        assets=build_assets(client, declaration, specs),
        asset_checks=[build_checks(client, observed)] if observed else [],
        sensors=sensors,
        jobs=jobs,
    )
