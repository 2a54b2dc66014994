"""Observation after an outage: long histories, gaps, lost cursors, and the order of reports."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import dagster as dg
import pytest
from werkzeug import Response

from federation_defs.events import build_drop_observation
from federation_defs.naming import build_asset_key
from federation_defs.observation import Limits
from federation_defs.observation.cursor import Cursor, build_fingerprint
from federation_defs.timing import Timing
from tests.contract.conftest import Airflow
from tests.contract.dependencies.reacting import EventDaemon
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.faults import Act, Stall, edit
from tests.contract.observation.daemon import (
    DAG,
    KEY,
    Daemon,
    fetch_evaluations,
    fetch_reported_run_ids,
)

OTHER = "load_orders"


@pytest.fixture
def airflow(airflow_v2: Airflow) -> Airflow:
    for dag_id in (DAG, OTHER):
        airflow_v2.database.add_dag(dag_id)
    return airflow_v2


def add_run(airflow: Airflow, run_id: str, ended_ago: timedelta, dag_id: str = DAG) -> None:
    """Add a finished run whose row did not change after its end."""
    run = airflow.database.start_run(dag_id, run_id)
    end = airflow.database.now() - ended_ago
    airflow.database.finish_run(run, end_date=end, updated_at=end)


def build_daemon(
    airflow: Airflow,
    instance: dg.DagsterInstance,
    limits: Limits | None = None,
    timing: Timing | None = None,
    **declared: str,
) -> Daemon:
    return Daemon(airflow.client, [DAG, OTHER], instance, limits, timing, **declared)


def build_cursor(ago: timedelta) -> str:
    """Return the cursor of a daemon that stopped this long ago."""
    return Cursor(datetime.now(timezone.utc) - ago).to_json()


def test_a_long_history_is_reported_in_order_slice_by_slice(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    run_ids = [f"run_{number:03}" for number in range(120)]
    for number, run_id in enumerate(run_ids):
        # Most of them within an hour: what is evenly sliced would be cut into nothing or too much.
        add_run(airflow, run_id, timedelta(hours=20) - timedelta(seconds=30 * number))
    daemon = build_daemon(airflow, instance, Limits(runs=25, reports=10))
    daemon.cursor = build_cursor(timedelta(days=1))
    airflow.server.endpoints.page_limit = 10
    reports = [daemon.tick() for _ in range(30)]
    assert max(len(report) for report in reports) == 10
    assert fetch_reported_run_ids(instance, KEY) == run_ids
    assert [daemon.tick() for _ in range(3)] == [[], [], []]
    assert len(fetch_evaluations(instance, KEY)) == 120


def test_a_history_within_one_second_is_read_at_once(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    for number in range(40):
        add_run(airflow, f"run_{number:02}", timedelta(hours=5))
    daemon = build_daemon(airflow, instance, Limits(runs=5))
    daemon.cursor = build_cursor(timedelta(days=1))
    reported = [run_id for _ in range(10) for run_id in daemon.tick()]
    assert sorted(reported) == [f"run_{number:02}" for number in range(40)]


def test_a_run_that_moves_to_an_earlier_page_while_pages_are_read_is_not_missed(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    """The next poll does not reach back to it."""
    run_ids = [f"run_{number:02}" for number in range(25)]
    for run_id in run_ids:
        add_run(airflow, run_id, timedelta(minutes=4))
    daemon = build_daemon(airflow, instance)
    daemon.cursor = build_cursor(timedelta(minutes=5))
    airflow.server.endpoints.page_limit = 10
    cleared = iter(list(airflow.database.runs))

    def clear_one_and_end_another(act: Act) -> Response:
        response = act()
        run = next(cleared)
        run.state, run.end_date, run.updated_at = "running", None, airflow.database.now()
        airflow.database.finish_run(airflow.database.start_run(DAG, f"after {run.run_id}"))
        return response

    first_page = asks("GET", "/dags/~/dagRuns")
    airflow.server.fail_next(first_page, clear_one_and_end_another, times=2)
    for _ in range(4):
        daemon.tick()
    assert set(run_ids[2:]) <= set(fetch_reported_run_ids(instance, KEY))


def test_news_of_one_dag_does_not_wait_behind_the_history_of_another(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    for number in range(30):
        add_run(airflow, f"history {number:02}", timedelta(hours=2) - timedelta(minutes=number))
    add_run(airflow, "news", timedelta(seconds=1), OTHER)
    daemon = build_daemon(airflow, instance, Limits(reports=10))
    daemon.cursor = build_cursor(timedelta(days=1))
    assert daemon.tick() == ["news"] + [f"history {number:02}" for number in range(9)]
    rest = daemon.tick() + daemon.tick() + daemon.tick()
    assert rest == [f"history {number:02}" for number in range(9, 30)]


def test_ten_thousand_runs_fit_into_the_cursor(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    """They all changed within the overlap, and none is reported again."""
    for number in range(10_000):
        add_run(airflow, f"run_{number:05}", timedelta(seconds=100) - timedelta(0, 0, number))
    now = datetime.now(timezone.utc)
    found = airflow.client.fetch_changed_runs(now - timedelta(minutes=3)).entries
    daemon = build_daemon(airflow, instance)
    daemon.cursor = Cursor(now, frozenset(map(build_fingerprint, found))).to_json()
    assert 100_000 < len(daemon.cursor) < 120_000
    assert daemon.tick() == []
    assert 100_000 < len(daemon.cursor) < 120_000


def test_runs_whose_tasks_come_slowly_are_reported_over_several_ticks(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    for number in range(40):
        run = airflow.database.start_run(DAG, f"run_{number:02}")
        airflow.database.finish_run(run, "failed")
    tasks = asks("GET", ".*/taskInstances")
    daemon = build_daemon(airflow, instance, timing=Timing(tick_s=6))
    with Stall() as stall:
        airflow.server.fail_next(tasks, lambda act: act(), times=10)
        airflow.server.fail_next(tasks, stall, times=30)
        daemon.tick()
    airflow.server.forget_faults()
    evaluations = fetch_evaluations(instance, KEY)
    assert 0 < len(evaluations) <= 10
    for _ in range(40):
        daemon.tick()
        evaluations = fetch_evaluations(instance, KEY)
        if len(evaluations) == 40:
            break
    run_ids = [str(evaluation.metadata["Run ID"].value) for evaluation in evaluations]
    assert run_ids == [f"run_{number:02}" for number in range(40)]


def test_an_outage_longer_than_the_lookback_is_reported_as_a_gap(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    add_run(airflow, "long ago", timedelta(days=8))
    add_run(airflow, "less long ago", timedelta(days=6))
    daemon = build_daemon(airflow, instance)
    daemon.cursor = build_cursor(timedelta(days=10))
    assert daemon.tick() == ["less long ago"]
    assert daemon.tick() == []
    for dag_id in (DAG, OTHER):
        key = build_asset_key("metrics", dag_id)
        (record,) = instance.fetch_observations(key, limit=9).records
        gap = record.asset_observation
        assert gap is not None
        begin, end = (gap.metadata[name].value for name in ("Gap start", "Gap end"))
        now = datetime.now(timezone.utc).timestamp()
        assert begin == pytest.approx(now - 10 * 86_400, abs=60)
        assert end == pytest.approx(now - 7 * 86_400, abs=60)
        assert "were not observed" in (gap.description or "")


def test_the_lookback_can_be_declared(airflow: Airflow, instance: dg.DagsterInstance) -> None:
    add_run(airflow, "two hours ago", timedelta(hours=2))
    daemon = build_daemon(airflow, instance, lookback="1h")
    daemon.cursor = build_cursor(timedelta(hours=3))
    assert daemon.tick() == []
    daemon = build_daemon(airflow, instance, lookback="4h")
    daemon.cursor = build_cursor(timedelta(hours=3))
    assert daemon.tick() == ["two hours ago"]


@pytest.mark.parametrize(("declared", "reported"), [("1h", ["new"]), ("3h", ["old", "new"])])
def test_the_first_poll_reaches_back_as_far_as_declared(
    airflow: Airflow, instance: dg.DagsterInstance, declared: str, reported: list[str]
) -> None:
    add_run(airflow, "old", timedelta(hours=2))
    add_run(airflow, "new", timedelta(minutes=50))
    daemon = build_daemon(airflow, instance, lookback_on_first_start=declared)
    assert daemon.tick() == reported
    assert daemon.tick() == []


@pytest.mark.parametrize("is_first", [True, False])
def test_an_observation_of_the_event_sensor_before_the_first_poll_is_no_report_of_a_run(
    airflow: Airflow, instance: dg.DagsterInstance, is_first: bool
) -> None:
    on_failure = {"depends_on": [{"dag": "warehouse/load", "state": "failure"}]}
    events = EventDaemon(airflow.client, instance, {DAG: on_failure})
    for hours in (10, 5):
        add_run(airflow, f"{hours}_h_ago", timedelta(hours=hours))
    if is_first:
        events.tick()
    daemon = build_daemon(airflow, instance, lookback_on_first_start="31h")
    assert daemon.tick() == ["10_h_ago", "5_h_ago"]


def test_after_a_lost_cursor_the_first_report_of_a_run_is_found_behind_other_events(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    for _ in range(50):
        instance.report_runless_asset_event(build_drop_observation("metrics", DAG))
    run = airflow.database.start_run(DAG, "failed")
    ended_at = airflow.database.now() - timedelta(days=3)
    airflow.database.finish_run(run, "failed", end_date=ended_at, updated_at=ended_at)
    daemon = build_daemon(airflow, instance, lookback_on_first_start="4d")
    assert daemon.tick() == []
    add_run(airflow, "missed", timedelta(days=2))
    daemon = build_daemon(airflow, instance)  # without a report, it would look back for an hour
    assert daemon.tick() == ["missed"]


def test_the_history_of_a_newly_selected_dag_is_not_reported(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    add_run(airflow, "mine", timedelta(minutes=30))
    add_run(airflow, "before it was selected", timedelta(minutes=30), OTHER)
    daemon = build_daemon(airflow, instance)
    del daemon.rules[OTHER]
    daemon.restart()
    assert daemon.tick() == ["mine"]
    daemon.rules[OTHER] = None
    daemon.restart()
    add_run(airflow, "after it was selected", timedelta(seconds=1), OTHER)
    assert daemon.tick() == ["after it was selected"]


def test_a_cursor_that_is_lost_after_an_outage_loses_no_run(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    """The event log says where to start, and what was reported."""
    add_run(airflow, "first", timedelta(hours=30))
    daemon = build_daemon(airflow, instance, lookback_on_first_start="31h")
    assert daemon.tick() == ["first"]
    for hours in (29, 20, 3):
        add_run(airflow, f"{hours} h ago", timedelta(hours=hours), OTHER if hours == 20 else DAG)
    daemon = build_daemon(airflow, instance)  # without a cursor, it would look back for an hour
    assert daemon.cursor is None
    assert daemon.tick() == ["29 h ago", "20 h ago", "3 h ago"]


def test_a_cursor_that_a_person_moved_into_the_future_loses_nothing(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = build_daemon(airflow, instance)
    daemon.cursor = build_cursor(timedelta(days=-30))
    add_run(airflow, "mine", timedelta(minutes=1))
    assert daemon.tick() == ["mine"]


def test_a_cursor_that_a_person_moved_back_reports_nothing_twice(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    add_run(airflow, "mine", timedelta(minutes=1))
    daemon = build_daemon(airflow, instance)
    assert daemon.tick() == ["mine"]
    daemon.cursor = build_cursor(timedelta(days=5))
    assert daemon.tick() == []
    assert len(fetch_evaluations(instance, KEY)) == 1


@pytest.mark.parametrize("total", [5_000, 10**30], ids="{:.0e}".format)
@pytest.mark.parametrize("count", [0, 1, 30])
def test_a_history_is_reported_though_the_server_counts_too_many_runs(
    airflow: Airflow, instance: dg.DagsterInstance, count: int, total: int
) -> None:
    """It counts runs that this account may not read, say."""
    run_ids = [f"run_{number:03}" for number in range(count)]
    for number, run_id in enumerate(run_ids):
        add_run(airflow, run_id, timedelta(hours=20, minutes=-number))
    lists = asks("GET", "/dags/~/dagRuns")
    airflow.server.fail_next(lists, edit(lambda page: page.update(total_entries=total)), 1000)
    daemon = build_daemon(airflow, instance)
    daemon.cursor = build_cursor(timedelta(days=1))
    found = [run_id for _ in range(10) for run_id in daemon.tick()]
    assert found == run_ids
    assert airflow.server.count("GET", "/dags/~/dagRuns") < 400
