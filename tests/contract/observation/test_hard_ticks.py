"""Slow answers, odd data and edits by people, none of which may stop observation for good."""

# No `from __future__ import annotations` here: Dagster refuses a context annotated with text.

import json
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from threading import Thread
from typing import Any

import dagster as dg
import pytest
from werkzeug import Response

from federation_defs.declaration import SuccessDeclaration
from federation_defs.naming import build_detached_tag, build_run_id
from federation_defs.observation import Limits
from federation_defs.timing import Timing
from tests.contract.conftest import Airflow
from tests.contract.execution.executing import materialize
from tests.contract.execution.test_checks_executed import check
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.database import TaskSpec
from tests.contract.fakes.faults import Act, Stall, answer, edit
from tests.contract.observation.daemon import (
    DAG,
    KEY,
    Daemon,
    fetch_evaluations,
    fetch_reported_run_ids,
)
from tests.contract.observation.test_catching_up import (
    OTHER,
    add_run,
    airflow,
    build_cursor,
    build_daemon,
)
from tests.contract.observation.test_ownership import run_owner
from tests.waiting import wait_for

__all__ = ["airflow"]  # a fixture

SECOND = timedelta(seconds=1)


def fail_run(airflow: Airflow, run_id: str = "failed") -> None:
    airflow.database.finish_run(airflow.database.start_run(DAG, run_id), "failed")


def finish_run_of(airflow: Airflow, dagster_run_id: str) -> Any:
    run = airflow.database.start_run(DAG, build_run_id(dagster_run_id))
    return airflow.database.finish_run(run)


