"""Ticks that overlap, that poll several times, and of an instance that fails."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dagster as dg
import pytest
from werkzeug import Response

from federation_defs.declaration import DagDeclaration
from federation_defs.errors import SignInRefusedError
from federation_defs.naming import build_asset_key
from tests.contract.conftest import Airflow
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.faults import Act
from tests.contract.observation.daemon import (
    DAG,
    KEY,
    Daemon,
    FakeClock,
    Observed,
    fetch_evaluations,
)
from tests.contract.worlds import connect


def skip_reason(result: dg.SensorResult | dg.SkipReason) -> str:
    skip = result.skip_reason if isinstance(result, dg.SensorResult) else result
    return skip.skip_message or "" if skip else ""


def test_a_tick_is_skipped_while_the_one_before_it_goes_on(observed: Observed) -> None:
    """Dagster ends a tick after a minute. The code server does not notice: waiting for it would
    take one thread after the other."""
    observed.add_run("mine")
    skipped = list[dg.SensorResult | dg.SkipReason]()

    def tick_again() -> None:
        with ThreadPoolExecutor(1) as threads:
            skipped.append(threads.submit(observed.daemon.evaluate).result(timeout=60))

    observed.daemon.before_storing = tick_again
    assert isinstance(observed.daemon.evaluate(), dg.SensorResult)
    assert [skip_reason(result) for result in skipped] == [
        "Another tick of this sensor is still running."
    ]
    assert isinstance(observed.daemon.evaluate(), dg.SensorResult)
    assert observed.reported == ["mine"]
    assert len(fetch_evaluations(observed.daemon.instance, KEY)) == 1


def test_a_run_is_in_the_event_log_before_the_tick_returns(observed: Observed) -> None:
    """A Dagster run that takes it over sees that it is reported."""
    observed.add_run("mine")
    result = observed.daemon.evaluate()
    assert observed.reported == ["mine"]
    assert f"Reported 1 run of Airflow 'metrics': {DAG} mine." in skip_reason(result)


def observe_often(airflow: Airflow, instance: dg.DagsterInstance, clock: FakeClock) -> Daemon:
    """Return a daemon whose ticks poll each second."""
    airflow.database.add_dag(DAG)
    return Daemon(airflow.client, [DAG], instance, timing=clock.timing, interval=1)


def test_a_run_that_ends_during_a_tick_is_reported_by_it(
    airflow_v2: Airflow, threaded_instance: dg.DagsterInstance
) -> None:
    """Dagster evaluates a sensor every 5 s; a tick polls several times."""
    daemon = observe_often(airflow_v2, threaded_instance, FakeClock())

    def end_a_run(act: Act) -> Response:
        response = act()
        airflow_v2.database.finish_run(airflow_v2.database.start_run(DAG, "mine"))
        return response

    airflow_v2.server.fail_next(asks("GET", "/dags/~/dagRuns"), end_a_run)
    assert daemon.tick() == ["mine"]
    assert airflow_v2.server.count("GET", "/dags/~/dagRuns") == 2


def test_a_tick_without_news_polls_until_the_daemons_next_loop_but_one(
    airflow_v2: Airflow, threaded_instance: dg.DagsterInstance
) -> None:
    clock = FakeClock()
    daemon = observe_often(airflow_v2, threaded_instance, clock)
    assert daemon.tick() == []
    assert clock.elapsed_s == pytest.approx(9)
    assert airflow_v2.server.count("GET", "/dags/~/dagRuns") == 10


def test_a_dag_that_is_found_absent_in_the_first_poll_of_a_tick_stays_in_the_cursor(
    airflow_v2: Airflow, threaded_instance: dg.DagsterInstance
) -> None:
    daemon = observe_often(airflow_v2, threaded_instance, FakeClock())
    daemon.absent = {"gone": "Airflow 'metrics' has no DAG 'gone'."}
    for _ in range(2):
        daemon.restart()
        for _ in range(2):
            daemon.tick()
    assert airflow_v2.server.count("GET", "/dags/~/dagRuns") > 5
    assert len(fetch_evaluations(threaded_instance, build_asset_key("metrics", "gone"))) == 1


def test_a_slow_poll_does_not_make_a_tick_longer_than_the_daemons_loops(
    airflow_v2: Airflow, threaded_instance: dg.DagsterInstance
) -> None:
    clock = FakeClock()
    daemon = observe_often(airflow_v2, threaded_instance, clock)

    def take_3_s(act: Act) -> Response:
        clock.advance(3)
        return act()

    airflow_v2.server.fail_next(asks("GET", "/dags/~/dagRuns"), take_3_s, times=9)
    daemon.tick()
    assert airflow_v2.server.count("GET", "/dags/~/dagRuns") == 3
    assert clock.elapsed_s == pytest.approx(9)


def test_the_tick_from_which_on_a_deadline_is_known_ends_at_once(
    airflow_v2: Airflow, threaded_instance: dg.DagsterInstance
) -> None:
    """A deadline that passes before the cursor is stored would never be evaluated."""
    clock = FakeClock()
    daemon = observe_often(airflow_v2, threaded_instance, clock)
    daemon.tick()
    daemon.dags = {
        DAG: DagDeclaration.model_validate({"deadline": {"cron": "0 6 * * *", "within": "1h"}})
    }
    daemon.restart()
    before = clock.elapsed_s
    daemon.tick()
    assert clock.elapsed_s == before
    daemon.tick()
    assert clock.elapsed_s > before


def test_a_tick_that_begins_late_polls_once(
    airflow_v2: Airflow, threaded_instance: dg.DagsterInstance
) -> None:
    clock = FakeClock()
    daemon = observe_often(airflow_v2, threaded_instance, clock)
    daemon.tick()
    clock.advance(11)
    before = airflow_v2.server.count("GET", "/dags/~/dagRuns")
    daemon.tick()
    assert airflow_v2.server.count("GET", "/dags/~/dagRuns") == before + 1


def test_a_tick_without_news_ends_at_once_where_it_would_delay_other_sensors(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """By default Dagster's daemon evaluates one sensor after the other."""
    airflow_v2.database.add_dag(DAG)
    clock = FakeClock()
    Daemon(airflow_v2.client, [DAG], instance, timing=clock.timing, interval=1).tick()
    assert clock.elapsed_s == 0
    assert airflow_v2.server.count("GET", "/dags/~/dagRuns") == 1


