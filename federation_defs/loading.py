"""Load a project so that run workers start quickly. Every trigger starts one, and its start is the
user's waiting time."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import dagster as dg

from federation_defs.component import FederatedAirflow
from federation_defs.naming import build_op_name


def load_federation(
    path_within_project: Path, executor: dg.ExecutorDefinition | dg.Executor | None = None
) -> dg.Definitions:
    """Load all definitions in the defs folder of the project that a path is in.

    Like `dagster.load_from_defs_folder`, except that run workers start faster:

    - `load_from_defs_folder` imports all installed component packages, including dagster-airlift,
      to describe them to the UI (dagster 1.13, `ComponentRootComponent`): 1.3 s.
    - Steps that only wait for DAGs run in the run worker. Dagster's default executor would start
      another process for each, 3 s later and 150 MB larger, and at most one per core at a time.

    Other runs are executed as without this function.

    Args:
        executor: Of all runs, in place of that. (`dagster.Definitions.merge` refuses a second one.)
            An executor that definitions in the folder set is taken without being passed.
    """
    with warnings.catch_warnings():
        # As in `load_from_defs_folder`: they are about Dagster's own use of its new features.
        for category in (dg.BetaWarning, dg.PreviewWarning):
            warnings.simplefilter("ignore", category=category)
        tree = dg.ComponentTree.for_project(path_within_project)
        defs = tree.build_defs(tree.defs_module_path)
        names = [one.declaration.name for one in tree.get_all_components(FederatedAirflow)]
        executor = executor or defs.executor or _build_executor(names)
        return dg.Definitions.merge(defs, dg.Definitions(executor=executor, component_tree=tree))


def _build_executor(instances: list[str]) -> dg.ExecutorDefinition:
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
