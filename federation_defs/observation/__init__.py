"""Observation: reports the finished runs of an Airflow instance to Dagster."""

from federation_defs.observation.sensor import Limits, build_observation_sensor

__all__ = ["Limits", "build_observation_sensor"]
