"""Observation: reports the finished runs of an Airflow instance to Dagster.

A finished run passes `sensor` (the tick), `poller` (what changed), `outcomes` (what is reported
now, and what a Dagster run reports itself) and `events` (what the event log lacks). Then `cursor`
advances. `watchers` tell what is no end of a run: slow runs, late DAGs, what blocks DAGs, and what
is wrong with their partitions.
"""

from federation_defs.observation.sensor import Limits, build_observation_sensor
from federation_defs.observation.watchers import FindPartitionProblem, FindProblem

__all__ = ["FindPartitionProblem", "FindProblem", "Limits", "build_observation_sensor"]
