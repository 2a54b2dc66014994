"""Observation: reports the finished runs of an Airflow instance to Dagster.

A finished run passes `sensor` (the tick), `poller` (what changed), `outcomes` (what is reported
now) and `reporter` (what the event log lacks, and what a Dagster run reports itself). Then `cursor`
advances. `checks` evaluates the other checks of DAGs, and signals that runs are slow or DAGs late.
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
