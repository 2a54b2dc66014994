"""Runs the DAGs that are due in Airflow, and reports their outcomes to Dagster.

All selected DAGs of an instance run in one step of one process. `asset` has the op, which runs them
in the order of their dependencies. `monitor` takes each one from launch to outcome; it uses
`concurrency`, `launcher` and `polling`. `reporter` builds the events. Meanwhile, `cancellation`
polls the status of the Dagster run.
"""

from federation_defs.execution.asset import build_execution

__all__ = ["build_execution"]
