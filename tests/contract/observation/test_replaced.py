"""A code server that is replaced while its tick goes on."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import dagster as dg
import pytest
from dagster._core.remote_origin import RegisteredCodeLocationOrigin
from dagster._core.scheduler.instigation import SensorInstigatorData

from federation_defs.errors import DeclaredTwiceError
from federation_defs.timing import Timing
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.faults import edit
from tests.contract.observation.daemon import (
    DAG,
    KEY,
    Daemon,
    FakeClock,
    Observed,
    fetch_reported_observations,
    recording_statements,
)
from tests.unit.sensors import store_sensor

PATIENT = Timing(tick_s=600, report_s=600, owner_check_s=600)
LOCATION = RegisteredCodeLocationOrigin("core")


class CodeServer(Daemon):
    """A daemon whose ticks know their code location, and which stores cursors as Dagster does."""

    def build_context(self) -> dg.SensorEvaluationContext:
        return dg.SensorEvaluationContext(
            instance_ref=None,
            last_tick_completion_time=None,
            last_run_key=None,
            cursor=self.cursor,
            repository_name=None,
            instance=self.instance,
            code_location_origin=LOCATION,
        )

    def tick(self, *, crashes: bool = False, killed_after: int | None = None) -> list[str]:
        run_ids = super().tick(crashes=crashes, killed_after=killed_after)
        self.store_cursor()
        return run_ids

    def store_cursor(self) -> None:
        data = SensorInstigatorData(cursor=self.cursor)
        store_sensor(self.instance, LOCATION.location_name, self.sensor.name, data)


@pytest.fixture
def server(observed: Observed) -> CodeServer:
    daemon = observed.daemon
    return CodeServer(daemon.client, [DAG], daemon.instance, timing=PATIENT)


def test_a_new_code_server_reports_from_its_second_tick_on(
    observed: Observed, server: CodeServer
) -> None:
    observed.add_run("mine")
    assert [server.tick() for _ in range(3)] == [[], ["mine"], []]
    server.restart()
    observed.add_run("another")
    assert [server.tick() for _ in range(3)] == [[], ["another"], []]


def test_with_a_long_interval_a_code_server_that_lives_for_a_minute_reports(
    observed: Observed, instance: dg.DagsterInstance
) -> None:
    """`dagster-daemon run -m` replaces it that often."""
    clock = FakeClock()
    timing = replace(clock.timing, tick_s=600, owner_check_s=600)
    server = CodeServer(observed.daemon.client, [DAG], instance, timing=timing, interval="5m")
    assert server.sensor.minimum_interval_seconds == 9
    reported = []
    for run_id in ("mine", "another"):
        server.restart()
        observed.add_run(run_id)
        for _ in range(6):
            reported += server.tick()
            clock.advance(10)
    assert reported == ["mine", "another"]
    requests = len(observed.server.requests)
    with recording_statements() as statements:
        server.evaluate()
    assert len(statements) == 1
    assert len(observed.server.requests) == requests


def test_a_code_server_that_was_replaced_amid_a_tick_reports_no_more(
    observed: Observed, server: CodeServer
) -> None:
    server.tick()
    for number in range(120):
        observed.add_run(f"run_{number:03}", ended_s_ago=130 - number)
    successor = CodeServer(server.client, [DAG], server.instance, timing=PATIENT)
    successor.cursor = server.cursor
    server.before_storing = successor.tick  # the chunk of 50 runs that was begun is reported
    server.evaluate()
    assert len(observed.reported) == 50
    assert len(successor.tick()) == 70
    assert len(set(observed.reported)) == len(observed.reported) == 120


def test_rows_that_can_not_be_read_are_left_to_the_code_location_that_observes(
    observed: Observed,
) -> None:
    timing = replace(PATIENT, other_sensors_s=0)
    server = CodeServer(observed.daemon.client, [DAG], observed.daemon.instance, timing=timing)
    server.tick()
    observed.add_run("odd")

    def spoil(content: dict[str, Any]) -> None:
        for run in content["dag_runs"]:
            run["state"] = None

    observed.server.fail_next(asks("GET", "/dags/~/dagRuns"), edit(spoil), times=9)
    data = SensorInstigatorData(last_tick_start_timestamp=time.time())
    store_sensor(server.instance, "another", server.sensor.name, data)
    with pytest.raises(DeclaredTwiceError):
        server.tick()
    assert server.stored == []


def test_a_code_server_that_was_replaced_reports_no_row_that_can_not_be_read(
    observed: Observed, server: CodeServer
) -> None:
    server.tick()
    successor = CodeServer(server.client, [DAG], server.instance, timing=PATIENT)
    successor.cursor = server.cursor
    observed.add_run("odd")

    def spoil(content: dict[str, Any]) -> None:
        for run in content["dag_runs"]:
            run["state"] = None

    observed.server.fail_next(asks("GET", "/dags/~/dagRuns"), edit(spoil), times=9)
    assert successor.tick() == []  # it takes over
    cursor = server.cursor
    server.evaluate()
    assert (server.stored, server.cursor) == ([], cursor)
    assert successor.tick() == []
    assert len(fetch_reported_observations(server.instance, KEY)) == 1