def test_an_unreachable_instance_is_polled_less_and_less(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG)
    clock = FakeClock()
    daemon = Daemon(airflow_v2.client, [DAG], instance, timing=clock.timing)  # its interval is 5 s
    daemon.tick()
    airflow_v2.server.stop()
    first, second, third = (skip_reason(daemon.evaluate()) for _ in range(3))
    assert "gave no usable answer at" in first
    assert "retried" not in first  # but at once, by the next tick
    assert "UTC; retried in 5 s.)" in second
    assert "UTC; retried in 5 s.)" in third
    clock.advance(5)
    assert "UTC; retried in 10 s.)" in skip_reason(daemon.evaluate())
    airflow_v2.server.start()
    requests = len(airflow_v2.server.requests)
    clock.advance(9)
    assert "retried in 1 s" in skip_reason(daemon.evaluate())
    assert len(airflow_v2.server.requests) == requests
    clock.advance(1)
    assert isinstance(daemon.evaluate(), dg.SensorResult)


def test_an_instance_that_refuses_us_fails_the_tick_and_is_then_left_alone(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    """A wrong password at every tick would lock the account, and fail 720 times an hour."""
    airflow.database.add_dag(DAG)
    airflow.server.has_public_role = False
    sign_in: dict[str, Any] = {"v1": "basic", "v2": "password"}
    client = connect(airflow.server.url, sign_in[airflow.server.api], "wrong")
    daemon = Daemon(client, [DAG], instance, timing=FakeClock().timing)
    for _ in range(2):
        with pytest.raises(SignInRefusedError, match="METRICS_PASSWORD"):
            daemon.evaluate()
    requests = len(airflow.server.requests)
    for _ in range(3):
        assert "METRICS_PASSWORD" in skip_reason(daemon.evaluate())
    assert len(airflow.server.requests) == requests
