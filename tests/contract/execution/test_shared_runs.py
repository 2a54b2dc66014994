"""DAG runs that several may report: Dagster runs of different roots, or observation."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from uuid import uuid4

import dagster as dg

from federation_defs.naming import build_run_id
from tests.contract.conftest import Airflow
from tests.contract.execution.executing import FAST, materialize, wait_for_log
from tests.contract.execution.partitioned import DAG, DAILY, KEY, build_daemon, declare
from tests.contract.execution.test_taken_dates import DAY, PERSON, RUN_ID, add_run
from tests.contract.observation.daemon import fetch_reported_run_ids
from tests.waiting import wait_for

LAUNCHED = f"{DAG} [{DAY}] is "


def count_waiting(instance: dg.DagsterInstance) -> int:
    """Count the Dagster runs that wait for the DAG run."""
    runs = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    logs = [instance.all_logs(run.run_id) for run in runs]
    return sum(any(LAUNCHED in entry.user_message for entry in log) for log in logs)


def test_a_run_that_two_dagster_runs_wait_for_is_materialized_once(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG, polls=math.inf)
    with ThreadPoolExecutor(2) as threads:

        def start() -> None:
            started.append(
                threads.submit(materialize, airflow.client, {DAG: declare()}, instance, tags=PERSON)
            )

        started = []
        start()
        wait_for_log(instance, LAUNCHED)
        start()
        wait_for(lambda: count_waiting(instance) == 2, "both wait", timeout_s=60)
        (run,) = airflow.database.runs
        airflow.database.finish_run(run)
    assert [each.result().success for each in started] == [True, True]
    assert fetch_reported_run_ids(instance, KEY) == [run.run_id]


def test_a_run_that_is_run_again_late_in_a_step_is_reported_with_each_of_its_ends_once(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """Observation has found no owner, then a step that waited for a slot clears the run."""
    add_run(airflow_v2, "success")
    airflow_v2.database.add_dag("other", polls=None)
    active = airflow_v2.database.start_run("other", build_run_id(str(uuid4())))
    daemon = build_daemon(airflow_v2, instance, **{DAG: DAILY})
    timing = replace(FAST, takeover_s=6)
    with ThreadPoolExecutor(1) as threads:
        executed = threads.submit(
            materialize,
            airflow_v2.client,
            {DAG: declare()},
            instance,
            tags=PERSON,
            max_active_runs=1,
            timing=timing,
        )
        wait_for_log(instance, "waits for a slot")
        waits_since = time.monotonic()
        wait_for(lambda: time.monotonic() - waits_since > 2, "the step is older than that")

        def is_launched() -> bool:
            logs = [instance.all_logs(run.run_id) for run in instance.get_runs()]
            return any(LAUNCHED in entry.user_message for log in logs for entry in log)

        def make_room() -> None:
            airflow_v2.database.finish_run(active)
            # It may have ended by then.
            wait_for(is_launched, "the step runs it again", interval_s=0.02)

        daemon.before_storing = make_room
        daemon.tick()
    assert executed.result().success
    assert fetch_reported_run_ids(instance, KEY) == [RUN_ID, RUN_ID]
    assert daemon.tick() == []
