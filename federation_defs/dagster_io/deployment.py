"""What a Dagster deployment runs besides this code location."""

from __future__ import annotations

import dagster as dg

_STALE_AFTER_S = 300.0


def has_sensor_threads(instance: dg.DagsterInstance) -> bool:
    """Whether the daemon evaluates sensors in parallel: `sensors: {use_threads: true}`.

    If it doesn't, a slow sensor delays all others.
    """
    return bool((instance.get_settings("sensors") or {}).get("use_threads"))


def find_same_sensor(
    instance: dg.DagsterInstance, sensor_name: str, code_location: str
) -> str | None:
    """Find another code location with a running sensor of this name.

    Of several locations, all but the first one by name find one. All times are the daemon's.
    """
    ticks: dict[str, float] = {}
    for state in instance.all_instigator_state():
        data = state.instigator_data
        if state.origin.instigator_name == sensor_name and state.is_running and data is not None:
            location = state.origin.repository_origin.code_location_origin.location_name
            ticks[location] = getattr(data, "last_tick_start_timestamp", None) or 0.0
    own = ticks.get(code_location, 0.0)
    others = [location for location, at in ticks.items() if at >= own - _STALE_AFTER_S]
    return min((location for location in others if location < code_location), default=None)
