"""Executing: from an asset that is due to an Airflow run and its outcome.

All selected DAGs of an instance run in one step of one process. A DAG that is due passes `asset`
(the op and the order), `monitor` (launch, polls, outcome; it uses `concurrency`, `launcher` and
`polling`) and `reporter` (the events). `cancellation` polls the Dagster run's status beside them.
"""

from federation_defs.execution.asset import build_execution

__all__ = ["build_execution"]
