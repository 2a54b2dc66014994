"""The check `partitions`: what is wrong with the partitions of a DAG."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationPlanned,
)
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.test_utils import create_run_for_test

from federation_defs.checks import build_checks
from federation_defs.declaration import DagDeclaration, InstanceDeclaration, PartitionsDeclaration
from federation_defs.naming import (
    PARTITIONS_CHECK_NAME,
    READY_CHECK_NAME,
    build_check_key,
)
from federation_defs.partitions import Partitioning
from tests.contract.conftest import Airflow
from tests.contract.execution.executing import materialize
from tests.contract.execution.partitioned import BERLIN, DAG, DAILY, HOURLY, KEY, at, of
from tests.contract.observation.daemon import (
    Daemon,
    FakeClock,
    fetch_evaluations,
    recording_statements,
)
from tests.contract.observation.test_costs import count_calls

WARN, ERROR = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR
NOTHING = "Nothing is wrong with its partitions."
DAYS = ["2025-02-03", "2025-02-04", "2025-02-05"]
END = {"date": "data_interval_end"}


class Partitioned:
    """A fake Airflow with a partitioned DAG, and its daemon."""

    def __init__(self, airflow: Airflow, instance: dg.DagsterInstance) -> None:
        airflow.database.add_dag(DAG, polls=0)
        self.airflow, self.instance, self.clock = airflow, instance, FakeClock()
        self.daemon = Daemon(airflow.client, [DAG], instance, timing=self.clock.timing)
        self.declare(DAILY)

    def declare(self, partitions: Mapping[str, str], **values: Any) -> None:
        """Change the declaration, and restart the code server."""
        self.dag = DagDeclaration.model_validate({"partitions": partitions, **values})
        assert self.dag.partitions is not None
        self.daemon.dags = {DAG: self.dag}
        self.daemon.partitionings = {DAG: Partitioning(self.dag.partitions)}
        self.daemon.restart()

    def run(self, start: datetime, end: datetime, **columns: Any) -> None:
        """Run the DAG once for a data interval."""
        run = self.airflow.database.start_run(
            DAG, logical_date=start, data_interval=(start, end), **columns
        )
        self.airflow.database.finish_run(run)

    def run_days(self) -> None:
        for day in DAYS:
            self.run(at(day), at(day) + timedelta(days=1))

    def evaluate(self) -> tuple[bool, dg.AssetCheckSeverity, str]:
        """Return the check after its next evaluation."""
        self.clock.advance(120)
        self.daemon.tick()
        last = fetch_evaluations(self.instance, KEY, PARTITIONS_CHECK_NAME)[-1]
        return bool(last.passed), last.severity, last.description or ""

    @property
    def count(self) -> int:
        return len(fetch_evaluations(self.instance, KEY, PARTITIONS_CHECK_NAME))


PASSED = (True, ERROR, NOTHING)


@pytest.fixture
def partitioned(airflow_v2: Airflow, instance: dg.DagsterInstance) -> Partitioned:
    """One that has reported three days, and found them right."""
    partitioned = Partitioned(airflow_v2, instance)
    partitioned.run_days()
    assert partitioned.evaluate() == PASSED
    return partitioned


def test_partitions_that_agree_with_their_declaration_pass_and_are_compared_once(
    partitioned: Partitioned,
) -> None:
    comparisons = count_calls(partitioned.instance, "get_latest_storage_id_by_partition")
    partitioned.evaluate()
    partitioned.daemon.restart()
    partitioned.daemon.cursor = None
    assert partitioned.evaluate() == PASSED
    assert partitioned.count == 1
    assert comparisons == []


def test_what_the_last_refresh_found_is_an_error_until_it_ends(partitioned: Partitioned) -> None:
    partitioned.daemon.partition_problems[DAG] = "Its schedule has changed."
    assert partitioned.evaluate() == (False, ERROR, "Its schedule has changed.")
    del partitioned.daemon.partition_problems[DAG]
    assert partitioned.evaluate() == PASSED


def test_a_dag_whose_schedule_does_not_tell_its_partitions_has_the_check_too(
    partitioned: Partitioned,
) -> None:
    declared = partitioned.dag
    partitioned.daemon.dags = {DAG: declared.model_copy(update={"partitions": None})}
    partitioned.daemon.partitionings = {}
    partitioned.daemon.partition_problems[DAG] = "Its partitions are not known yet."
    partitioned.daemon.restart()
    assert partitioned.evaluate() == (False, ERROR, "Its partitions are not known yet.")
    # What it knew is not forgotten.
    partitioned.declare(DAILY)
    partitioned.daemon.partition_problems.clear()
    comparisons = count_calls(partitioned.instance, "get_latest_storage_id_by_partition")
    assert (partitioned.evaluate(), comparisons) == (PASSED, [])


UPSTREAMS = InstanceDeclaration.model_validate(
    {
        "name": "warehouse",
        "url": "http://127.0.0.1:1",
        "auth": {"type": "none"},
        "dags": {"up": {"partitions": DAILY}, "hourly": {"partitions": HOURLY}},
    }
)
UNFIT = r"looks only at the latest partition of warehouse/hourly \(`0 \* \* \* \*`\)"


def test_cadences_that_do_not_fit_are_a_warning(partitioned: Partitioned) -> None:
    partitioned.daemon.instances = {"warehouse": UPSTREAMS}
    partitioned.declare(DAILY, depends_on=["warehouse/hourly"], granularity="last")
    passed, severity, description = partitioned.evaluate()
    assert (passed, severity) == (False, WARN)
    assert re.search(UNFIT, description)


def test_cadences_that_do_not_fit_a_dag_without_partitions_are_a_warning_of_its_check_ready(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    upstreams = ["warehouse/up", "warehouse/hourly"]
    airflow_v2.database.add_dag(DAG)
    daemon = Daemon(airflow_v2.client, [DAG], instance)
    declared = {"depends_on": upstreams, "trigger": {"when": "all"}}
    daemon.dags = {DAG: DagDeclaration.model_validate(declared)}
    daemon.instances = {"warehouse": UPSTREAMS}
    daemon.restart()
    daemon.tick()
    (last,) = fetch_evaluations(instance, KEY, READY_CHECK_NAME)
    assert (last.passed, last.severity) == (False, WARN)
    assert re.search(UNFIT, last.description or "")
    assert fetch_evaluations(instance, KEY, PARTITIONS_CHECK_NAME) == []


MOVED_BY_A_DAY = "2025-02-03 (now 2025-02-02), 2025-02-04 (now 2025-02-03)"


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        # A day in Berlin begins an hour before one in UTC, and has begun at its midnight.
        ({"timezone": "America/New_York"}, MOVED_BY_A_DAY),
        ({"cron": "0 6 * * *"}, MOVED_BY_A_DAY),
        ({"cron": "0 0 * * *", "timezone": "Asia/Tokyo", **END}, "2025-02-03 (now 2025-02-04)"),
    ],
)
def test_partitions_that_hold_the_run_of_another_one_since_a_change_are_an_error(
    partitioned: Partitioned, change: dict[str, str], moved: str
) -> None:
    partitioned.declare({**DAILY, **change})
    passed, severity, description = partitioned.evaluate()
    assert (passed, severity) == (False, ERROR)
    assert description.startswith(
        "3 of 3 reported partitions that were compared hold a run that now belongs to another "
        f"one: {moved}, "
    )
    assert f"`{change.get('cron', '0 0 * * *')}` ({change.get('timezone', 'UTC')})" in description
    assert "execute this check to accept them" in description


@pytest.mark.parametrize(
    "change",
    [
        {"start": "2024-01-01"},
        {"start": "2025-02-01"},
        {"start": "2025-02-03"},
        {"timezone": "Africa/Abidjan"},  # which is UTC
        {"timezone": "Europe/Berlin"},  # the run of a day began after its midnight
        {"cron": "@daily", "key_format": "%Y-%m-%d"},
        END,  # a run of Airflow 2, whose interval is the window
    ],
)
def test_a_change_that_loses_nothing_passes(
    partitioned: Partitioned, change: dict[str, str]
) -> None:
    partitioned.declare({**DAILY, **change})
    assert partitioned.evaluate() == PASSED
    assert partitioned.evaluate() == PASSED
    assert partitioned.count == 2  # the second one remembers the declaration


def test_a_date_that_tells_another_partition_is_an_error(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    partitioned = Partitioned(airflow_v2, instance)
    partitioned.run(at("2025-02-04"), at("2025-02-04"))  # as in Airflow 3
    assert partitioned.evaluate() == PASSED
    partitioned.declare({**DAILY, **END})
    passed, _, description = partitioned.evaluate()
    assert not passed
    assert "2025-02-04 (now 2025-02-03)" in description


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        (
            {"start": "2025-02-05"},
            "2 of 3 reported partitions that were compared are not partitions any more",
        ),
        ({"key_format": "%d.%m.%Y"}, "3 of 3"),
        ({"cron": "@hourly"}, "3 of 3"),
        ({"cron": "0 0 * * 1"}, "2 of 3"),
    ],
)
def test_partitions_that_are_none_any_more_are_a_warning(
    partitioned: Partitioned, change: dict[str, str], gone: str
) -> None:
    partitioned.declare({**DAILY, **change})
    passed, severity, description = partitioned.evaluate()
    assert (passed, severity) == (False, WARN)
    assert description.startswith(gone)
    assert "2025-02-04" in description


def test_a_change_that_is_taken_back_passes_again(partitioned: Partitioned) -> None:
    partitioned.declare(HOURLY)
    assert not partitioned.evaluate()[0]
    partitioned.declare(DAILY)
    assert partitioned.evaluate() == PASSED


def test_partitions_that_are_reported_again_agree_again(partitioned: Partitioned) -> None:
    tokyo = {**DAILY, "timezone": "America/New_York"}
    partitioned.declare(tokyo)
    assert "3 of 3" in partitioned.evaluate()[2]
    assert "3 of 3" in partitioned.evaluate()[2]
    for number, day in enumerate(DAYS, 1):
        begin = Partitioning(PartitionsDeclaration.model_validate(tokyo))
        window = begin.definition.time_window_for_partition_key(day)
        partitioned.run(window.start, window.end)
        seen = partitioned.evaluate()
        assert seen == PASSED if number == 3 else f"{3 - number} of 3" in seen[2]


def test_a_problem_is_not_looked_for_again_until_something_is_reported(
    partitioned: Partitioned,
) -> None:
    partitioned.declare(HOURLY)
    assert not partitioned.evaluate()[0]
    count = partitioned.count
    comparisons = count_calls(partitioned.instance, "get_latest_storage_id_by_partition")
    partitioned.evaluate()
    partitioned.evaluate()
    assert (comparisons, partitioned.count) == ([], count)
    partitioned.run(at("2025-02-06"), at("2025-02-07"))
    partitioned.evaluate()
    assert len(comparisons) == 1


def execute_check(partitioned: Partitioned, *, tags: Mapping[str, str]) -> None:
    client, key = partitioned.airflow.client, build_check_key(KEY, PARTITIONS_CHECK_NAME)
    selection = dg.AssetSelection.checks(key)
    job = dg.define_asset_job("check", selection, executor_def=dg.in_process_executor)
    checks = [build_checks(client, {DAG: partitioned.dag})]
    defs = dg.Definitions(assets=[dg.AssetSpec(KEY)], asset_checks=checks, jobs=[job])
    run = defs.resolve_job_def("check").execute_in_process(instance=partitioned.instance, tags=tags)
    assert run.success


@pytest.mark.parametrize("tag", ["dagster/schedule_name", "dagster/sensor_name"])
def test_executing_the_check_each_night_accepts_nothing(partitioned: Partitioned, tag: str) -> None:
    partitioned.declare(HOURLY)
    seen = partitioned.evaluate()
    assert not seen[0]
    execute_check(partitioned, tags={tag: "nightly"})
    assert partitioned.evaluate() == seen


def test_a_person_accepts_what_was_reported_by_executing_the_check(
    partitioned: Partitioned,
) -> None:
    partitioned.declare(HOURLY)
    assert not partitioned.evaluate()[0]
    execute_check(partitioned, tags={})
    assert partitioned.evaluate() == PASSED
    partitioned.daemon.restart()
    assert partitioned.evaluate() == PASSED
    partitioned.declare({**HOURLY, "cron": "0 6 * * *"})
    assert not partitioned.evaluate()[0]


def test_a_run_of_the_dag_accepts_nothing(partitioned: Partitioned) -> None:
    upstream = {"depends_on": ["warehouse/up"]}
    partitioned.declare({**DAILY, "timezone": "America/New_York"}, **upstream)
    assert not partitioned.evaluate()[0]
    dags = {DAG: {"partitions": {**DAILY, "timezone": "America/New_York"}, **upstream}}
    materialize(partitioned.airflow.client, dags, partitioned.instance, tags=of("2025-03-01"))
    passed, _, description = partitioned.evaluate()
    assert not passed
    assert "3 of 4" in description


def test_what_was_accepted_stays_so_while_a_run_is_going_to_evaluate_the_check(
    partitioned: Partitioned,
) -> None:
    partitioned.declare(HOURLY)
    partitioned.evaluate()
    execute_check(partitioned, tags={})
    planned = AssetCheckEvaluationPlanned(asset_key=KEY, check_name=PARTITIONS_CHECK_NAME)
    event = DagsterEvent(
        DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED.value, "any", event_specific_data=planned
    )
    run = create_run_for_test(partitioned.instance, job_name="any")
    partitioned.instance.report_dagster_event(event, run.run_id)
    assert partitioned.evaluate() == PASSED


def test_of_many_partitions_some_are_compared(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    partitioned = Partitioned(airflow_v2, instance)
    partitioned.declare({**HOURLY})
    for number in range(120):
        partition = f"{at('2025-02-03') + timedelta(hours=number):%Y-%m-%d-%H:%M}"
        instance.report_runless_asset_event(dg.AssetMaterialization(KEY, partition=partition))
    assert partitioned.evaluate() == PASSED
    partitioned.declare({**HOURLY, "start": "2025-02-04"})
    _, _, description = partitioned.evaluate()
    assert description.startswith("10 of 50 reported partitions")
    assert "2025-02-03-00:00, " in description


@pytest.mark.parametrize("partition", ["2025-02-03", "9998-12-30"], ids=["past", "far"])
def test_what_a_person_reported_is_right_as_long_as_the_partition_is_there(
    airflow_v2: Airflow, instance: dg.DagsterInstance, partition: str
) -> None:
    partitioned = Partitioned(airflow_v2, instance)
    instance.report_runless_asset_event(dg.AssetMaterialization(KEY, partition=partition))
    instance.report_runless_asset_event(dg.AssetMaterialization(KEY))
    assert partitioned.evaluate() == PASSED


def test_an_evaluation_costs_few_queries_however_many_dags_there_are(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    clock, dag_ids = FakeClock(), [f"dag_{number}" for number in range(60)]
    daemon = Daemon(airflow_v2.client, dag_ids, instance, timing=clock.timing)
    partitions = PartitionsDeclaration.model_validate(BERLIN)
    daemon.partitionings = dict.fromkeys(dag_ids, Partitioning(partitions))
    daemon.dags = dict.fromkeys(dag_ids, DagDeclaration(partitions=partitions))
    daemon.restart()
    counts, checked = list[int](), list[int]()
    for _ in range(5):
        clock.advance(61)
        with recording_statements() as statements:
            daemon.tick()
        counts.append(len(statements))
        checked.append(len(daemon.stored))
    assert checked == [50, 10, 0, 0, 0]
    assert max(counts[2:]) <= 2
