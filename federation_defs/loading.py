"""Load a project so that run workers start quickly. Every trigger starts one, and its start is the
user's waiting time."""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from federation_defs.checks import find_check_instances, recreate_checks
from federation_defs.component import FederatedAirflow
from federation_defs.dagster_io.deployment import fetch_active_runs_in_worker, is_reconstruction
from federation_defs.declaration import InstanceDeclaration
from federation_defs.naming import build_op_name

_ASSET_JOB = "__ASSET_JOB"  # of runs of assets that no job of a project is named in (dagster 1.13)
_ANONYMOUS = "__anonymous_asset_job"  # of a schedule or a sensor with a selection (dagster 1.13)

_loaded: dict[tuple[Path, object], dg.Definitions] = {}  # by arguments, what was loaded last


def load_federation(
    path_within_project: Path, executor: dg.ExecutorDefinition | dg.Executor | None = None
) -> dg.Definitions:
    """Load all definitions in the defs folder of the project that a path is in.

    Like `dagster.load_from_defs_folder`, except that run workers start faster:

    - `load_from_defs_folder` imports all installed component packages, including dagster-airlift,
      to describe them to the UI (dagster 1.13, `ComponentRootComponent`): 1.3 s.
    - Every process loads once, though Dagster asks for the definitions twice.
    - A run worker builds only the instances whose DAGs are run, and what they depend on, unless
      one of the active runs may need more: one that executes checks of DAGs that Dagster does not
      run, or a job of the project's own.
    - Steps that only wait for DAGs run in the run worker. Dagster's default executor would start
      another process for each, 3 s later and 150 MB larger, and at most one per core at a time.

    Other runs are executed as without this function.

    Args:
        executor: Of all runs, in place of that. (`dagster.Definitions.merge` refuses a second one.)
            An executor that definitions in the folder set is taken without being passed.
    """
    key = path_within_project, executor
    if not is_reconstruction():
        _loaded[key] = _load(*key)
    elif key not in _loaded:
        runs = fetch_active_runs_in_worker()
        _loaded[key] = _load(*key) if runs is None else _load_for_runs(*key, runs)
    return _loaded[key]


def _load_for_runs(
    path: Path, executor: dg.ExecutorDefinition | dg.Executor | None, runs: Sequence[dg.DagsterRun]
) -> dg.Definitions:
    """Load what each of these runs needs. One of them is the worker's own."""
    defs = _load(path, executor, runs)
    own_jobs = {job.name for job in defs.jobs or ()}
    are_own = (run.job_name in own_jobs or _ANONYMOUS in run.job_name for run in runs)
    return _load(path, executor) if any(are_own) else defs


def _load(
    path: Path,
    executor: dg.ExecutorDefinition | dg.Executor | None,
    runs: Sequence[dg.DagsterRun] | None = None,
) -> dg.Definitions:
    with warnings.catch_warnings():
        # As in `load_from_defs_folder`: they are about Dagster's own use of its new features.
        for category in (dg.BetaWarning, dg.PreviewWarning):
            warnings.simplefilter("ignore", category=category)
        tree = dg.ComponentTree.for_project(path)
        components = tree.get_all_components(FederatedAirflow)
        declarations = [component.declaration for component in components]
        if runs is not None and (needed := _find_needed_dags(runs, declarations)) is not None:
            for component in components:
                component.needed = needed[component.declaration.name]
        names = [declaration.name for declaration in declarations]
        defs = tree.build_defs(tree.defs_module_path)
        executor = executor or defs.executor or _build_executor(names)
        own = dg.Definitions(executor=executor, component_tree=tree)
        return dg.Definitions.merge(_restore_checks(defs, names), own)


def _find_needed_dags(
    runs: Iterable[dg.DagsterRun], declarations: Iterable[InstanceDeclaration]
) -> dict[str, set[str]] | None:
    """Find the DAGs that these runs execute or depend on, by instance.

    None if a run may need any DAG: one without a selection, or one that executes checks of DAGs
    that Dagster does not run.
    """
    executed: defaultdict[str, set[str]] = defaultdict(set)
    checked: defaultdict[str, set[str]] = defaultdict(set)
    for run in runs:
        if run.job_name == _ASSET_JOB and not (run.asset_selection or run.asset_check_selection):
            return None
        for key in run.asset_selection or ():
            executed[key.path[0]].add(key.path[-1])
        for check in run.asset_check_selection or ():
            checked[check.asset_key.path[0]].add(check.asset_key.path[-1])
    needed: defaultdict[str, set[str]] = defaultdict(set)
    for declaration in declarations:
        name, downstreams = declaration.name, declaration.downstreams
        if not checked[name] <= downstreams.keys():
            return None
        # Assets of the project's own may depend on partitions.
        needed[name] |= {dag_id for dag_id, dag in declaration.dags.items() if dag.partitions}
        if not downstreams.keys().isdisjoint(executed[name] | checked[name]):
            needed[name] |= downstreams.keys()
            for dag in downstreams.values():
                for instance, upstream in dag.upstreams:
                    needed[instance].add(upstream)
    return needed


def _restore_checks(defs: dg.Definitions, instances: Iterable[str]) -> dg.Definitions:
    """Return the definitions with the checks of DAGs as `recreate_checks` makes them."""
    names = set(instances)
    checks = [
        recreate_checks(checks) if names & find_check_instances(checks) else checks
        for checks in defs.asset_checks or ()
    ]
    return dg.Definitions(
        assets=defs.assets,
        asset_checks=checks,
        jobs=defs.jobs,
        schedules=defs.schedules,
        sensors=defs.sensors,
        resources=defs.resources,
        loggers=defs.loggers,
        metadata=defs.metadata,
    )


def _build_executor(instances: Iterable[str]) -> dg.ExecutorDefinition:
    """Return Dagster's default executor, except that runs of only our steps stay in one process."""
    ops = "|".join(build_op_name(name, kind) for name in instances for kind in ("dags", "checks"))
    # Dagster numbers the steps of an op that it splits, as where dependencies cross.
    own_step = re.compile(rf"({ops})(_\d+)?")
    default: Any = dg.multi_or_in_process_executor

    def create(context: dg.InitExecutorContext) -> dg.Executor:
        steps = context.job.get_definition().graph.node_names()
        if all(map(own_step.fullmatch, steps)):
            in_process = {"in_process": {"retries": {"enabled": {}}}}
            context = context._replace(executor_config=in_process)
        return default.executor_creation_fn(context)

    return dg.ExecutorDefinition(
        default.name, default.config_schema, default.get_requirements, create
    )
