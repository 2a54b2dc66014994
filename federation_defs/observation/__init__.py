"""Observation: reports the finished runs of an Airflow instance to Dagster.

A finished run passes through `sensor` (the tick), `poller` (fetches the runs that changed),
`outcome_fetcher` (selects those to report now, and fetches their outcomes) and `reporter` (leaves
out those that a Dagster run will report, and stores the events that the event log lacks). Then
`cursor` advances. `check_evaluator` evaluates the other checks of DAGs, and signals slow runs and
late DAGs.
"""

from federation_defs.observation.periodic_check import (
    FindPartitionProblem,
    FindProblem,
    ObservedDags,
)
from federation_defs.observation.sensor import Limits, build_observation_sensor

__all__ = [
    "FindPartitionProblem",
    "FindProblem",
    "Limits",
    "ObservedDags",
    "build_observation_sensor",
]
