"""Load a project so that run workers start quickly. Every trigger of DAGs starts a run worker, and
the user waits for it."""

from __future__ import annotations

import gc
import logging
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import dagster as dg

from federation_defs.checks import are_dag_checks, recreate_checks
from federation_defs.component import FederatedAirflow
from federation_defs.dagster_io.deployment import (
    fetch_active_runs_in_worker,
    is_reconstruction,
    note_steps_in_worker,
)
from federation_defs.declaration import InstanceDeclaration, suggest
from federation_defs.naming import REFRESH_OP_NAME, build_asset_key, build_dag_id, build_op_name
from federation_defs.refresh import build_refresh
from federation_defs.validation import Member

_log = logging.getLogger(__name__)

_ASSET_JOB = "__ASSET_JOB"  # of a run that selects assets and names no job (dagster 1.13)


def load_federation(
    path_within_project: Path,
    executor: dg.ExecutorDefinition | dg.Executor | None = None,
    refresh_cron: str | None = None,
) -> dg.Definitions:
    """Load all definitions in the defs folder of the project that a path is in.

    Like `dagster.load_from_defs_folder`, except that run workers start faster:

    - `load_from_defs_folder` imports all installed component packages, including dagster-airlift,
      to describe them to the UI (dagster 1.13, `ComponentRootComponent`): 1.3 s.
    - The loaded definitions are kept, because Dagster asks for them twice.
    - A run worker builds only the instances whose DAGs are run, and what they depend on. It builds
      everything if it can't find out what its run needs, or if the run may need more: a job of the
      project's own, or checks of DAGs that Dagster does not run.
    - Steps that only wait for DAGs run in the run worker. Dagster's default executor would start
      another process for each, which takes 3 s and 150 MB, and at most one per core at a time.

    Other runs are executed as without this function.

    Args:
        path_within_project: Any path in the project, as `Path(__file__).parent`.
        executor: The executor of all runs, in place of Dagster's default with the difference above.
            An executor that the definitions in the folder have is used without being passed.
            (`dagster.Definitions.merge` refuses a second one.)
        refresh_cron: When to refresh the states of instances that have them in
            `VERSIONED_STATE_STORAGE`, in UTC. By default each hour, at a minute that depends on the
            project's name: Dagster (1.13) may lose one of two versions stored at the same time.
    """
    loaded = _loaded.get(path_within_project)
    if not is_reconstruction():
        loaded = _load(path_within_project, refresh_cron, executor)
    elif loaded is None or loaded.needed is not None:  # a code server has loaded everything
        if loaded is None:
            # Imported objects never become garbage. Checking them again would take a twentieth of
            # a run worker's CPU time.
            gc.freeze()
        runs = fetch_active_runs_in_worker()
        if loaded is None or not loaded.has_all_for(runs):
            loaded = _load(path_within_project, refresh_cron, executor, runs)
    _loaded[path_within_project] = loaded
    return loaded.finish(executor)


@dataclass
class _Loaded:
    """What was loaded of a project.

    Attributes:
        needed: By instance, the DAGs that were built; None if all were.
    """

    tree: dg.ComponentTree
    declarations: Sequence[InstanceDeclaration]
    needed: Mapping[str, Set[str]] | None
    defs: dg.Definitions

    def __post_init__(self) -> None:
        names = [declaration.name for declaration in self.declarations]
        self._default = self.defs.executor or _build_executor(names)
        self._finished: tuple[object, dg.Definitions] | None = None

    def has_all_for(self, runs: Iterable[dg.DagsterRun]) -> bool:
        """Whether all that these runs need was built."""
        if self.needed is None:
            return True
        needed = _find_needed_dags(runs, self.declarations)
        known = self.needed
        return needed is not None and all(needed[name] <= known.get(name, set()) for name in needed)

    def finish(self, executor: dg.ExecutorDefinition | dg.Executor | None) -> dg.Definitions:
        """Return the definitions with an executor; for the same one, the same definitions."""
        selected = executor or self._default
        if self._finished is None or self._finished[0] is not selected:
            own = dg.Definitions(executor=selected, component_tree=self.tree)
            self._finished = selected, dg.Definitions.merge(_restore_checks(self.defs), own)
        return self._finished[1]


_loaded: dict[Path, _Loaded] = {}  # what this process loaded last


def _load(
    path: Path,
    refresh_cron: str | None,
    executor: dg.ExecutorDefinition | dg.Executor | None,
    runs: Sequence[dg.DagsterRun] = (),
) -> _Loaded:
    """Load what these runs need; everything if there are none."""

    class Tree(dg.ComponentTree):
        def reload_with_state(self, changed_state_keys: Iterable[str]) -> dg.Definitions:  # noqa: ARG002
            """Load the project anew. Dagster+ calls this if only states have changed, and uses the
            result as the definitions (1.13). Those of the tree alone lack what is added here."""
            return load_federation(path, executor, refresh_cron)

    with warnings.catch_warnings():
        # As in `load_from_defs_folder`: these warnings are about Dagster's own use of new features.
        for category in (dg.BetaWarning, dg.PreviewWarning):
            warnings.simplefilter("ignore", category=category)
        tree = Tree.for_project(path)
        components = tree.get_all_components(FederatedAirflow)
        declarations = [component.declaration for component in components]
        needed = _find_needed_dags(runs, declarations)
        for component in components:
            component.needed = None if needed is None else needed[component.declaration.name]
            if needed is not None:
                component.federation = components
        try:
            defs = tree.build_defs(tree.defs_module_path)
            if needed is not None:
                defs = _add_partitioned(defs, components)
            else:
                minute = crc32(tree.defs_module_name.encode()) % 60
                refresh = build_refresh(components, refresh_cron or f"{minute} * * * *")
                defs = dg.Definitions.merge(defs, refresh)
            loaded = _Loaded(tree, declarations, needed, defs)
            if needed is not None:
                loaded.finish(None).get_repository_def()
            else:
                _warn_of_unknown_assets([component.member for component in components], defs)
        except Exception:
            if needed is None:
                raise
            # The project's own definitions may name assets that were left out. An error that has
            # another reason is raised again when everything is loaded.
            _log.info("Loading the whole project, because a part of it failed.", exc_info=True)
            return _load(path, refresh_cron, executor)
        return loaded


