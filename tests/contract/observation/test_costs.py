"""What a tick costs: it depends on what happened, not on how many DAGs and instances there are."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import Pool

from federation_defs.dagster_io.deployment import share_instance
from federation_defs.dagster_io.heartbeat import HeartbeatMonitor
from federation_defs.events import build_materialization
from federation_defs.naming import build_alive_tag, build_launching_tags, build_plan_tag
from federation_defs.observation.reporter import Reporter
from federation_defs.observation.tick import Tick
from federation_defs.outcome import Outcome
from federation_defs.partitions import RunPartition
from federation_defs.timing import Timing
from tests.contract.conftest import Airflow
from tests.contract.observation.daemon import (
    DAG,
    Daemon,
    FakeClock,
    Observed,
    recording_statements,
)
from tests.contract.observation.test_catching_up import add_run
from tests.contract.observation.test_replaced import PATIENT, CodeServer

_END_OTHER_CONNECTIONS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE pid <> pg_backend_pid() AND datname = current_database()
"""


def count_statements(daemon: Daemon) -> int:
    with recording_statements() as statements:
        daemon.evaluate()
    return len(statements)


def count_calls(instance: dg.DagsterInstance, name: str) -> list[Any]:
    """Return a list to which the arguments of each later call of a method are added."""
    calls, method = list[Any](), getattr(instance, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return method(*args, **kwargs)

    vars(instance)[name] = call
    return calls


def test_a_quiet_tick_asks_dagster_one_thing_however_many_dags_there_are(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    counts = []
    for number in (1, 60):
        dag_ids = [f"{number}_{each}" for each in range(number)]
        for dag_id in dag_ids:
            airflow_v2.database.add_dag(dag_id)
        server = CodeServer(airflow_v2.client, dag_ids, instance, timing=PATIENT)
        for dag_id in dag_ids:
            airflow_v2.database.finish_run(airflow_v2.database.start_run(dag_id, "mine"))
        assert [len(server.tick()) for _ in range(3)] == [0, number, 0]
        requests = len(airflow_v2.server.requests)
        counts.append(count_statements(server))
        assert len(airflow_v2.server.requests) == requests + 1
    assert counts == [1, 1]


def test_a_tick_with_news_reads_the_sensors_of_the_deployment_once_in_a_while(
    observed: Observed, instance: dg.DagsterInstance
) -> None:
    """Each state holds a cursor. A code server that was replaced finds that out by one of them."""
    timing = Timing(tick_s=600, report_s=600, owner_check_s=600, other_sensors_s=600)
    server = CodeServer(observed.daemon.client, [DAG], instance, timing=timing)
    server.tick()
    scans = count_calls(instance, "all_instigator_state")
    for tick in range(3):
        for number in range(120):
            observed.add_run(f"run_{tick}_{number:03}", ended_s_ago=130 - number)
        assert len(server.tick()) == 120
    assert len(scans) == 1


def test_all_ticks_of_a_process_share_a_dagster_instance(
    instance: dg.DagsterInstance,
) -> None:
    def open_in_a_tick(ref: Any) -> dg.DagsterInstance:
        with (
            dg.build_sensor_context(instance_ref=ref) as context,
            share_instance(context) as shared,
        ):
            return shared

    def refer(_: int) -> Any:
        return instance.get_ref()._replace(settings=dict(instance.get_ref().settings))

    with ThreadPoolExecutor(8) as threads:
        first, *others = threads.map(lambda number: open_in_a_tick(refer(number)), range(40))
    assert all(other is first for other in others)
    assert first.get_run_records() == []  # it is open after the ticks
    changed = instance.get_ref()._replace(settings={"telemetry": {"enabled": False}})
    second = open_in_a_tick(changed)
    assert second is not first
    with dg.build_sensor_context(instance=instance) as context, share_instance(context) as given:
        assert given is instance
    for opened in (first, second):
        opened.dispose()


def test_after_an_error_ticks_share_the_same_dagster_instance(
    instance: dg.DagsterInstance,
) -> None:
    """Each that is opened keeps its connections until Python collects it."""
    ref, shared = instance.get_ref(), list[dg.DagsterInstance]()
    for _ in range(3):
        with (
            dg.build_sensor_context(instance_ref=ref) as context,
            suppress(ValueError),
            share_instance(context) as opened,
        ):
            shared.append(opened)
            raise ValueError("one sensor fails in each tick")
    assert shared[0] is shared[1] is shared[2]
    shared[0].dispose()


class Ticks:
    """Ticks that open the Dagster instance by its reference, as in a code server."""

    def __init__(self, observed: Observed) -> None:
        self._sensor = observed.daemon.sensor
        self._ref = observed.daemon.instance.get_ref()
        self._cursor: str | None = None

    def tick(self) -> None:
        context = dg.build_sensor_context(instance_ref=self._ref, cursor=self._cursor)
        with context:
            result = self._sensor(context)
        assert isinstance(result, dg.SensorResult)
        self._cursor = result.cursor


@pytest.fixture
def ticks(observed: Observed) -> Iterator[Ticks]:
    yield Ticks(observed)
    ref = observed.daemon.instance.get_ref()
    with dg.build_sensor_context(instance_ref=ref) as context, share_instance(context) as shared:
        shared.dispose()


def test_a_tick_opens_no_dagster_instance_of_its_own(
    observed: Observed, ticks: Ticks, pytestconfig: pytest.Config
) -> None:
    ticks.tick()
    connections = list[Any]()

    def record(*connection: Any) -> None:
        connections.append(connection)

    event.listen(Pool, "connect", record)
    for _ in range(3):
        with recording_statements() as statements:
            ticks.tick()
        assert len(statements) == 1
    event.remove(Pool, "connect", record)
    if pytestconfig.getoption("--storage") == "postgres":
        assert connections == []
    observed.add_run("mine")
    ticks.tick()
    assert observed.reported == ["mine"]


def test_after_the_database_was_restarted_the_second_tick_reports(
    observed: Observed, ticks: Ticks, pytestconfig: pytest.Config
) -> None:
    ticks.tick()
    observed.add_run("mine")
    ticks.tick()
    observed.add_run("another")
    if pytestconfig.getoption("--storage") == "postgres":
        storage: Any = observed.daemon.instance.event_log_storage
        url = storage.postgres_url
        with create_engine(url).connect() as connection:
            connection.execute(text(_END_OTHER_CONNECTIONS))
        with pytest.raises(OperationalError):
            ticks.tick()
    ticks.tick()
    assert observed.reported == ["mine", "another"]


@pytest.mark.parametrize("count", [60, 240])
def test_a_backlog_is_looked_up_once_per_dag(
    airflow_v2: Airflow, instance: dg.DagsterInstance, count: int
) -> None:
    dag_ids = [f"dag_{number}" for number in range(4)]
    for dag_id in dag_ids:
        airflow_v2.database.add_dag(dag_id)
    for number in range(count):
        ago = timedelta(seconds=count - number)
        add_run(airflow_v2, f"run_{number:03}", ago, dag_ids[number % 4])
    timing = Timing(report_s=600, owner_check_s=600, takeover_s=7200)
    daemon = Daemon(airflow_v2.client, dag_ids, instance, timing=timing)
    fetches = count_calls(instance, "fetch_materializations")
    assert len(daemon.tick()) == count
    assert len(fetches) == 4


def test_the_event_log_is_read_again_before_a_step_can_have_taken_over_a_run(
    observed: Observed, instance: dg.DagsterInstance
) -> None:
    """The step announces itself, waits for 15 s, and reports. Then its Dagster run is over."""
    clock, report = FakeClock(), instance.report_runless_asset_event
    for number in range(120):
        observed.add_run(f"run_{number:03}", ended_s_ago=130 - number)
    timing = replace(clock.timing, report_s=600)
    daemon = Daemon(observed.daemon.client, [DAG], instance, timing=timing)
    run = daemon.client.fetch_run(DAG, "run_100")
    assert run is not None

    def take_over() -> None:
        """Report a run between the first 50 and the rest."""
        if len(daemon.stored) < 49:
            daemon.before_storing = take_over
        else:
            clock.advance(16)
            report(
                build_materialization(daemon.client, Outcome(run, is_success=True), RunPartition())
            )

    daemon.before_storing = take_over
    daemon.evaluate()
    assert sorted(observed.reported) == [f"run_{number:03}" for number in range(120)]


def test_a_run_whose_owner_ends_between_two_checks_is_stored_once(
    observed: Observed, instance: dg.DagsterInstance
) -> None:
    """The step had announced itself before the first check, and reports soon after it."""
    clock, report = FakeClock(), instance.report_runless_asset_event
    for number in range(120):
        observed.add_run(f"run_{number:03}", ended_s_ago=130 - number)
    daemon = Daemon(observed.daemon.client, [DAG], instance)
    found = [daemon.client.fetch_run(DAG, f"run_{number:03}") for number in range(120)]
    outcomes = [Outcome(run, is_success=True) for run in found if run is not None]
    owner = create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED)
    heartbeat = {build_alive_tag("metrics"): f"{owner.run_id} 1"}
    plan = {build_plan_tag("metrics"): json.dumps({DAG: ["run_100", "adopted"]})}
    instance.add_run_tags(owner.run_id, build_launching_tags("metrics") | heartbeat | plan)

    def end_step() -> None:
        if len(daemon.stored) < 20:
            daemon.before_storing = end_step
            return
        clock.advance(2)
        report(build_materialization(daemon.client, outcomes[100], RunPartition()))
        instance.report_run_canceled(owner)

    daemon.before_storing = end_step
    monitor = HeartbeatMonitor("metrics", clock.timing, 5.0)
    reporter = Reporter(daemon.client, {}, monitor, clock.timing)
    tick = Tick(instance, "metrics", clock.timing, lambda: logging.getLogger(__name__))
    reporter.report(tick, outcomes, math.inf)
    assert sorted(observed.reported) == [f"run_{number:03}" for number in range(120)]


@pytest.mark.parametrize("first_ended_ago", [timedelta(hours=30), timedelta(days=9)])
def test_a_lost_cursor_of_many_dags_is_found_over_several_ticks(
    airflow_v2: Airflow, instance: dg.DagsterInstance, first_ended_ago: timedelta
) -> None:
    """On Dagster+ each query of the event log takes a tenth of a second."""
    clock, dag_ids = FakeClock(), [f"dag_{number:02}" for number in range(20)]
    for dag_id in dag_ids:
        airflow_v2.database.add_dag(dag_id)
        add_run(airflow_v2, "first", first_ended_ago, dag_id)
    declared: dict[str, Any] = {"lookback": "10d", "lookback_on_first_start": "10d"}
    assert len(Daemon(airflow_v2.client, dag_ids, instance, **declared).tick()) == 20
    add_run(airflow_v2, "mine", timedelta(hours=25), dag_ids[0])
    daemon = Daemon(airflow_v2.client, dag_ids, instance, timing=clock.timing)
    calls = count_calls(instance, "fetch_materializations")  # by key: where to begin
    fetch = vars(instance)["fetch_materializations"]

    def fetch_slowly(*args: Any, **kwargs: Any) -> Any:
        clock.advance(isinstance(args[0], dg.AssetKey))
        return fetch(*args, **kwargs)

    vars(instance)["fetch_materializations"] = fetch_slowly
    reports = []
    while not any(reports):
        reports.append(daemon.tick())
        assert sum(isinstance(each, dg.AssetKey) for each, *_ in calls) <= 6 * len(reports)
    assert reports[-1] == ["mine"]
    assert len(reports) == (4 if first_ended_ago < timedelta(days=7) else 1)


def test_the_search_for_the_first_report_begins_anew_after_a_valid_cursor(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """A person resets the cursor, brings it back, and later resets it once more."""
    clock, dag_ids = FakeClock(), [f"dag_{number:02}" for number in range(10)]
    for dag_id in dag_ids:
        airflow_v2.database.add_dag(dag_id)
        add_run(airflow_v2, "first", timedelta(minutes=30), dag_id)
    daemon = Daemon(airflow_v2.client, dag_ids, instance, timing=clock.timing)
    assert len(daemon.tick()) == 10
    calls = count_calls(instance, "fetch_materializations")
    fetch = vars(instance)["fetch_materializations"]

    def fetch_slowly(*args: Any, **kwargs: Any) -> Any:
        clock.advance(isinstance(args[0], dg.AssetKey))
        return fetch(*args, **kwargs)

    vars(instance)["fetch_materializations"] = fetch_slowly
    valid, daemon.cursor = daemon.cursor, None
    assert daemon.tick() == []
    assert 0 < len(calls) < 10
    daemon.cursor = valid
    daemon.tick()
    calls.clear()
    daemon.cursor = None
    while daemon.cursor is None:
        daemon.tick()
    assert sum(isinstance(each, dg.AssetKey) for each, *_ in calls) == 10
