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


class Downstream:
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

    def evaluate(self) -> tuple[bool, str]:
        """Return the check after its next evaluation."""
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
def downstream(airflow_v2: Airflow, instance: dg.DagsterInstance) -> Downstream:
    return Downstream(airflow_v2, instance)


def test_an_upstream_that_never_succeeded_blocks_until_it_does(downstream: Downstream) -> None:
    assert downstream.evaluate() == (False, NEVER)
    assert downstream.severity == WARN
    downstream.update()
    assert downstream.evaluate() == (True, NOTHING)


def test_it_is_evaluated_once_and_then_only_when_it_changes(downstream: Downstream) -> None:
    for _ in range(3):
        assert downstream.evaluate() == (False, NEVER)
    downstream.daemon.restart()
    downstream.daemon.cursor = None
    downstream.evaluate()
    assert downstream.count == 1
    downstream.update()
    for _ in range(3):
        downstream.evaluate()
    assert downstream.count == 2


@pytest.mark.parametrize("problem", ["is paused", "has import errors", "has vanished"])
def test_an_upstream_that_can_not_run_blocks(downstream: Downstream, problem: str) -> None:
    downstream.update()
    downstream.daemon.problems["warehouse", "up"] = f"{problem} (as of noon)"
    assert downstream.evaluate() == (False, f"warehouse/up {problem} (as of noon).")
    assert downstream.severity == ERROR
    downstream.daemon.problems.clear()
    assert downstream.evaluate() == (True, NOTHING)


def test_a_state_of_an_own_dag_that_was_bad_is_asked_for(downstream: Downstream) -> None:
    downstream.update()
    downstream.daemon.problems["metrics", DAG] = "is paused (as of noon)"
    dag = downstream.airflow.database.dags[DAG]
    dag.is_paused = True
    assert downstream.evaluate() == (False, "The DAG is paused.")
    assert downstream.severity == ERROR
    dag.is_paused, dag.has_import_errors = False, True
    assert downstream.evaluate() == (False, "The DAG has import errors.")
    dag.has_import_errors = False
    assert downstream.evaluate() == (True, NOTHING)
    dag.is_present = False
    assert downstream.evaluate() == (False, "The DAG is paused (as of noon).")
    dag.is_present = True
    forbidden = answer(403, {"detail": "Forbidden"})
    downstream.airflow.server.fail_next(asks("GET", f"/dags/{DAG}"), forbidden)
    downstream.daemon.problems["metrics", DAG] = "has vanished (as of noon)"
    assert downstream.evaluate() == (False, "The DAG has vanished (as of noon).")


def test_what_a_person_has_to_end_and_what_ends_by_itself_are_both_named(
    downstream: Downstream,
) -> None:
    downstream.daemon.problems["warehouse", "up"] = "is paused"
    assert downstream.evaluate() == (False, f"warehouse/up is paused. {NEVER}")
    assert downstream.severity == ERROR


def test_the_events_of_a_dag_are_no_reason_to_wait_for_a_first_success(
    downstream: Downstream,
) -> None:
    downstream.declare(depends_on=[{"dag": "warehouse/up", "state": "failure"}])
    assert downstream.evaluate() == (True, NOTHING)


def test_an_asset_that_was_never_materialized_blocks(downstream: Downstream) -> None:
    downstream.declare(depends_on=[{"asset": ["sales", "targets"]}])
    assert downstream.evaluate() == (False, "sales/targets has never been materialized.")
    downstream.update(dg.AssetKey(["sales", "targets"]))
    assert downstream.evaluate() == (True, NOTHING)


def test_an_asset_whose_key_has_a_colon_is_asked_for_no_check(downstream: Downstream) -> None:
    """Dagster+ could not tell which check is meant."""
    upstreams = [{"asset": ["s3:bucket"]}, "warehouse/up"]
    downstream.declare(depends_on=upstreams, trigger={"when": "all"})
    for key in (UP, dg.AssetKey("s3:bucket")):
        downstream.update(key)
    assert downstream.evaluate() == (True, NOTHING)


def test_of_several_upstreams_that_all_have_to_succeed_those_are_named_that_are_missing(
    downstream: Downstream,
) -> None:
    downstream.declare(depends_on=["warehouse/up", "warehouse/other_up"], trigger={"when": "all"})
    for key in (UP, OTHER_UP):
        downstream.update(key)
        downstream.fail(key, passed=True)
    assert downstream.evaluate() == (True, NOTHING)
    materialize(downstream.airflow.client, [DAG], downstream.instance)
    assert downstream.evaluate() == (True, NOTHING)
    downstream.update()
    waits = "The DAG waits for the next success of warehouse/other_up."
    assert downstream.evaluate() == (True, waits)
    downstream.fail(OTHER_UP)
    assert downstream.evaluate() == (False, f"The last run of warehouse/other_up failed. {waits}")
    assert downstream.severity == WARN
    downstream.update(OTHER_UP)
    downstream.fail(OTHER_UP, passed=True)
    assert downstream.evaluate() == (True, NOTHING)


def test_it_is_shown_again_after_a_run_that_left_it_out(downstream: Downstream) -> None:
    """Dagster plans the checks of each asset that it runs, and shows nothing else of them then."""
    downstream.update()
    downstream.evaluate()
    materialize(downstream.airflow.client, [DAG], downstream.instance)
    downstream.evaluate()
    key = dg.AssetCheckKey(KEY, READY_CHECK_NAME)
    latest = downstream.instance.event_log_storage.get_latest_asset_check_execution_by_key([key])
    assert latest[key].status.value == "SUCCEEDED"


def test_an_evaluation_costs_few_queries_and_no_request_however_many_dags_there_are(
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
        before = len(airflow_v2.server.requests)
        with recording_statements() as statements:
            daemon.tick()
        counts.append(len(statements))
        checked.append(len(daemon.stored))
        if len(counts) > 1:
            assert len(airflow_v2.server.requests) == before + 1
    assert checked == [50, 10, 0, 0, 0, 0]
    assert max(counts[2:]) <= 4
    clock.advance(5)
    with recording_statements() as statements:
        daemon.tick()
    assert len(statements) == 1


def test_an_upstream_without_which_an_event_leads_to_no_run_blocks(downstream: Downstream) -> None:
    downstream.declare(
        depends_on=["warehouse/up", "warehouse/other_up", {"dag": "warehouse/x", "state": "late"}],
        trigger={"when": "all", "pass_upstream": True},
    )
    downstream.update()
    assert downstream.evaluate() == (False, "warehouse/other_up has never succeeded.")
    downstream.update(OTHER_UP)
    assert downstream.evaluate() == (True, NOTHING)


def test_a_refresh_that_finds_the_same_problem_is_no_change(downstream: Downstream) -> None:
    downstream.update()
    for hour in ("noon", "one"):
        downstream.daemon.problems["warehouse", "up"] = f"is paused (as of {hour})"
        downstream.evaluate()
    assert downstream.count == 1
