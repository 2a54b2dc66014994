"""The check `ready`: what keeps a DAG from running when its upstreams succeed."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest

from federation_defs.declaration import DagDeclaration
from federation_defs.naming import READY_CHECK_NAME, build_asset_key
from tests.contract.conftest import Airflow
from tests.contract.execution.executing import materialize
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.faults import answer
from tests.contract.observation.daemon import (
    DAG,
    KEY,
    Daemon,
    FakeClock,
    fetch_evaluations,
    recording_statements,
)

UP, OTHER_UP = build_asset_key("warehouse", "up"), build_asset_key("warehouse", "other_up")
WARN, ERROR = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR
NOTHING = "Nothing keeps it from running."
NEVER = "warehouse/up has never succeeded."


class Watched:
    """A fake Airflow with a DAG that depends on another instance's, and its daemon."""

    def __init__(self, airflow: Airflow, instance: dg.DagsterInstance) -> None:
        airflow.database.add_dag(DAG, polls=0)
        self.airflow, self.instance, self.clock = airflow, instance, FakeClock()
        self.daemon = Daemon(airflow.client, [DAG], instance, timing=self.clock.timing)
        self.declare(depends_on=["warehouse/up"])

    def declare(self, **values: Any) -> None:
        self.daemon.dags = {DAG: DagDeclaration.model_validate(values)}
        self.daemon.restart()

    def update(self, key: dg.AssetKey = UP) -> None:
        self.instance.report_runless_asset_event(dg.AssetMaterialization(key))

    def fail(self, key: dg.AssetKey = UP, *, passed: bool = False) -> None:
        evaluation = dg.AssetCheckEvaluation(asset_key=key, check_name="dag_run", passed=passed)
        self.instance.report_runless_asset_event(evaluation)

    def look(self) -> tuple[bool, str]:
        """Return the check after the next look."""
        self.clock.advance(120)
        self.daemon.tick()
        last = fetch_evaluations(self.instance, KEY, READY_CHECK_NAME)[-1]
        return bool(last.passed), last.description or ""

    @property
    def count(self) -> int:
        return len(fetch_evaluations(self.instance, KEY, READY_CHECK_NAME))

    @property
    def severity(self) -> dg.AssetCheckSeverity:
        return fetch_evaluations(self.instance, KEY, READY_CHECK_NAME)[-1].severity


@pytest.fixture
def watched(airflow_v2: Airflow, instance: dg.DagsterInstance) -> Watched:
    return Watched(airflow_v2, instance)


def test_an_upstream_that_never_succeeded_blocks_until_it_does(watched: Watched) -> None:
    assert watched.look() == (False, NEVER)
    assert watched.severity == WARN
    watched.update()
    assert watched.look() == (True, NOTHING)


def test_it_is_evaluated_once_and_then_only_when_it_changes(watched: Watched) -> None:
    for _ in range(3):
        assert watched.look() == (False, NEVER)
    watched.daemon.restart()
    watched.daemon.cursor = None
    watched.look()
    assert watched.count == 1
    watched.update()
    for _ in range(3):
        watched.look()
    assert watched.count == 2


@pytest.mark.parametrize("problem", ["is paused", "has import errors", "has vanished"])
def test_an_upstream_that_can_not_run_blocks(watched: Watched, problem: str) -> None:
    watched.update()
    watched.daemon.problems["warehouse", "up"] = f"{problem} (as of noon)"
    assert watched.look() == (False, f"warehouse/up {problem} (as of noon).")
    assert watched.severity == ERROR
    watched.daemon.problems.clear()
    assert watched.look() == (True, NOTHING)


def test_a_state_of_an_own_dag_that_was_bad_is_asked_for(watched: Watched) -> None:
    watched.update()
    watched.daemon.problems["metrics", DAG] = "is paused (as of noon)"
    dag = watched.airflow.database.dags[DAG]
    dag.is_paused = True
    assert watched.look() == (False, "The DAG is paused.")
    assert watched.severity == ERROR
    dag.is_paused, dag.has_import_errors = False, True
    assert watched.look() == (False, "The DAG has import errors.")
    dag.has_import_errors = False
    assert watched.look() == (True, NOTHING)
    dag.is_present = False
    assert watched.look() == (False, "The DAG is paused (as of noon).")
    dag.is_present = True
    forbidden = answer(403, {"detail": "Forbidden"})
    watched.airflow.server.fail_next(asks("GET", f"/dags/{DAG}"), forbidden)
    watched.daemon.problems["metrics", DAG] = "has vanished (as of noon)"
    assert watched.look() == (False, "The DAG has vanished (as of noon).")


