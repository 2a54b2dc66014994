"""Ticks that overlap, and ticks of an instance that is away or refuses us."""

from __future__ import annotations

import time
from typing import Any

import dagster as dg
import pytest
from werkzeug import Response

from federation_defs.errors import SignInRefusedError
from tests.contract.conftest import Airflow
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.faults import Act
from tests.contract.observation.daemon import DAG, KEY, Daemon, Observed, fetch_evaluations
from tests.contract.worlds import connect


def skip_reason(result: dg.SensorResult | dg.SkipReason) -> str:
    assert isinstance(result, dg.SkipReason)
    return result.skip_message or ""


def test_of_two_ticks_that_overlap_only_one_reports(observed: Observed) -> None:
    observed.add_run("mine")
    first, second = observed.daemon.evaluate(), observed.daemon.evaluate()
    assert isinstance(first, dg.SensorResult)
    assert "still being stored" in skip_reason(second)
    observed.daemon.store(first)
    observed.daemon.cursor = first.cursor
    assert observed.daemon.tick() == []
    assert observed.reported == ["mine"]
    assert len(fetch_evaluations(observed.daemon.instance, KEY)) == 1


def test_a_tick_goes_on_as_soon_as_the_events_of_the_one_before_are_stored(
    observed: Observed,
) -> None:
    """Though its cursor was not: the daemon died in between."""
    observed.add_run("mine")
    observed.daemon.tick(crashes=True)
    observed.add_run("another")
    assert observed.daemon.tick() == ["another"]


def test_a_run_that_ends_during_a_tick_is_reported_by_it(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """Dagster takes a turn every 5 s; a turn looks several times."""
    airflow_v2.database.add_dag(DAG)
    daemon = Daemon(airflow_v2.client, [DAG], instance, interval=1)

    def end_a_run(act: Act) -> Response:
        response = act()
        airflow_v2.database.finish_run(airflow_v2.database.start_run(DAG, "mine"))
        return response

    airflow_v2.server.fail_next(asks("GET", "/dags/~/dagRuns"), end_a_run)
    assert daemon.tick() == ["mine"]
    assert airflow_v2.server.count("GET", "/dags/~/dagRuns") == 2


def test_a_tick_without_news_is_over_before_the_next_turn(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow_v2.database.add_dag(DAG)
    daemon = Daemon(airflow_v2.client, [DAG], instance, interval=1)
    began = time.monotonic()
    assert daemon.tick() == []
    assert time.monotonic() - began < 5
    assert airflow_v2.server.count("GET", "/dags/~/dagRuns") == 5


def test_an_instance_that_is_away_is_asked_less_and_less(observed: Observed) -> None:
    observed.daemon.tick()
    observed.server.stop()
    reasons = [skip_reason(observed.daemon.evaluate()) for _ in range(6)]
    assert all("did not answer at" in reason for reason in reasons)
    # At once after the first failure, and then not before some seconds are over.
    assert "asked again" not in reasons[0]
    assert all("UTC; asked again in " in reason for reason in reasons[1:])
    observed.server.start()
    asked = len(observed.server.asked)
    assert "asked again in" in skip_reason(observed.daemon.evaluate())
    assert len(observed.server.asked) == asked


def test_an_instance_that_refuses_us_fails_the_tick_and_is_then_left_alone(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    """A wrong password at every tick would lock the account, and fail 720 times an hour."""
    airflow.database.add_dag(DAG)
    airflow.server.has_public_role = False
    sign_in: dict[str, Any] = {"v1": "basic", "v2": "password"}
    client = connect(airflow.server.url, sign_in[airflow.server.api], "wrong")
    daemon = Daemon(client, [DAG], instance)
    for _ in range(2):
        with pytest.raises(SignInRefusedError, match="METRICS_PASSWORD"):
            daemon.evaluate()
    asked = len(airflow.server.asked)
    for _ in range(3):
        assert "METRICS_PASSWORD" in skip_reason(daemon.evaluate())
    assert len(airflow.server.asked) == asked
