"""A DAG that is not waited for, under automation: its run goes on after the Dagster run has ended,
and an update that comes meanwhile leads to one more run, when that is over."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest

from federation_defs.naming import build_asset_key
from tests.contract.conftest import Airflow
from tests.contract.daemon import Daemon
from tests.contract.executing import build_assets

DAG = "customer_metrics"
KEY = build_asset_key("metrics", DAG)
UPSTREAM = build_asset_key("warehouse", "load_customers")


class Automation:
    """Dagster's daemons, played by the test: observation, the condition, and what it requests."""

    def __init__(self, airflow: Airflow, instance: dg.DagsterInstance) -> None:
        self.airflow = airflow
        self.instance = instance
        self.assets = build_assets(airflow.client, {DAG: {"trigger": {"wait": False}}})
        self.observation = Daemon(airflow.client, [DAG], instance)
        self.defs = dg.Definitions([self.assets, dg.AssetSpec(UPSTREAM)])
        self._cursor: Any = None
        self.tick()  # what was before is no update

    @property
    def runs(self) -> list[str]:
        """The states of all DAG runs."""
        return [run.state for run in self.airflow.database.runs]

    def update_upstream(self) -> None:
        self.instance.report_runless_asset_event(dg.AssetMaterialization(UPSTREAM))

    def end_run(self, outcome: str = "success") -> None:
        """Ends the last DAG run, and has it observed."""
        self.airflow.database.finish_run(self.airflow.database.runs[-1], outcome)
        self.observation.tick()

    def tick(self) -> bool:
        """Whether the DAG is requested; it is then run."""
        result = dg.evaluate_automation_conditions(self.defs, self.instance, cursor=self._cursor)
        self._cursor = result.cursor
        if not result.get_num_requested(KEY):
            return False
        dg.materialize([self.assets], instance=self.instance, raise_on_error=False)
        return True


@pytest.fixture
def automation(airflow_v2: Airflow, instance: dg.DagsterInstance) -> Automation:
    airflow_v2.database.add_dag(DAG, polls=float("inf"))
    return Automation(airflow_v2, instance)


@pytest.mark.parametrize("outcome", ["success", "failed"])
def test_updates_during_a_run_lead_to_one_more_when_it_is_over(
    automation: Automation, outcome: str
) -> None:
    automation.update_upstream()
    assert automation.tick()
    for _ in range(3):
        automation.update_upstream()
        assert not automation.tick()
    automation.end_run(outcome)
    assert automation.tick()
    assert not automation.tick()
    automation.end_run()
    assert not automation.tick()
    assert automation.runs == [outcome, "success"]


def test_an_update_after_a_run_is_over_starts_the_next_at_once(automation: Automation) -> None:
    for _ in range(2):
        automation.update_upstream()
        assert automation.tick()
        automation.end_run()
        assert not automation.tick()
    assert automation.runs == ["success", "success"]


def test_a_dag_that_could_not_be_started_waits_for_the_next_update_and_for_no_run(
    automation: Automation,
) -> None:
    """There is no run whose end would be reported."""
    automation.airflow.database.dags[DAG].is_paused = True
    for _ in range(2):
        automation.update_upstream()
        assert automation.tick()
        assert not automation.tick()
    automation.airflow.database.dags[DAG].is_paused = False
    automation.update_upstream()
    assert automation.tick()
    assert len(automation.runs) == 1
