"""Settings of a Dagster instance."""

from __future__ import annotations

import dagster as dg


def has_sensor_threads(instance: dg.DagsterInstance) -> bool:
    """Whether the daemon evaluates sensors in parallel: `sensors: {use_threads: true}`.

    If it doesn't, a slow sensor delays all others.
    """
    return bool((instance.get_settings("sensors") or {}).get("use_threads"))
