"""Finished runs of one instance, as asset events.

In the order in which a tick goes about it: the `cursor` says from when on to look, `looking` reads
what changed since, `choosing` says what of it is reported now, and the `sensor` reports it.
"""

from federation_defs.observation.sensor import Limits, build_observation_sensor

__all__ = ["Limits", "build_observation_sensor"]
