"""From an asset to an Airflow run: trigger, wait, adopt, stop.

All selected DAGs of an instance run in one step of one process (`definition`, `step`). Each is
started as soon as what it depends on within the step has succeeded (`starting`), and all are asked
for together (`waiting`). What Dagster knows of the run on whose behalf that is done, and what has
to outlive the process, is in `attempt`.
"""

from federation_defs.execution.asset import build_execution

__all__ = ["build_execution"]