def test_logs_that_do_not_arrive_in_time_are_left_out(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    fail_run(airflow)
    daemon = build_daemon(airflow, instance, timing=Timing(tick_s=2))

    def tick() -> list[dg.AssetCheckEvaluation] | None:
        daemon.tick()
        return fetch_evaluations(instance, KEY) or None

    with Stall() as stall:
        airflow.server.fail_next(asks("GET", ".*/logs/.*"), stall, times=99)
        # On a busy machine, the tasks may not arrive in time in the first tick either.
        (evaluation,) = wait_for(tick, "the run is reported")
    assert "Failed tasks: load." in (evaluation.description or "")
    assert "Log of load" not in evaluation.metadata


def test_an_instance_whose_answer_takes_too_long_counts_as_unreachable(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    add_run(airflow, "mine", SECOND)
    daemon = build_daemon(airflow, instance, timing=Timing(tick_s=0.1))
    with Stall() as stall:
        airflow.server.fail_next(asks("GET", ".*/dagRuns"), stall)
        result = daemon.evaluate()
    assert isinstance(result, dg.SkipReason)
    assert "no complete answer within" in (result.skip_message or "")
    assert build_daemon(airflow, instance).tick() == ["mine"]


# The second tick and all later ones begin late, and have 2 s.
LATE = Timing(tick_s=40, report_s=600, late_tick_s=-600, late_tick_share=0.05)


def test_all_requests_of_a_tick_that_waited_for_its_turn_have_one_deadline(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = build_daemon(airflow, instance, timing=LATE)
    daemon.tick()
    fail_run(airflow)
    began_at = time.monotonic()
    with Stall() as stall:
        airflow.server.fail_next(asks("GET", ".*/logs/.*"), stall, times=99)
        daemon.tick()
    assert time.monotonic() - began_at < 20


def test_a_tick_that_waited_for_its_turn_says_how_long_it_waited_for_an_answer(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = build_daemon(airflow, instance, timing=LATE)
    daemon.tick()
    with Stall() as stall:
        airflow.server.fail_next(asks("GET", ".*/dagRuns"), stall)
        result = daemon.evaluate()
    assert isinstance(result, dg.SkipReason)
    assert "no complete answer within 2 s" in (result.skip_message or "")


def test_a_log_of_one_long_line_is_cut_off(airflow: Airflow, instance: dg.DagsterInstance) -> None:
    airflow.database.dags[DAG].tasks = (TaskSpec("load", says=("x" * 1_000_000,)),)
    fail_run(airflow)
    build_daemon(airflow, instance).tick()
    (evaluation,) = fetch_evaluations(instance, KEY)
    assert max(len(str(value.value)) for value in evaluation.metadata.values()) < 10_000


def test_a_run_of_the_year_one_delays_no_other(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    add_run(airflow, "good", 5 * SECOND)
    add_run(airflow, "odd", 3 * SECOND)

    def age(content: dict[str, Any]) -> None:
        for run in content["dag_runs"]:
            if run["dag_run_id"] == "odd":
                run["end_date"] = "0001-01-01T00:00:00Z"

    airflow.server.fail_next(asks("GET", ".*dagRuns"), edit(age), times=9)
    assert build_daemon(airflow, instance).tick() == ["odd", "good"]


def test_a_deferred_run_that_is_forbidden_to_read_delays_no_other(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = build_daemon(airflow, instance)

    def die_late(context: dg.OpExecutionContext) -> None:
        run = finish_run_of(airflow, context.run_id)
        assert daemon.tick() == []
        run.updated_at -= timedelta(minutes=10)
        forbidden = answer(403, {"detail": "Forbidden"})
        airflow.server.fail_next(asks("GET", f"/dags/{DAG}/.*"), forbidden, times=9)
        add_run(airflow, "news", SECOND, OTHER)
        assert daemon.tick() == ["news"]
        raise RuntimeError("killed before it could report")

    result = run_owner(instance, die_late)
    airflow.server.forget_faults()
    assert daemon.tick() == [build_run_id(result.run_id)]


@pytest.mark.parametrize("held", [[["", ""]], [[DAG, "nobody knows it"]], [["gone", "gone"]]])
def test_an_edited_cursor_stops_nothing(
    airflow: Airflow, instance: dg.DagsterInstance, held: list[list[str]]
) -> None:
    now = datetime.now(timezone.utc).isoformat()
    daemon = build_daemon(airflow, instance)
    daemon.cursor = json.dumps({"version": 3, "since": now, "seen": "", "held": held})
    add_run(airflow, "news", SECOND, OTHER)
    assert daemon.tick() == ["news"]


def test_a_gap_is_reported_once_however_long_catching_up_takes(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    for number in range(4):
        add_run(airflow, f"run {number}", timedelta(minutes=40 - number))
    daemon = build_daemon(airflow, instance, Limits(reports=1), lookback="1h")
    daemon.cursor = build_cursor(timedelta(hours=3))
    reported = [run_id for _ in range(6) for run_id in daemon.tick()]
    assert reported == [f"run {number}" for number in range(4)]
    assert len(instance.fetch_observations(KEY, limit=9).records) == 1


def test_executing_a_check_does_not_count_as_a_report_by_the_runs_owner(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon = build_daemon(airflow, instance)

    def die_unreported(context: dg.OpExecutionContext) -> None:
        finish_run_of(airflow, context.run_id)
        check(airflow.client, [DAG], instance)
        assert daemon.tick() == []
        raise RuntimeError("killed before it could report")

    result = run_owner(instance, die_unreported)
    assert daemon.tick() == [build_run_id(result.run_id)]


def test_a_run_that_its_owner_gave_up_is_reported_while_the_owner_waits_for_another(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    for dag_id in (DAG, OTHER):
        airflow.database.dags[dag_id].polls = float("inf")
    declared = {DAG: {"trigger": {"timeout": "1s"}}, OTHER: {}}
    owner = Thread(target=lambda: materialize(airflow.client, declared, instance))
    owner.start()

    def find(dag_id: str) -> Any:
        return next((run for run in airflow.database.runs if run.dag_id == dag_id), None)

    try:
        mine = wait_for(lambda: find(OTHER) and find(DAG), "both are triggered")
        daemon = build_daemon(airflow, instance)
        wait_for(
            lambda: any(build_detached_tag("metrics") in run.tags for run in instance.get_runs()),
            "it gives up",
        )
        airflow.database.finish_run(mine)
        assert daemon.tick() == [mine.run_id]
        assert owner.is_alive()
    finally:
        airflow.database.finish_run(find(OTHER))
        owner.join(30)
    assert daemon.tick() == []
    assert fetch_reported_run_ids(instance, KEY) == [mine.run_id]


def test_a_row_that_leaves_a_list_while_another_enters_hides_none(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    """Between two pages, the length of the list stays the same, but all rows move."""
    for number in range(6):
        add_run(airflow, f"run {number}", timedelta(hours=3) - number * SECOND)
    airflow.server.endpoints.page_limit = 3

    def swap(act: Act) -> Response | None:
        airflow.database.clear(airflow.database.runs[0])
        add_run(airflow, "new", 0 * SECOND)
        return act()

    daemon = build_daemon(airflow, instance)
    daemon.cursor = build_cursor(timedelta(hours=5))
    fetched = on_call(2, swap)
    airflow.server.fail_next(asks("GET", ".*dagRuns"), fetched, times=9)
    reported = [run_id for _ in range(4) for run_id in daemon.tick()]
    assert reported[-6:] == [*(f"run {number}" for number in range(1, 6)), "new"]


def on_call(number: int, fault: Callable[[Act], Response | None]) -> Callable[[Act], Any]:
    """Return a fault of one request only, by its number from 1."""
    calls = 0

    def act_or_fail(act: Act) -> Response | None:
        nonlocal calls
        calls += 1
        return fault(act) if calls == number else act()

    return act_or_fail


def test_a_state_that_is_set_back_while_another_dag_waits_is_reported(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    daemon: Daemon = build_daemon(airflow, instance)
    daemon.rules[OTHER] = SuccessDeclaration(tasks=["load"])
    daemon.restart()
    add_run(airflow, "blocked", 2 * SECOND, OTHER)
    add_run(airflow, "mine", SECOND)
    run = airflow.database.find_run(DAG, "mine")
    assert run is not None
    unwell = answer(500, {"detail": "no"})
    airflow.server.fail_next(asks("GET", f"/dags/{OTHER}/.*"), unwell, times=99)
    daemon.tick()
    for state in ("failed", "success"):
        airflow.database.set_state(run, state)
        daemon.tick()
    passed = [evaluation.passed for evaluation in fetch_evaluations(instance, KEY)]
    assert passed == [True, False, True]
