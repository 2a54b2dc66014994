"""The event sensor: what happens upstream starts the runs that are declared, each once."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest

from federation_defs.dagster_io.event_log import fetch_last_position
from federation_defs.dependencies.sensor import build_drop_job, build_event_sensor
from federation_defs.events import build_drop_observation
from federation_defs.naming import build_asset_key, build_run_id
from tests.contract.conftest import Airflow
from tests.contract.dagster_plus import as_server
from tests.contract.dependencies.reacting import DAG, EventDaemon, add_run, list_counted, report
from tests.contract.execution.executing import FAST
from tests.contract.execution.interrupting import before_answering
from tests.contract.fakes.airflow import asks
from tests.contract.observation.daemon import FakeClock, recording_statements

LOAD, OTHER = "warehouse/load", "warehouse/other"
KEY = build_asset_key("metrics", DAG)
ON_FAILURE = {"depends_on": [{"dag": LOAD, "state": "failure"}]}
EACH = {"depends_on": [LOAD], "trigger": {"runs": "each"}}


def start(
    airflow: Airflow, instance: dg.DagsterInstance, dag: Any, polls: float = 0
) -> EventDaemon:
    airflow.database.add_dag(DAG, polls=polls)
    daemon = EventDaemon(airflow.client, instance, {DAG: dag})
    assert daemon.tick() == []
    return daemon


def test_a_failure_starts_the_dag_that_depends_on_it_and_a_success_does_not(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = start(airflow, instance, ON_FAILURE)
    report(instance, LOAD, "success", "one")
    assert daemon.tick() == []
    report(instance, LOAD, "failure", "two")
    assert daemon.tick() == [f"{LOAD} failure two"]
    assert daemon.tick() == []
    assert [run.dag_id for run in airflow.database.runs] == [DAG]


@pytest.mark.parametrize("waits_s", [(0, 5), (5, 20), (0, 5, 5, 5)])
def test_an_update_that_becomes_visible_after_many_later_ones_is_not_lost(
    airflow_v2: Airflow,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    waits_s: tuple[float, ...],
) -> None:
    """PostgreSQL numbers events before it commits them. A run of many partitions has a thousand
    numbers at once."""
    airflow_v2.database.add_dag(DAG, polls=0)
    clock = FakeClock()
    timing = replace(FAST, monotonic=clock.timing.monotonic)
    daemon = EventDaemon(airflow_v2.client, instance, {DAG: EACH}, timing=timing)
    assert daemon.tick() == []
    report(instance, LOAD, "success", "one")
    hidden = {fetch_last_position(instance)}
    storage = type(as_server(instance.event_log_storage))
    get_event_records = storage.get_event_records

    def get_visible(*args: Any, **kwargs: Any) -> list[dg.EventLogRecord]:
        records = get_event_records(*args, **kwargs)
        return [record for record in records if record.storage_id not in hidden]

    monkeypatch.setattr(storage, "get_event_records", get_visible)
    for _ in range(300):
        report(instance, "another_asset")
    for wait_s in waits_s[:-1]:
        clock.advance(wait_s)
        assert daemon.tick() == []
    hidden.clear()
    clock.advance(waits_s[-1])
    assert daemon.tick() == [f"{LOAD} success one"]
    for _ in range(6):
        clock.advance(5)
        assert daemon.tick() == []


def test_what_is_remembered_of_what_was_read_does_not_grow(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    clock = FakeClock()
    timing = replace(FAST, monotonic=clock.timing.monotonic)
    daemon = EventDaemon(airflow_v2.client, instance, {DAG: EACH}, timing=timing)
    for _ in range(10):
        report(instance, "another_asset")
        daemon.tick()
        clock.advance(5)
    assert daemon.cursor
    assert 3 <= len(json.loads(daemon.cursor)["seen"]) <= 5


def test_each_upstream_run_leads_to_a_run_in_the_order_seen(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = start(airflow, instance, EACH)
    for run_id in ("one", "two", "three"):
        report(instance, LOAD, "success", run_id)
    assert daemon.tick() == [f"{LOAD} success one"]
    assert daemon.tick() == [f"{LOAD} success two"]
    daemon.restart()
    assert daemon.tick() == [f"{LOAD} success three"]
    assert daemon.tick() == []
    assert len(airflow.database.runs) == 3


def test_a_tick_that_is_repeated_after_a_crash_requests_the_same_run(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = start(airflow, instance, EACH)
    report(instance, LOAD, "success", "one")
    before = daemon.cursor
    assert len(daemon.tick()) == 1
    daemon.cursor = before
    daemon.restart()
    assert daemon.tick() == []
    assert len(airflow.database.runs) == 1


def test_a_backlog_that_is_read_in_several_ticks_after_a_crash_leads_to_no_run_twice(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    trigger = {"when": "all", "pass_upstream": True}
    daemon = start(airflow_v2, instance, {"depends_on": [LOAD, OTHER], "trigger": trigger})
    report(instance, LOAD, "success", "one")
    for _ in range(501):  # more than one query has
        report(instance, "warehouse/third", "failure", "any")
    report(instance, OTHER, "success", "two")
    before = daemon.cursor
    assert daemon.tick() == [f"{OTHER} success two"]
    daemon.cursor = before
    report(instance, LOAD, "success", "three")
    assert read_in_parts(daemon) == []
    assert f"waits for {OTHER}" in daemon.skip_reason


@pytest.mark.parametrize("when", ["any", "all"])
def test_what_led_to_a_run_before_a_crash_leads_to_no_other_while_a_part_of_it_is_read(
    airflow_v2: Airflow, instance: dg.DagsterInstance, when: str
) -> None:
    trigger = {"when": when, "pass_upstream": True}
    daemon = start(airflow_v2, instance, {"depends_on": [LOAD, OTHER], "trigger": trigger})
    for run_id in ("one", "two"):
        report(instance, LOAD, "success", run_id)
        report(instance, OTHER, "success", run_id)
    before = daemon.cursor
    assert daemon.tick() == [f"{OTHER} success two"]
    daemon.cursor = before
    assert read_in_parts(daemon) == []


def read_in_parts(daemon: EventDaemon) -> list[str]:
    """Return what begins while a new code server, which has no time, reads what has happened."""
    hurried = replace(FAST, read_events_s=0)
    daemon.sensor = build_event_sensor(daemon.client, daemon.dags, timing=hurried)
    begun = daemon.tick()
    assert "The next one continues" in daemon.skip_reason
    while "The next one continues" in daemon.skip_reason:
        begun += daemon.tick()
    return begun


@pytest.mark.parametrize("at_once", [1, 2])
def test_as_many_runs_as_declared_are_active_at_once_also_if_they_are_not_waited_for(
    airflow: Airflow, instance: dg.DagsterInstance, at_once: int
) -> None:
    trigger = {"runs": "each", "at_once": at_once, "wait": False}
    daemon = start(airflow, instance, {"depends_on": [LOAD], "trigger": trigger}, polls=math.inf)
    for number in range(4):
        report(instance, LOAD, "success", f"run_{number}")
    started = daemon.tick()
    assert len(started) == at_once
    assert daemon.tick() == []
    airflow.database.finish_run(airflow.database.runs[0])
    assert daemon.tick() == [f"{LOAD} success run_{at_once}"]


def test_a_run_that_is_at_its_second_try_counts_once(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    """In Dagster and in Airflow."""
    trigger = {"runs": "each", "at_once": 2, "wait": False}
    daemon = start(airflow, instance, {"depends_on": [LOAD], "trigger": trigger}, polls=math.inf)
    report(instance, LOAD, "success", "one")
    (request,) = daemon.evaluate_new()
    daemon.cursor = daemon.ticked.cursor
    run = add_run(instance, request)
    airflow.database.start_run(DAG, build_run_id(run.run_id, number=2))
    for run_id in ("two", "three"):
        report(instance, LOAD, "success", run_id)
    assert daemon.tick() == [f"{LOAD} success two"]
    assert daemon.tick() == []


def rerun(rule: str, **dag: Any) -> dict[str, Any]:
    return {"depends_on": [LOAD], "trigger": {"runs": "each", "reruns": rule}, **dag}


@pytest.mark.parametrize(("rule", "runs"), [("follow", 2), ("ignore", 1), ("rerun", 1)])
def test_an_upstream_run_that_ends_again_is_followed_ignored_or_runs_its_run_again(
    airflow: Airflow, instance: dg.DagsterInstance, rule: str, runs: int
) -> None:
    daemon = start(airflow, instance, rerun(rule))
    report(instance, LOAD, "success", "one")
    assert len(daemon.tick()) == 1
    report(instance, LOAD, "success", "one")
    report(instance, LOAD, "success", "two")
    assert len(daemon.tick()) == 1
    daemon.tick()
    assert daemon.tick() == []
    assert len(airflow.database.runs) == runs + 1
    first = airflow.database.runs[0]
    assert first.is_finished
    assert len(instance.fetch_materializations(KEY, limit=9).records) == (
        2 if rule == "ignore" else 3
    )


def test_a_run_to_run_again_that_still_runs_is_awaited(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    trigger = {"runs": "each", "reruns": "rerun", "at_once": 3, "wait": False}
    daemon = start(airflow, instance, {"depends_on": [LOAD], "trigger": trigger}, polls=math.inf)
    report(instance, LOAD, "success", "one")
    daemon.tick()
    report(instance, LOAD, "success", "one")
    assert daemon.tick() == []
    airflow.database.finish_run(airflow.database.runs[0])
    assert len(daemon.tick()) == 1
    (run,) = airflow.database.runs
    assert not run.is_finished


def test_a_run_goes_on_until_its_timeout_by_the_clock_of_its_airflow(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    trigger = {"runs": "each", "wait": False, "timeout": "10m"}
    airflow_v2.database.skew = timedelta(minutes=-15)
    daemon = start(airflow_v2, instance, {"depends_on": [LOAD], "trigger": trigger}, polls=math.inf)
    for run_id in ("one", "two"):
        report(instance, LOAD, "success", run_id)
    assert daemon.tick() == [f"{LOAD} success one"]
    assert daemon.tick() == []


def test_a_run_to_run_again_that_was_deleted_is_started_anew(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = start(airflow, instance, rerun("rerun"))
    for _ in range(2):
        report(instance, LOAD, "success", "one")
        daemon.tick()
        airflow.database.runs.clear()
    assert len(instance.fetch_materializations(KEY, limit=9).records) == 2


def test_the_conf_tells_of_the_upstream_runs(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    trigger = {"when": "all", "pass_upstream": True, "conf": {"source": "federation"}}
    daemon = start(airflow, instance, {"depends_on": [LOAD, OTHER], "trigger": trigger})
    date = datetime(2026, 1, 31, tzinfo=timezone.utc)
    labels = {"Logical date": dg.MetadataValue.timestamp(date), "Conf": {"table": "orders"}}
    report(instance, LOAD, "success", "one", **labels)
    assert daemon.tick() == []
    report(instance, OTHER, "success", "two")
    daemon.tick()
    conf = airflow.database.runs[0].conf
    assert conf["source"] == "federation"
    one, two = conf["federation"]["upstream"]
    assert (one["upstream"], one["run_id"], one["conf"]) == (LOAD, "one", {"table": "orders"})
    assert datetime.fromisoformat(one["logical_date"]) == date
    assert (two["upstream"], two["run_id"], two["logical_date"]) == (OTHER, "two", None)


def test_the_logical_date_is_that_of_the_upstream_run_and_a_second_run_of_it_clears_the_first(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    trigger = {"runs": "each", "logical_date": "upstream"}
    daemon = start(airflow, instance, {"depends_on": [LOAD], "trigger": trigger})
    date = datetime(2026, 1, 31, tzinfo=timezone.utc)
    for run_id in ("one", "two"):
        label: dict[str, Any] = {"Logical date": dg.MetadataValue.timestamp(date)}
        report(instance, LOAD, "success", run_id, **label)
        assert len(daemon.tick()) == 1
    (run,) = airflow.database.runs
    assert run.logical_date == date
    assert len(instance.fetch_materializations(KEY, limit=9).records) == 2


def test_what_waits_is_shown_and_can_be_dropped(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    trigger = {"runs": "each", "wait": False}
    daemon = start(airflow, instance, {"depends_on": [LOAD], "trigger": trigger}, polls=math.inf)
    for number in range(4):
        report(instance, LOAD, "success", f"run_{number}")
    daemon.tick()
    assert daemon.tick() == []
    assert "3 wait, the first is warehouse/load success run_1" in daemon.skip_reason
    job = build_drop_job("metrics", [DAG])
    config = {"ops": {"metrics__drop_waiting_of_dag": {"config": {"dag_id": DAG}}}}
    assert job.execute_in_process(config, instance=instance).success
    report(instance, LOAD, "success", "run_4")
    airflow.database.finish_run(airflow.database.runs[0])
    assert daemon.tick() == [f"{LOAD} success run_4"]


def test_a_dag_that_does_not_exist_is_not_dropped(instance: dg.DagsterInstance) -> None:
    job = build_drop_job("metrics", [DAG])
    config = {"ops": {"metrics__drop_waiting_of_dag": {"config": {"dag_id": "customer_metric"}}}}
    with pytest.raises(dg.Failure, match=f"did you mean '{DAG}'"):
        job.execute_in_process(config, instance=instance)


def test_a_stale_upstream_holds_the_others_until_it_succeeds_again(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    trigger = {"when": "all", "pass_upstream": True}
    daemon = start(airflow, instance, {"depends_on": [LOAD, OTHER], "trigger": trigger})
    report(instance, LOAD, "success", "one")
    report(instance, LOAD, "failure", "one")
    report(instance, OTHER, "success", "two")
    assert daemon.tick() == []
    report(instance, LOAD, "success", "one")
    assert len(daemon.tick()) == 1
    assert daemon.tick() == []


def test_a_dependency_that_is_declared_later_does_not_count_what_was_before(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    """Also what was while the sensor was off, which counts for the others."""
    report(instance, OTHER, "failure", "old")
    daemon = start(airflow, instance, ON_FAILURE)
    assert "New dependencies of customer_metrics count" in daemon.skip_reason
    assert list_counted(instance) == [f"{LOAD} (failure)"]
    report(instance, OTHER, "failure", "old, too")
    report(instance, LOAD, "failure", "missed")
    edges = [*ON_FAILURE["depends_on"], {"dag": OTHER, "state": "failure"}]
    daemon.declare({DAG: {"depends_on": edges}})
    assert daemon.tick() == [f"{LOAD} failure missed"]
    daemon.restart()
    assert daemon.tick() == []
    report(instance, OTHER, "failure", "new")
    assert daemon.tick() == [f"{OTHER} failure new"]
    assert list_counted(instance) == [f"{LOAD} (failure)", f"{OTHER} (failure)"]


def test_a_dependency_that_is_taken_out_and_declared_again_counts_from_then_on(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = start(airflow_v2, instance, ON_FAILURE)
    daemon.declare({DAG: {"depends_on": [{"dag": OTHER, "state": "failure"}]}})
    assert daemon.tick() == []
    report(instance, LOAD, "failure", "meanwhile")
    daemon.declare({DAG: ON_FAILURE})
    assert daemon.tick() == []
    report(instance, LOAD, "failure", "new")
    assert daemon.tick() == [f"{LOAD} failure new"]
    told = [f"{LOAD} (failure)", f"{OTHER} (failure)", f"{LOAD} (failure)"]
    assert list_counted(instance) == told


def list_dropped(instance: dg.DagsterInstance, dag_id: str = DAG) -> list[str]:
    """Return what an instance's events say that was dropped of what waited for a DAG."""
    key = build_asset_key("metrics", dag_id)
    records = instance.fetch_observations(key, limit=100, ascending=True).records
    events = [record.asset_observation for record in records]
    return [str(each.description) for each in events if each and "Dropped" in str(each.description)]