def test_what_a_person_has_to_end_and_what_ends_by_itself_are_both_named(watched: Watched) -> None:
    watched.daemon.problems["warehouse", "up"] = "is paused"
    assert watched.look() == (False, f"warehouse/up is paused. {NEVER}")
    assert watched.severity == ERROR


def test_the_events_of_a_dag_are_no_reason_to_wait_for_a_first_success(watched: Watched) -> None:
    watched.declare(depends_on=[{"dag": "warehouse/up", "state": "failure"}])
    assert watched.look() == (True, NOTHING)


def test_an_asset_that_was_never_materialized_blocks(watched: Watched) -> None:
    watched.declare(depends_on=[{"asset": ["sales", "targets"]}])
    assert watched.look() == (False, "sales/targets has never been materialized.")
    watched.update(dg.AssetKey(["sales", "targets"]))
    assert watched.look() == (True, NOTHING)


def test_of_several_upstreams_that_all_have_to_succeed_those_are_named_that_are_missing(
    watched: Watched,
) -> None:
    watched.declare(depends_on=["warehouse/up", "warehouse/other_up"], trigger={"when": "all"})
    for key in (UP, OTHER_UP):
        watched.update(key)
        watched.fail(key, passed=True)
    assert watched.look() == (True, NOTHING)
    materialize(watched.airflow.client, [DAG], watched.instance)
    assert watched.look() == (True, NOTHING)
    watched.update()
    waits = "It waits for the next success of warehouse/other_up."
    assert watched.look() == (True, waits)
    watched.fail(OTHER_UP)
    assert watched.look() == (False, f"The last run of warehouse/other_up failed. {waits}")
    assert watched.severity == WARN
    watched.update(OTHER_UP)
    watched.fail(OTHER_UP, passed=True)
    assert watched.look() == (True, NOTHING)


def test_it_is_shown_again_after_a_run_that_left_it_out(watched: Watched) -> None:
    """Dagster plans the checks of each asset that it runs, and shows nothing else of them then."""
    watched.update()
    watched.look()
    materialize(watched.airflow.client, [DAG], watched.instance)
    watched.look()
    key = dg.AssetCheckKey(KEY, READY_CHECK_NAME)
    latest = watched.instance.event_log_storage.get_latest_asset_check_execution_by_key([key])
    assert latest[key].status.value == "SUCCEEDED"


def test_a_look_costs_few_queries_and_no_request_however_many_dags_there_are(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    clock, dag_ids = FakeClock(), [f"dag_{number}" for number in range(60)]
    daemon = Daemon(airflow_v2.client, dag_ids, instance, timing=clock.timing)
    upstream = DagDeclaration.model_validate({"depends_on": ["warehouse/up"]})
    daemon.dags = dict.fromkeys(dag_ids, upstream)
    daemon.restart()
    counts, checked = list[int](), list[int]()
    for _ in range(6):
        clock.advance(61)
        before = len(airflow_v2.server.asked)
        with recording_statements() as statements:
            daemon.tick()
        counts.append(len(statements))
        checked.append(len(daemon.stored))
        if len(counts) > 1:
            assert len(airflow_v2.server.asked) == before + 1
    assert checked == [50, 10, 0, 0, 0, 0]
    assert max(counts[2:]) <= 4
    clock.advance(5)
    with recording_statements() as statements:
        daemon.tick()
    assert len(statements) == 1


def test_an_upstream_without_which_an_event_leads_to_no_run_blocks(watched: Watched) -> None:
    watched.declare(
        depends_on=["warehouse/up", "warehouse/other_up", {"dag": "warehouse/x", "state": "late"}],
        trigger={"when": "all", "pass_upstream": True},
    )
    watched.update()
    assert watched.look() == (False, "warehouse/other_up has never succeeded.")
    watched.update(OTHER_UP)
    assert watched.look() == (True, NOTHING)


def test_a_refresh_that_finds_the_same_problem_is_no_change(watched: Watched) -> None:
    watched.update()
    for hour in ("noon", "one"):
        watched.daemon.problems["warehouse", "up"] = f"is paused (as of {hour})"
        watched.look()
    assert watched.count == 1
