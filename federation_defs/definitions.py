"""Dagster's entry point: the defs folder, and what spans instances."""

from pathlib import Path

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions.merge(
        dg.load_from_defs_folder(path_within_project=Path(__file__).parent),
        # A run waits for its DAGs in one process. The default executor would start one more per
        # step: 3 s later, 150 MB larger, and one at a time per core.
        dg.Definitions(executor=dg.in_process_executor),
    )
