"""Errors of Dagster's database while a step is at work."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest
from sqlalchemy.exc import OperationalError

from federation_defs.naming import build_asset_key
from tests.contract.conftest import Airflow
from tests.contract.dagster_plus import as_server
from tests.contract.execution.executing import materialize
from tests.contract.observation.daemon import fetch_reported_run_ids

DAG = "customer_metrics"


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_step_is_repeated_after_an_error_of_the_database(
    airflow_v2: Airflow,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    """As of a failover that takes a second. No retry of Dagster's would run the DAG: the error can
    be stored, and then it is one of the step.

    Args:
        number: Of the tags that can't be stored: heartbeats before and after other attempts were
            waited for, and what is kept of the launch.
    """
    airflow_v2.database.add_dag(DAG, polls=0)
    storage, calls = type(as_server(instance.run_storage)), 0
    add_run_tags = storage.add_run_tags

    def fail_once(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            raise OperationalError("UPDATE", {}, ConnectionError("server login has been failing"))
        add_run_tags(*args, **kwargs)

    monkeypatch.setattr(storage, "add_run_tags", fail_once)
    executed = materialize(airflow_v2.client, [DAG], instance)
    assert calls > number
    assert executed.success
    assert executed.materialized == [DAG]
    (run,) = airflow_v2.database.runs
    assert fetch_reported_run_ids(instance, build_asset_key("metrics", DAG)) == [run.run_id]
