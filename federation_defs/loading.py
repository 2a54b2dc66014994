"""Load a project so that run workers start quickly. Every trigger starts one, and its start is the
user's waiting time."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import dagster as dg
from typing_extensions import override

from federation_defs.component import FederatedAirflow
from federation_defs.naming import build_op_name


def load_federation(path_within_project: Path) -> dg.Definitions:
    """Load all definitions in the defs folder of the project that a path is in.

    Like `dagster.load_from_defs_folder`, except that run workers start faster:

    - `load_from_defs_folder` imports all installed component packages, including dagster-airlift,
      to describe them to the UI (dagster 1.13, `ComponentRootComponent`): 1.3 s.
    - Steps that only wait for DAGs run in the run worker. Dagster's default executor would start
      another process for each, 3 s later and 150 MB larger, and at most one per core at a time.

    Other runs are executed as without this function. If definitions in the folder set an executor,
    all runs have that one.
    """
    with warnings.catch_warnings():
        # As in `load_from_defs_folder`: they are about Dagster's own use of its new features.
        for category in (dg.BetaWarning, dg.PreviewWarning):
            warnings.simplefilter("ignore", category=category)
        tree = dg.ComponentTree.for_project(path_within_project)
        defs = tree.build_defs(tree.defs_module_path)
        names = [one.declaration.name for one in tree.get_all_components(FederatedAirflow)]
        executor = None if defs.executor else _build_executor(names)
        return dg.Definitions.merge(defs, dg.Definitions(executor=executor, component_tree=tree))


def _build_executor(instances: list[str]) -> dg.ExecutorDefinition:
    """Return Dagster's default executor, except that runs of only our steps stay in one process."""
    ops = "|".join(build_op_name(name, kind) for name in instances for kind in ("dags", "checks"))
    # Dagster numbers the steps of an op that it splits, as where dependencies cross.
    own_step = re.compile(rf"({ops})(_\d+)?")
    default: Any = dg.multi_or_in_process_executor

    def create(context: dg.InitExecutorContext) -> dg.Executor:
        in_process = context._replace(executor_config={"in_process": {"retries": {"enabled": {}}}})
        create_default = default.executor_creation_fn
        return _FederationExecutor(own_step, create_default(context), create_default(in_process))

    return dg.ExecutorDefinition(
        default.name, default.config_schema, default.get_requirements, create
    )


class _FederationExecutor(dg.Executor):
    """Runs steps that only wait for DAGs in this process, and any others as the default does."""

    def __init__(
        self, own_step: re.Pattern[str], default: dg.Executor, in_process: dg.Executor
    ) -> None:
        self._own_step = own_step
        self._default = default
        self._in_process = in_process

    @property
    @override
    def retries(self) -> Any:
        return self._default.retries

    @property
    @override
    def step_dependency_config(self) -> Any:
        return self._default.step_dependency_config

    @override
    def execute(self, plan_context: Any, execution_plan: Any) -> Any:
        is_own = all(map(self._own_step.fullmatch, execution_plan.step_keys_to_execute))
        executor = self._in_process if is_own else self._default
        return executor.execute(plan_context, execution_plan)
