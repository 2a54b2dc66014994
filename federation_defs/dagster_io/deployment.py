"""What a Dagster deployment runs besides this code location, and which process this is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dagster as dg

# Of a run whose worker starts, or the process of one of its steps.
_ACTIVE = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]
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


def is_reconstruction() -> bool:
    """Whether Dagster asks for definitions that it has loaded before: in a run worker, and once
    more in a code server. False where that can't be told."""
    context = _get_load_context()
    return context is not None and context.load_type.value == "RECONSTRUCTION"


def fetch_active_runs_in_worker() -> Sequence[dg.DagsterRun] | None:
    """Fetch the Dagster runs that this process may have been started for, in a reconstruction.

    None if a code server has not loaded the definitions before, as on the command line, or if the
    runs can't be fetched.
    """
    context = _get_load_context()
    # A code server hands on which states it has read.
    if context is None or context.accessed_defs_state_info is None:
        return None
    try:
        with dg.DagsterInstance.get() as instance:
            records = instance.get_run_records(dg.RunsFilter(statuses=_ACTIVE))
    except dg.DagsterError:  # no DAGSTER_HOME, as where the instance is handed over
        return None
    return [record.dagster_run for record in records]


def _get_load_context() -> Any:
    """Return Dagster's `DefinitionsLoadContext`; None if this version has no such thing.

    Nothing public tells whether Dagster initializes or reconstructs (1.13).
    """
    try:
        from dagster._core.definitions import definitions_load_context

        context = definitions_load_context.DefinitionsLoadContext.get()
        _ = context.load_type.value, context.accessed_defs_state_info
    except (AttributeError, ImportError):
        return None
    return context
