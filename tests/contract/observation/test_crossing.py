"""Dependencies that cross instances and come back, in one Dagster run."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import dagster as dg
import pytest

from federation_defs.naming import build_asset_key
from tests.contract.conftest import Airflow, StartAirflow
from tests.contract.execution.executing import DagsterJob
from tests.contract.execution.interrupting import before_acting, interrupt
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.database import RunRow
from tests.contract.observation.daemon import Daemon, fetch_reported_run_ids

M_DAGS = {"b1": {}, "b2": {"depends_on": ["notices/c1"]}}
N_DAGS = {"c1": {"depends_on": ["metrics/b1"]}}
CHAIN = ["b1", "c1", "b2"]


@dataclass(frozen=True)
class Crossing:
    """`metrics/b1` → `notices/c1` → `metrics/b2`."""

    metrics: Airflow
    notices: Airflow
    job: DagsterJob

    def find_run(self, dag_id: str) -> RunRow:
        airflow = self.notices if dag_id == "c1" else self.metrics
        (run,) = [run for run in airflow.database.runs if run.dag_id == dag_id]
        return run

    @property
    def ran(self) -> set[str]:
        runs = [*self.metrics.database.runs, *self.notices.database.runs]
        return {run.dag_id for run in runs}

    def fail(self, dag_id: str) -> None:
        self._set_outcome(dag_id, "failed")

    def mend(self, dag_id: str) -> None:
        self._set_outcome(dag_id, "success")

    def _set_outcome(self, dag_id: str, executed: str) -> None:
        airflow = self.notices if dag_id == "c1" else self.metrics
        airflow.database.dags[dag_id].outcome = executed


@pytest.fixture
def crossing(start_airflow: StartAirflow, instance: dg.DagsterInstance) -> Crossing:
    metrics, notices = start_airflow("v2", "metrics"), start_airflow("v1", "notices")
    for dag_id in M_DAGS:
        metrics.database.add_dag(dag_id, polls=0)
    notices.database.add_dag("c1", polls=0)
    job = DagsterJob.of(instance, (metrics.client, M_DAGS), (notices.client, N_DAGS))
    return Crossing(metrics, notices, job)


def assert_reported_once(crossing: Crossing, instance: dg.DagsterInstance) -> None:
    """Check that the run of each DAG is reported once, by the Dagster run or by observation."""
    daemons = [
        Daemon(crossing.metrics.client, list(M_DAGS), instance),
        Daemon(crossing.notices.client, list(N_DAGS), instance),
    ]
    assert [daemon.tick() for daemon in daemons] == [[], []]
    for name, dag_id in (("metrics", "b1"), ("notices", "c1"), ("metrics", "b2")):
        key = build_asset_key(name, dag_id)
        assert fetch_reported_run_ids(instance, key) == [crossing.find_run(dag_id).run_id]


def test_a_chain_across_instances_runs_in_its_order(
    crossing: Crossing, instance: dg.DagsterInstance
) -> None:
    executed = crossing.job.execute()
    assert executed.materialized == CHAIN
    runs = [crossing.find_run(dag_id) for dag_id in CHAIN]
    for before, after in pairwise(runs):
        assert before.end_date is not None
        assert before.end_date <= after.queued_at
    assert_reported_once(crossing, instance)


@pytest.mark.parametrize("is_from_failure", [True, False], ids=["from failure", "all"])
@pytest.mark.parametrize("failing", CHAIN)
def test_a_re_execution_continues_a_broken_chain_and_materializes_nothing_twice(
    crossing: Crossing, instance: dg.DagsterInstance, failing: str, is_from_failure: bool
) -> None:
    done = CHAIN[: CHAIN.index(failing)]
    crossing.fail(failing)
    first = crossing.job.execute()
    assert (first.success, first.materialized) == (False, done)
    assert crossing.ran == {*done, failing}
    crossing.mend(failing)
    second = crossing.job.execute(first, is_from_failure=is_from_failure)
    assert (second.success, second.materialized) == (True, CHAIN[len(done) :])
    assert_reported_once(crossing, instance)


def test_a_retry_does_not_report_again_what_observation_reported(
    crossing: Crossing, instance: dg.DagsterInstance
) -> None:
    """The first attempt died; the DAG run that it had started succeeded without it."""
    crossing.metrics.database.dags["b1"].polls = None
    query = asks("GET", "/dags/b1/dagRuns/[^/]+")
    crossing.metrics.server.fail_next(query, before_acting(interrupt))
    first = crossing.job.execute()
    run = crossing.find_run("b1")
    crossing.metrics.database.finish_run(run)
    assert Daemon(crossing.metrics.client, list(M_DAGS), instance).tick() == [run.run_id]
    second = crossing.job.execute(first)
    assert (second.success, second.materialized) == (True, ["c1", "b2"])
    assert_reported_once(crossing, instance)


def test_a_failed_branch_does_not_stop_the_other(
    start_airflow: StartAirflow, instance: dg.DagsterInstance
) -> None:
    """Two chains pass through the same two instances, and one of them fails."""
    metrics, notices = start_airflow("v2", "metrics"), start_airflow("v2", "notices")
    m_dags = {"good": {}, "bad": {}}
    n_dags = {f"after_{name}": {"depends_on": [f"metrics/{name}"]} for name in m_dags}
    for airflow, dags in ((metrics, m_dags), (notices, n_dags)):
        for dag_id in dags:
            airflow.database.add_dag(dag_id, polls=0)
    metrics.database.dags["bad"].outcome = "failed"
    job = DagsterJob.of(instance, (metrics.client, m_dags), (notices.client, n_dags))
    first = job.execute()
    assert first.materialized == ["good"]
    metrics.database.dags["bad"].outcome = "success"
    second = job.execute(first, is_from_failure=True)
    assert (second.success, sorted(second.materialized)) == (
        True,
        ["after_bad", "after_good", "bad"],
    )
    assert len(metrics.database.runs) + len(notices.database.runs) == 4