def _add_partitioned(
    defs: dg.Definitions, components: Sequence[FederatedAirflow]
) -> dg.Definitions:
    """Add the DAGs with partitions that were left out and that the project's own assets depend on.
    Dagster maps the partitions of those assets to the DAGs'."""
    known, depended_on = set[dg.AssetKey](), set[dg.AssetKey]()
    for each in defs.assets or ():
        match each:
            case dg.AssetsDefinition():
                known |= set(each.keys)
                depended_on |= set(each.dependency_keys)
            case dg.AssetSpec():
                known.add(each.key)
                depended_on |= {dep.asset_key for dep in each.deps}
            case _:  # its dependencies are not known now
                pass
    missing = depended_on - known
    added: list[dg.AssetSpec] = []
    for component in components if missing else ():
        declaration = component.declaration
        dag_ids = {
            dag_id
            for dag_id, dag in declaration.dags.items()
            if dag.partitions and build_asset_key(declaration.name, dag_id) in missing
        }
        if dag_ids:
            specs = component.build_specs_for_run(dag_ids, component.context)
            added += [spec for spec in specs.values() if spec.partitions_def]
    return dg.Definitions.merge(defs, dg.Definitions(assets=added)) if added else defs


def _warn_of_unknown_assets(members: Iterable[Member], defs: dg.Definitions) -> None:
    """Warn of assets that DAGs depend on and the defs folder does not have.

    Dagster (1.13) takes them for external assets. If nothing materializes them, they start no DAG.
    """
    depending = [
        (f"{member.source}: dags.{dag_id}.depends_on", dg.AssetKey(key))
        for member in members
        for dag_id, dag in member.declaration.dags.items()
        for key in dag.upstream_assets
    ]
    if not depending:
        return
    known: set[dg.AssetKey] = set()
    for each in defs.assets or ():
        match each:
            case dg.AssetsDefinition():
                known |= set(each.keys)
            case dg.AssetSpec() | dg.SourceAsset():
                known.add(each.key)
            case _:  # loads its assets later
                return
    for where, key in depending:
        if key not in known:
            name = key.to_user_string()
            same = (other.to_user_string() for other in known if len(other.path) == len(key.path))
            hint = suggest(name, same) or "."
            _log.warning("%s: the defs folder has no asset '%s'%s", where, name, hint)


def _find_needed_dags(
    runs: Iterable[dg.DagsterRun], declarations: Sequence[InstanceDeclaration]
) -> dict[str, set[str]] | None:
    """Find the DAGs that these runs execute or depend on, by instance.

    None if there is no run, or if one may need any DAG: it is of another job than Dagster's own for
    assets, has no selection, or executes checks of DAGs that Dagster does not run.
    """
    executed, checked = set[dg.AssetKey](), set[dg.AssetKey]()
    is_known = False
    for run in runs:
        is_known = True
        has_selection = run.asset_selection or run.asset_check_selection
        if run.job_name != _ASSET_JOB or not has_selection:
            return None
        executed |= run.asset_selection or set()
        checked |= {check.asset_key for check in run.asset_check_selection or ()}
    needed = defaultdict(set[str], {declaration.name: set[str]() for declaration in declarations})
    for declaration in declarations:
        name, downstreams = declaration.name, declaration.downstreams
        # None stands for an asset that is not a DAG, such as that of the state.
        checked_dags = {build_dag_id(name, key) for key in checked if key.path[0] == name}
        if not checked_dags <= downstreams.keys():
            return None
        executed_dags = {build_dag_id(name, key) for key in executed}
        if not downstreams.keys().isdisjoint(executed_dags | checked_dags):
            needed[name] |= downstreams.keys()
            for dag in downstreams.values():
                for instance, upstream in dag.upstreams:
                    needed[instance].add(upstream)
    return dict(needed) if is_known else None


def _restore_checks(defs: dg.Definitions) -> dg.Definitions:
    """Return the definitions with the checks of DAGs as `recreate_checks` makes them."""
    checks = [
        recreate_checks(checks) if are_dag_checks(checks) else checks
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
    """Return Dagster's default executor, except that a run of our steps only is one process."""
    own = (build_op_name(name, kind) for name in instances for kind in ("dags", "checks"))
    ops = "|".join([REFRESH_OP_NAME, *own])
    # Dagster splits an op where dependencies cross, for example, and numbers its steps.
    own_step = re.compile(rf"({ops})(_\d+)?")
    default: Any = dg.multi_or_in_process_executor

    def create(context: dg.InitExecutorContext) -> dg.Executor:
        steps = context.job.get_definition().graph.node_names()
        if all(map(own_step.fullmatch, steps)):
            in_process = {"in_process": {"retries": {"enabled": {}}}}
            context = context._replace(executor_config=in_process)
            note_steps_in_worker()
        return default.executor_creation_fn(context)

    return dg.ExecutorDefinition(
        default.name, default.config_schema, default.get_requirements, create
    )
