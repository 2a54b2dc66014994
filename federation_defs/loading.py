"""A project's defs folder, and what spans the instances in it."""

from __future__ import annotations

import warnings
from pathlib import Path

import dagster as dg


def load_federation(path_within_project: Path) -> dg.Definitions:
    """Everything in a project's defs folder, for run workers that start quickly.

    What `dagster.load_from_defs_folder` does, but for two things, because every trigger starts a
    run worker, and its start is the user's waiting time:

    - `load_from_defs_folder` imports all component packages that are installed, dagster-airlift
      among them, to describe them to the UI (dagster 1.13, `ComponentRootComponent`): 1.3 s.
    - A run waits for its DAGs in one process. The default executor would start one more per step:
      3 s later, 150 MB larger, and only as many at a time as there are cores.

    Args:
        path_within_project: The project's root, or anything in it.
    """
    with warnings.catch_warnings():
        # As `load_from_defs_folder` does: they tell of Dagster's own use of its beta features.
        warnings.simplefilter("ignore", category=dg.BetaWarning)
        tree = dg.ComponentTree.for_project(path_within_project)
        return dg.Definitions.merge(
            tree.build_defs(tree.defs_module_path),
            dg.Definitions(executor=dg.in_process_executor, component_tree=tree),
        )
