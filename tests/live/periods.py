"""DAGs whose runs are periods of the past (`tests/contract/dags/*/periods.py`).

warehouse/daily_load ──▶ metrics/daily_report ──▶ warehouse/daily_export
metrics/daily_measure ──▶ warehouse/daily_archive
warehouse/hourly_clicks ──▶ metrics/daily_clicks
"""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.live.dagster_dev import declare_dags

DECLARED = {
    "warehouse": """
        daily_load:
          partitions: {cron: "0 0 * * *", start: "2025-03-01"}
        daily_export:
          depends_on: [metrics/daily_report]
          partitions: {cron: "0 0 * * *", start: "2025-03-01"}
          trigger: {at_once: 3}
        daily_archive:
          depends_on: [metrics/daily_measure]
          partitions: {cron: "0 0 * * *", start: "2025-03-01"}
          trigger: {at_once: 3}
        hourly_clicks:
          partitions: {cron: "0 * * * *", start: "2025-03-01", timezone: Europe/Berlin}
    """,
    "metrics": """
        daily_measure:
          partitions: {cron: "0 0 * * *", start: "2025-03-01", date: data_interval_end}
        daily_report:
          depends_on: [warehouse/daily_load]
          partitions: {cron: "0 0 * * *", start: "2025-03-01", date: data_interval_end}
          trigger: {at_once: 3}
        daily_clicks:
          depends_on: [warehouse/hourly_clicks]
          partitions: {cron: "0 0 * * *", start: "2025-03-01", timezone: Europe/Berlin}
          trigger: {at_once: 3}
    """,
}


def declare_periods(project: Path, *, has_teams: bool) -> None:
    """Add the DAGs to a project.

    Args:
        has_teams: The upstreams are those of another code location, whose partitions are declared
            beside the dependency once more.
    """
    dags = {name: yaml.safe_load(text) for name, text in DECLARED.items()}
    for dag in [dag for each in dags.values() for dag in each.values()] if has_teams else ():
        for number, upstream in enumerate(dag.get("depends_on", ())):
            name, dag_id = upstream.split("/")
            partitions = {**dags[name][dag_id]["partitions"]}
            dag["depends_on"][number] = {"dag": upstream, "partitions": partitions}
    declare_dags(project, {name: yaml.safe_dump(each) for name, each in dags.items()})
