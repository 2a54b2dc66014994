"""Why a DAG runs, told on both sides: in the Airflow run's note, and in the Dagster run's tags."""

from __future__ import annotations

import os
from collections.abc import Iterable

import dagster as dg

from federation_defs.reporting import read_run_link

URL_VARIABLE = "FEDERATION_DAGSTER_URL"
_MAX_NOTE = 1000  # Airflow's column (2.11 and 3.3)


def build_note(
    instance: dg.DagsterInstance, run: dg.DagsterRun, deps: Iterable[dg.AssetKey]
) -> str:
    """Who triggered a DAG run, and after what, for a person who looks at it in Airflow.

    Args:
        deps: The assets that the DAG depends on; what was reported of them last is told.
    """
    url = os.environ.get(URL_VARIABLE, "").rstrip("/")
    link = f" {url}/runs/{run.run_id}" if url else ""
    lines = [f"Triggered by Dagster run {run.run_id}, {_describe_cause(run)}.{link}"]
    for key in sorted(deps):
        record = instance.fetch_materializations(key, limit=1).records
        event = record[0].asset_materialization if record else None
        told = read_run_link(event.metadata) if event else None
        if told:
            lines.append(f"After {key.path[0]}/{key.path[-1]}: run {told[0]} {told[1]}".rstrip())
    note = "\n".join(lines)
    return note if len(note) <= _MAX_NOTE else note[: _MAX_NOTE - 1] + "…"


def _describe_cause(run: dg.DagsterRun) -> str:
    if is_automation(run):
        return "which automation requested"
    if backfill := run.tags.get("dagster/backfill"):
        return f"of backfill {backfill}"
    for kind in ("schedule", "sensor"):
        if name := run.tags.get(f"dagster/{kind}_name"):
            return f"which {kind} {name} requested"
    person = run.tags.get("user")
    return f"which {person} launched" if person else "which a person launched"


def is_automation(run: dg.DagsterRun) -> bool:
    """Whether an automation condition requested the run, and no person did."""
    return "dagster/from_automation_condition" in run.tags
