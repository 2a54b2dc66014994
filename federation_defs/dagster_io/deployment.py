"""What a Dagster deployment runs besides this code location."""

from __future__ import annotations

import dagster as dg

_STALE_AFTER_S = 300.0


def has_sensor_threads(instance: dg.DagsterInstance) -> bool:
    """Whether the daemon evaluates sensors in parallel: `sensors: {use_threads: true}`.

    If it doesn't, a slow sensor delays all others.
    """
    return bool((instance.get_settings("sensors") or {}).get("use_threads"))


def fetch_sensor_cursor(
    instance: dg.DagsterInstance, sensor_name: str, code_location: str
) -> str | None:
    """Fetch the cursor that Dagster has stored of a sensor; None if there is none."""
    for state in instance.all_instigator_state():
        location = state.origin.repository_origin.code_location_origin.location_name
        if (state.origin.instigator_name, location) == (sensor_name, code_location):
            return getattr(state.instigator_data, "cursor", None)
    return None


def find_same_sensor(
    instance: dg.DagsterInstance, sensor_name: str, code_location: str
) -> str | None:
    """Find another code location with a running sensor of this name.

    Of several locations, all but the first one by name find one. A sensor that has not ticked for
    five minutes, or three of its intervals, does not count: its location was removed. All times
    are the daemon's.
    """
    now, found = 0.0, dict[str, float]()
    for state in instance.all_instigator_state():
        ticked_at = getattr(state.instigator_data, "last_tick_start_timestamp", None)
        now = max(now, ticked_at or 0.0)
        location = state.origin.repository_origin.code_location_origin.location_name
        is_same = state.origin.instigator_name == sensor_name and state.is_running
        if is_same and location < code_location:
            interval_s = getattr(state.instigator_data, "min_interval", None) or 0
            found[location] = (ticked_at or 0.0) + max(_STALE_AFTER_S, 3 * interval_s)
    return min((location for location, until in found.items() if until >= now), default=None)
