"""DAGs whose runs are periods of the past (`tests/contract/dags/*/periods.py`).

warehouse/daily_load ──▶ metrics/daily_report ──▶ warehouse/daily_export
metrics/daily_measure ──▶ warehouse/daily_archive
warehouse/hourly_clicks ──▶ metrics/daily_clicks
"""

from __future__ import annotations

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
