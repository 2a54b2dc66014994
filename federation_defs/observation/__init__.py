"""Observation: reports the finished runs of an Airflow instance to Dagster.

A finished run passes `sensor` (the tick), `poller` (what changed), `outcomes` (what is reported
now, and what a Dagster run reports itself) and `events` (what the event log lacks). Then `cursor`
advances.
"""

from federation_defs.observation.sensor import Limits, build_observation_sensor

__all__ = ["Limits", "build_observation_sensor"]
