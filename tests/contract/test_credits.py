"""What Dagster+ charges for: steps that run, and materializations that steps store.

`docs/dagster-plus.md` has these numbers.
"""

from __future__ import annotations

import dagster as dg
import pytest

from tests.contract.conftest import Airflow
from tests.contract.execution.executing import materialize
from tests.contract.observation.daemon import DAG, Daemon
from tests.contract.test_refresh_job import VERSIONED, Deployment, deployment, sales

__all__ = ["deployment", "sales"]  # fixtures

STEP = dg.DagsterEventType.STEP_START
MATERIALIZATION = dg.DagsterEventType.ASSET_MATERIALIZATION

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def count_credits(instance: dg.DagsterInstance) -> tuple[int, int]:
    """Count the steps that ran, and the materializations that steps have stored."""
    records = [
        record
        for run in instance.get_runs()
        for record in instance.all_logs(run.run_id, of_type={STEP, MATERIALIZATION})
    ]
    kinds = [record.dagster_event.event_type for record in records if record.dagster_event]
    return kinds.count(STEP), kinds.count(MATERIALIZATION)


@pytest.mark.parametrize(
    ("dag_ids", "charged"), [(["a"], (1, 1)), (["a", "b", "c"], (1, 3))], ids=["one DAG", "three"]
)
def test_a_trigger_is_a_step_and_a_materialization_per_dag(
    airflow_v2: Airflow,
    instance: dg.DagsterInstance,
    dag_ids: list[str],
    charged: tuple[int, int],
) -> None:
    for dag_id in dag_ids:
        airflow_v2.database.add_dag(dag_id, polls=1)
    assert materialize(airflow_v2.client, dag_ids, instance).success
    assert count_credits(instance) == charged


def test_a_dag_that_fails_is_a_step(airflow_v2: Airflow, instance: dg.DagsterInstance) -> None:
    airflow_v2.database.add_dag("a", polls=1, outcome="failed")
    assert not materialize(airflow_v2.client, ["a"], instance).success
    assert count_credits(instance) == (1, 0)


def test_observed_runs_are_neither(airflow_v2: Airflow, instance: dg.DagsterInstance) -> None:
    airflow_v2.database.add_dag(DAG, polls=0)
    runs = [airflow_v2.database.start_run(DAG) for _ in range(3)]
    reported = Daemon(airflow_v2.client, [DAG], instance).tick()
    assert sorted(reported) == sorted(run.run_id for run in runs)
    assert count_credits(instance) == (0, 0)


@pytest.mark.usefixtures("sales")
def test_a_refresh_of_all_instances_is_a_step(deployment: Deployment) -> None:
    deployment.project.declare("other", more=VERSIONED)
    deployment.load()
    deployment.refresh()
    assert count_credits(deployment.instance) == (1, 0)
