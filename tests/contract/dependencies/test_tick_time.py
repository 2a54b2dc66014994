"""A tick of the event sensor ends in time, whatever waits. What it leaves has its turn later."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from werkzeug import Response

from tests.contract.conftest import Airflow
from tests.contract.dependencies.reacting import DAG, EventDaemon, find_cause, report
from tests.contract.execution.executing import FAST
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.faults import Act, Stall
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

    def __init__(
        self, clock: Callable[[], float], *given: Any, check_s: float = FAST.check_s
    ) -> None:
        super().__init__(*given, timing=replace(FAST, monotonic=clock, check_s=check_s))


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
        assert "this tick has no time left; the next one tries again" in daemon.skip_reason
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
    daemon = TimedDaemon(lambda: now, airflow_v2.client, instance, {DAG: dag}, check_s=0.5)
    assert daemon.tick() == []
    report(instance, "warehouse/up", run_id="one")
    pauses_s: list[int] = []
    with Stall() as stall:
        server.fail_next(asks("GET", ".*/dagRuns"), stall, times=9)
        for second in range(20):
            now = float(second)
            assert daemon.tick() == []
            said = r"Airflow 'metrics' has not answered in time; the next request is in (\d+) s"
            pauses_s += map(int, re.findall(said, daemon.skip_reason))
    # It was asked at 0, 2, 6 and 14 seconds.
    assert pauses_s == [2, 1, *range(4, 0, -1), *range(8, 0, -1), *range(16, 10, -1)]
    server.forget_faults()
    now = 30.0
    assert daemon.tick() == ["warehouse/up success one"]


class LongTicks(EventDaemon):
    """A daemon with threads, whose ticks may go on. Only pauses advance the clock.

    Attributes:
        pauses_s: All pauses within ticks.
        at_pause: Is called at the end of each.
    """

    def __init__(self, *given: Any) -> None:
        self.now_s = 1000.0
        self.pauses_s: list[float] = []
        self.at_pause: Callable[[], object] = lambda: None
        timing = replace(FAST, monotonic=lambda: self.now_s, sleep=self._sleep)
        super().__init__(*given, timing=timing)
        self.tick()  # what happens from now on counts
        self.now_s += 60
        self.tick()

    def _sleep(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        self.now_s += seconds
        self.at_pause()


def test_a_tick_goes_on_until_something_happens(
    airflow_v2: Airflow, threaded_instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    daemon = LongTicks(airflow_v2.client, threaded_instance, {DAG: PASSES_UPSTREAM})
    daemon.pauses_s.clear()
    assert daemon.tick() == []
    assert daemon.pauses_s == [2, 2, 1, 2, 2, 0]
    assert daemon.skip_reason == "Nothing has happened upstream that starts a DAG."

    def end_upstream() -> None:
        if len(daemon.pauses_s) == 2:
            report(threaded_instance, "warehouse/up")

    daemon.pauses_s.clear()
    daemon.at_pause = end_upstream
    assert daemon.tick() == ["warehouse/up success "]
    assert daemon.pauses_s == [2, 2]


def test_a_tick_in_which_runs_wait_ends_and_says_what_for(
    airflow_v2: Airflow, threaded_instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    daemon = LongTicks(airflow_v2.client, threaded_instance, {DAG: PASSES_UPSTREAM})
    airflow_v2.database.dags[DAG].is_paused = True
    report(threaded_instance, "warehouse/up")
    daemon.pauses_s.clear()
    for _ in range(3):
        daemon.tick()
        assert "is paused" in daemon.skip_reason
    assert daemon.pauses_s == []


def test_a_latch_that_waits_for_other_upstreams_ends_no_tick(
    airflow_v2: Airflow, threaded_instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    edges = [{"dag": f"warehouse/{each}", "state": "finished"} for each in ("up", "side")]
    dag = {"depends_on": edges, "trigger": {"when": "all"}}
    daemon = LongTicks(airflow_v2.client, threaded_instance, {DAG: dag})
    report(threaded_instance, "warehouse/up")
    daemon.tick()
    daemon.now_s += 60
    daemon.tick()
    daemon.pauses_s.clear()
    daemon.at_pause = lambda: report(threaded_instance, "warehouse/side")
    assert daemon.tick() == ["warehouse/side finished "]
    assert daemon.pauses_s == [2]


def test_a_person_evaluates_a_sensor_between_the_readings_of_its_tick(
    airflow_v2: Airflow, threaded_instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    daemon = LongTicks(airflow_v2.client, threaded_instance, {DAG: PASSES_UPSTREAM})

    def evaluate() -> None:
        with dg.build_sensor_context(
            threaded_instance, daemon.cursor, definitions=daemon.defs
        ) as context:
            assert not daemon.sensor.evaluate_tick(context).run_requests

    daemon.at_pause = evaluate
    daemon.pauses_s.clear()
    assert daemon.tick() == []
    assert len(daemon.pauses_s) == 6

    def evaluate_news() -> None:
        report(threaded_instance, "warehouse/up")
        with dg.build_sensor_context(
            threaded_instance, daemon.cursor, definitions=daemon.defs
        ) as context:
            assert daemon.sensor.evaluate_tick(context).run_requests

    daemon.at_pause = evaluate_news
    assert daemon.tick() == ["warehouse/up success "]
    daemon.at_pause = lambda: None
    assert daemon.tick() == []


def test_a_tick_that_hangs_is_not_joined_by_the_next_one(
    airflow_v2: Airflow, threaded_instance: dg.DagsterInstance
) -> None:
    """Dagster ended it after a minute. The code server does not notice."""
    airflow_v2.database.add_dag(DAG, polls=0)
    daemon = LongTicks(airflow_v2.client, threaded_instance, {DAG: PASSES_UPSTREAM})
    skipped = list[str]()

    def tick_again(act: Act) -> Response:
        with ThreadPoolExecutor(1) as threads, daemon.build_context(daemon.cursor) as context:
            ticked = threads.submit(daemon.sensor.evaluate_tick, context).result(timeout=60)
        skipped.append(ticked.skip_message or "")
        assert ticked.cursor == daemon.cursor
        return act()

    airflow_v2.server.fail_next(asks("GET", f"/dags/{DAG}"), tick_again)
    report(threaded_instance, "warehouse/up")
    assert daemon.tick() == ["warehouse/up success "]
    assert skipped == ["Another tick of this sensor is still running."]
