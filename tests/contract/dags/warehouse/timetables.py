"""A DAG for each kind of schedule. None of them ever runs by itself."""

# pyright: reportMissingImports=false, reportUnknownMemberType=false

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pendulum
from airflow import DAG
from airflow.datasets import Dataset
from airflow.operators.empty import EmptyOperator
from airflow.timetables.datasets import DatasetOrTimeSchedule
from airflow.timetables.events import EventsTimetable
from airflow.timetables.interval import CronDataIntervalTimetable, DeltaDataIntervalTimetable
from airflow.timetables.trigger import CronTriggerTimetable, DeltaTriggerTimetable
from dateutil.relativedelta import relativedelta

BERLIN, DAY = "Europe/Berlin", timedelta(days=1)
SCHEDULED = Dataset("x-contract://lake/schedules", extra={"owner": "Zoë"})
IN_BERLIN = {"start_date": pendulum.datetime(2026, 3, 1, tz=BERLIN)}
SCHEDULES: dict[str, dict[str, Any]] = {
    "cron": {"schedule": "30 5 * * *", **IN_BERLIN},
    "cron_of_default_args": {
        "schedule": "0 0 * * *",
        "start_date": None,
        "default_args": {"start_date": datetime(2026, 3, 1)},
    },
    "cron_of_many_runs": {"schedule": "* * * * *"},
    "cron_that_is_over": {"schedule": "0 0 * * *", "end_date": pendulum.datetime(2026, 3, 2)},
    "preset": {"schedule": "@daily"},
    "quarterly": {"schedule": "@quarterly"},
    "cron_interval": {"schedule": CronDataIntervalTimetable("30 5 * * *", BERLIN), **IN_BERLIN},
    "cron_trigger": {"schedule": CronTriggerTimetable("30 5 * * *", timezone=BERLIN), **IN_BERLIN},
    "cron_trigger_with_window": {
        "schedule": CronTriggerTimetable("0 0 * * *", timezone="UTC", interval=DAY)
    },
    "cron_trigger_of_a_week": {
        "schedule": CronTriggerTimetable("0 0 * * *", timezone="UTC", interval=7 * DAY)
    },
    "cron_of_another_zone": {"schedule": CronTriggerTimetable("0 6 * * *", timezone="Asia/Tokyo")},
    "delta": {"schedule": timedelta(hours=1)},
    "delta_with_catchup": {"schedule": timedelta(hours=1), "catchup": True},
    "delta_interval": {"schedule": DeltaDataIntervalTimetable(timedelta(minutes=15))},
    "delta_interval_of_a_day": {"schedule": DeltaDataIntervalTimetable(DAY)},
    "delta_interval_of_no_hours": {"schedule": DeltaDataIntervalTimetable(timedelta(minutes=90))},
    "delta_trigger": {"schedule": DeltaTriggerTimetable(DAY)},
    "relative_delta": {"schedule": relativedelta(days=1)},
    "asset": {"schedule": [SCHEDULED]},
    "asset_or_cron": {
        "schedule": DatasetOrTimeSchedule(
            timetable=CronTriggerTimetable("0 0 * * *", timezone="UTC"), datasets=[SCHEDULED]
        )
    },
    "events": {"schedule": EventsTimetable([pendulum.datetime(2050, 1, 1)], description="events")},
    "once": {"schedule": "@once"},
    "continuous": {"schedule": "@continuous", "max_active_runs": 1},
    "none": {"schedule": None},
}
for name, values in SCHEDULES.items():
    defaults = {
        "catchup": False,
        "is_paused_upon_creation": True,
        "start_date": pendulum.datetime(2026, 3, 1),
    }
    with DAG(f"schedule_{name}", **{**defaults, **values}) as dag:
        EmptyOperator(task_id="load")
    globals()[dag.dag_id] = dag
