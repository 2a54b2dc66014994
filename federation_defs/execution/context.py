"""What the parts of a step share."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from federation_defs.airflow.client import AirflowClient
from federation_defs.dagster_io.run_tags import CurrentRun
from federation_defs.declaration import DagDeclaration
from federation_defs.timing import Timing


@dataclass(frozen=True)
class StepContext:
    """The step of one Airflow instance in one Dagster run.

    Attributes:
        dags: The declarations of the instance's DAGs, by DAG id.
        log: The Dagster run's log.
    """

    client: AirflowClient
    dags: Mapping[str, DagDeclaration]
    current_run: CurrentRun
    log: logging.Logger
    timing: Timing
