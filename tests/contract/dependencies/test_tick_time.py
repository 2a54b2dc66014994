"""A tick of the event sensor ends in time, whatever waits. What it leaves has its turn later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tests.contract.conftest import Airflow
from tests.contract.dependencies.reacting import DAG, EventDaemon, find_cause, report
from tests.contract.execution.executing import FAST
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.faults import Stall
from tests.contract.observation.daemon import recording_statements

HOURLY = {"cron": "0 * * * *", "start": "2020-01-01"}
DAILY = {"cron": "0 0 * * *", "start": "2020-01-01"}
PASSES_UPSTREAM = {"depends_on": ["warehouse/up"], "trigger": {"pass_upstream": True}}

RULES = """
import os
from federation_defs import Run

def hang(event):
    with open(os.environ["HUNG"], "a") as file:
        file.write("x")
    raise TimeoutError

def agree(event):
    return Run()
"""


class TimedDaemon(EventDaemon):
    """A daemon whose code servers have a clock of the test's own."""

    def __init__(self, clock: Callable[[], float], *given: Any) -> None:
        super().__init__(*given, timing=replace(FAST, monotonic=clock, check_s=0.5))


def test_partitions_for_which_a_tick_has_no_time_have_their_turn_in_the_next_ones(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """Each query of a database takes a second. A partition needs two hours of its day, which only
    the last one has."""
    airflow_v2.database.add_dag(DAG, polls=0)
    dag = {"depends_on": ["warehouse/up"], "partitions": DAILY, "granularity": 2}
    upstreams = {"warehouse": {"up": {"partitions": HOURLY}}}
    with recording_statements() as statements:
        daemon = TimedDaemon(
            lambda: float(len(statements)), airflow_v2.client, instance, {DAG: dag}, upstreams
        )
        assert daemon.tick() == []
        for hour in [*(f"{day:02}-00" for day in range(1, 31)), "30-01"]:
            report(instance, "warehouse/up", partition=f"2020-01-{hour}:00")
        before = len(statements)
        assert daemon.tick() == []
        assert "no time left in this tick; tried again in the next one" in daemon.skip_reason
        assert len(statements) - before < 30
        assert [*daemon.tick(), *daemon.tick(), *daemon.tick()] == ["warehouse/up success "]


def test_a_backlog_after_a_restart_is_read_in_several_ticks_however_many_dags_it_is_about(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """Each query of a database takes a second."""
    dags = {f"dag_{number}": PASSES_UPSTREAM for number in range(8)}
    for dag_id in dags:
        airflow_v2.database.add_dag(dag_id, polls=0)
    with recording_statements() as statements:
        daemon = TimedDaemon(lambda: float(len(statements)), airflow_v2.client, instance, dags)
        assert daemon.tick() == []
        for number in range(30):
            report(instance, "warehouse/up", run_id=f"run_{number}")
        daemon.restart()
        requested: list[str] = []
        for _ in range(6):
            before = len(statements)
            requested += map(find_cause, daemon.evaluate())
            assert len(statements) - before < 60
            daemon.cursor = daemon.ticked.cursor
        assert requested == ["warehouse/up success run_29"] * 8


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """A clock by which each call of a function that hangs takes eleven seconds."""
    (tmp_path / "rules_of_ticks.py").write_text(RULES)
    (tmp_path / "hung").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HUNG", str(tmp_path / "hung"))
    return lambda: 11.0 * (tmp_path / "hung").stat().st_size


def test_functions_that_hang_keep_no_other_dag_from_starting_in_the_same_tick_or_the_next(
    airflow_v2: Airflow, instance: dg.DagsterInstance, clock: Callable[[], float]
) -> None:
    functions = {"a": "hang", "b": "hang", "c": "agree", "d": None}
    dags: dict[str, Any] = {}
    for dag_id, function in functions.items():
        airflow_v2.database.add_dag(dag_id, polls=0)
        trigger = {"runs": "each", "only_if": function and f"rules_of_ticks:{function}"}
        dags[dag_id] = {"depends_on": [f"warehouse/{dag_id}"], "trigger": trigger}
    daemon = TimedDaemon(clock, airflow_v2.client, instance, dags)
    assert daemon.tick() == []
    for number in range(3):
        for dag_id in dags:
            report(instance, f"warehouse/{dag_id}", run_id=f"run_{number}")
        first, second = daemon.tick(), daemon.tick()
        assert f"warehouse/d success run_{number}" in first
        assert f"warehouse/c success run_{number}" in [*first, *second]


def test_a_dag_that_asks_a_function_has_its_turn_though_others_need_all_the_time_of_a_tick(
    airflow_v2: Airflow, instance: dg.DagsterInstance, clock: Callable[[], float]
) -> None:
    """Each answer of Airflow takes four seconds."""
    dags: dict[str, Any] = {}
    for dag_id in ("a", "b", "c", "d", "e", "f", "z"):
        airflow_v2.database.add_dag(dag_id, polls=0)
        airflow_v2.database.dags[dag_id].is_paused = dag_id != "z"
        function = "rules_of_ticks:agree" if dag_id == "z" else None
        trigger = {"runs": "each", "only_if": function}
        dags[dag_id] = {"depends_on": ["warehouse/up"], "trigger": trigger}
    requests = airflow_v2.server.requests
    daemon = TimedDaemon(lambda: clock() + 4.0 * len(requests), airflow_v2.client, instance, dags)
    assert daemon.tick() == []
    report(instance, "warehouse/up", run_id="one")
    ticked = [*daemon.tick(), *daemon.tick(), *daemon.tick()]
    assert ticked == ["warehouse/up success one"]


def test_an_airflow_that_hangs_does_not_hold_the_tick_and_is_asked_again_after_growing_pauses(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    dag = {"depends_on": ["warehouse/up"], "trigger": {"runs": "each"}}
    now, server = 0.0, airflow_v2.server
    daemon = TimedDaemon(lambda: now, airflow_v2.client, instance, {DAG: dag})
    assert daemon.tick() == []
    report(instance, "warehouse/up", run_id="one")
    asked: list[float] = []
    with Stall() as stall:
        server.fail_next(asks("GET", ".*/dagRuns"), stall, times=9)
        for second in range(20):
            now, before = float(second), server.count("GET", ".*/dagRuns")
            assert daemon.tick() == []
            assert "Airflow 'metrics' has not answered in time; it is" in daemon.skip_reason
            if server.count("GET", ".*/dagRuns") > before:
                asked.append(now)
    assert asked == [0, 2, 6, 14]
    server.forget_faults()
    now = 30.0
    assert daemon.tick() == ["warehouse/up success one"]