def test_what_waits_for_a_dependency_that_is_taken_out_is_dropped_and_told_once(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    edges = [{"dag": each, "state": "failure"} for each in (LOAD, OTHER)]
    each = {"runs": "each"}
    daemon = start(airflow_v2, instance, {"depends_on": edges, "trigger": each})
    airflow_v2.database.dags[DAG].is_paused = True
    for upstream in (LOAD, LOAD, OTHER):
        report(instance, upstream, "failure", "one")
    assert daemon.tick() == []
    daemon.declare({DAG: {"depends_on": edges[1:], "trigger": each}})
    for _ in range(2):
        assert daemon.tick() == []
        assert f"1 wait, the first is {OTHER} failure one" in daemon.skip_reason
    dropped = (
        "Dropped events that waited to start this DAG, because its dependencies or partitions were "
        f"changed or are not known: {LOAD} (failure)."
    )
    assert list_dropped(instance) == [dropped]


def test_what_waits_for_a_dag_that_depends_on_nothing_any_more_is_dropped_and_told(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    other = {"other": {"depends_on": [OTHER], "trigger": {"runs": "each"}}}
    daemon = start(airflow_v2, instance, EACH)
    airflow_v2.database.dags[DAG].is_paused = True
    report(instance, LOAD, "success", "one")
    assert daemon.tick() == []
    daemon.declare(other)
    assert daemon.tick() == []
    assert f"metrics/{DAG}: Dropped events" in daemon.skip_reason
    assert len(list_dropped(instance)) == 1


def test_an_upstream_goes_on_to_count_when_another_of_its_states_is_declared(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = start(airflow_v2, instance, ON_FAILURE)
    report(instance, LOAD, "failure", "between")
    daemon.declare({DAG: {"depends_on": [{"dag": LOAD, "state": "finished"}]}})
    assert daemon.tick() == [f"{LOAD} finished between"]
    assert list_counted(instance) == [f"{LOAD} (failure)"]


def test_all_dependencies_are_told_that_count_from_then_on(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    upstreams = [f"warehouse/load_{number}" for number in range(12)]
    start(
        airflow_v2,
        instance,
        {"depends_on": [{"dag": each, "state": "failure"} for each in upstreams]},
    )
    assert list_counted(instance) == [", ".join(f"{each} (failure)" for each in upstreams)]


def test_a_tick_that_is_repeated_after_a_crash_tells_again_from_when_on_dependencies_count(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    daemon = EventDaemon(airflow_v2.client, instance, {DAG: ON_FAILURE})
    assert daemon.evaluate() == []
    report(instance, LOAD, "failure", "between")
    daemon.restart()
    assert daemon.tick() == daemon.tick() == []
    assert list_counted(instance) == [f"{LOAD} (failure)"] * 2
    report(instance, LOAD, "failure", "new")
    assert daemon.tick() == [f"{LOAD} failure new"]


def test_a_long_history_is_read_to_its_end_before_a_dependency_counts(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = start(airflow_v2, instance, ON_FAILURE)
    for _ in range(501):  # more than one query has
        report(instance, OTHER, "failure", "old")
    daemon.declare({DAG: {"depends_on": [LOAD, {"dag": OTHER, "state": "failure"}]}})
    hurried = replace(FAST, read_events_s=0)
    daemon.sensor = build_event_sensor(daemon.client, daemon.dags, timing=hurried)
    assert daemon.tick() == []
    assert list_counted(instance) == [f"{LOAD} (failure)"]
    assert [daemon.tick() for _ in range(3)] == [[], [], []]
    assert list_counted(instance)[1:] == [f"{OTHER} (failure)"]
    report(instance, OTHER, "failure", "new")
    # The first of these ticks has only the time to read again.
    assert [daemon.tick(), daemon.tick()] == [[], [f"{OTHER} failure new"]]


@pytest.mark.parametrize("cursor", ["", "x", "[]", '{"dags": {"customer_metrics": 3}}', "[" * 9999])
def test_a_cursor_that_can_not_be_read_counts_what_happens_from_now_on(
    airflow_v2: Airflow, instance: dg.DagsterInstance, cursor: str
) -> None:
    daemon = start(airflow_v2, instance, ON_FAILURE)
    report(instance, LOAD, "failure", "one")
    daemon.cursor = cursor
    assert daemon.tick() == []
    report(instance, LOAD, "failure", "two")
    assert daemon.tick() == [f"{LOAD} failure two"]


def test_an_airflow_that_does_not_answer_delays_its_own_runs(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = start(airflow_v2, instance, EACH)
    report(instance, LOAD, "success", "one")
    airflow_v2.server.stop()
    assert daemon.tick() == []
    assert "gave no usable answer" in daemon.skip_reason
    airflow_v2.server.start()
    assert len(daemon.tick()) == 1


def test_an_idle_tick_costs_the_same_however_many_dags_there_are(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    counts = []
    for number in (2, 40):
        dags = {
            f"dag_{each}": {"depends_on": [f"warehouse/load_{each}"], "trigger": EACH["trigger"]}
            for each in range(number)
        }
        for each in range(number):
            report(instance, f"warehouse/load_{each}", "success", "before")
        daemon = EventDaemon(airflow_v2.client, instance, dags)
        daemon.tick()
        daemon.tick()
        with recording_statements() as statements:
            assert daemon.tick() == []
        counts.append(len(statements))
    assert counts[0] == counts[1]


def test_events_that_do_not_count_hide_none_that_do(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = start(airflow_v2, instance, {**ON_FAILURE, "trigger": {"runs": "each"}})
    for number in range(120):
        report(instance, LOAD, "slow", f"run_{number}")
    report(instance, LOAD, "failure", "one")
    assert daemon.tick() == [f"{LOAD} failure one"]


def test_another_state_counts_from_its_declaration_on(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = start(airflow_v2, instance, EACH)
    report(instance, LOAD, "failure", "old")
    assert daemon.tick() == []
    daemon.declare({DAG: {**EACH, "depends_on": [{"dag": LOAD, "state": "finished"}]}})
    assert daemon.tick() == []
    report(instance, LOAD, "failure", "new")
    assert daemon.tick() == [f"{LOAD} finished new"]


def test_what_waits_for_a_paused_dag_waits_until_it_is_not(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = start(airflow, instance, EACH)
    airflow.database.dags[DAG].is_paused = True
    for run_id in ("one", "two"):
        report(instance, LOAD, "success", run_id)
    assert daemon.tick() == []
    assert "is paused" in daemon.skip_reason
    airflow.database.dags[DAG].is_paused = False
    assert [daemon.tick(), daemon.tick()] == [[f"{LOAD} success {run}"] for run in ("one", "two")]


def test_a_half_filled_latch_is_shown_and_can_be_dropped(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    trigger = {"when": "all", "pass_upstream": True}
    daemon = start(airflow_v2, instance, {"depends_on": [LOAD, OTHER], "trigger": trigger})
    report(instance, LOAD, "success", "one")
    assert daemon.tick() == []
    assert daemon.skip_reason == f"metrics/{DAG}: waits for {OTHER} (success)"
    instance.report_runless_asset_event(build_drop_observation("metrics", DAG))
    report(instance, OTHER, "success", "two")
    assert daemon.tick() == []
    report(instance, LOAD, "success", "three")
    assert len(daemon.tick()) == 1


def test_a_rerun_is_not_ignored_if_the_first_end_led_to_no_run(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = start(airflow_v2, instance, rerun("ignore"))
    report(instance, LOAD, "success", "one")
    (request,) = daemon.evaluate()
    tags = {**request.tags, "dagster/run_key": str(request.run_key)}
    failed = dg.DagsterRun("any", str(uuid4()), status=dg.DagsterRunStatus.FAILURE, tags=tags)
    instance.add_run(failed)
    assert daemon.tick() == []
    report(instance, LOAD, "success", "one")
    assert daemon.tick() == [f"{LOAD} success one"]


def test_a_date_whose_run_goes_on_is_run_again_when_it_has_ended(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    date = datetime(2026, 1, 31, tzinfo=timezone.utc)
    trigger = {"runs": "each", "logical_date": "upstream"}
    daemon = start(airflow_v2, instance, {"depends_on": [LOAD], "trigger": trigger})
    database = airflow_v2.database
    scheduled = database.start_run(DAG, "scheduled__1", logical_date=date)
    # It goes on until it is asked for twice after it was found to have the date.
    finish_later = before_answering(lambda: database.finish_after(scheduled, polls=2))
    airflow_v2.server.fail_next(asks("POST", f"/dags/{DAG}/dagRuns"), finish_later)
    label: dict[str, Any] = {"Logical date": dg.MetadataValue.timestamp(date)}
    report(instance, LOAD, "success", "one", **label)
    assert len(daemon.tick()) == 1
    (run,) = database.runs
    assert run.state == "success"
    assert len(instance.fetch_materializations(KEY, limit=9).records) == 1
    assert {task.try_number for task in run.tasks} == {2}


def test_a_request_by_many_upstreams_fits_into_a_tag(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    upstreams = [f"warehouse/load_{number:03}_{'x' * 50}" for number in range(60)]
    trigger = {"when": "all", "pass_upstream": True}
    daemon = start(airflow_v2, instance, {"depends_on": upstreams, "trigger": trigger})
    for upstream in upstreams:
        report(instance, upstream, "success", "one")
    (request,) = daemon.evaluate()
    assert max(map(len, request.tags.values())) < 2500


def test_more_active_runs_of_other_dags_than_can_be_listed_delay_no_run(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    """Before 3.3, Airflow can't list only the runs that Dagster has triggered."""
    daemon = start(airflow, instance, EACH, polls=math.inf)
    airflow.database.add_dag("other")
    for number in range(1001):
        airflow.database.start_run("other", f"dagster__{number}", state="queued")
    for run_id in ("one", "two"):
        report(instance, LOAD, run_id=run_id)
    assert daemon.evaluate()[0].run_key
    own = build_run_id("3b241101-e2bb-4255-8caf-4136c566a962")
    airflow.database.start_run(DAG, own)
    assert daemon.evaluate() == [], "one at a time"
