"""Loading a component under `dagster dev`, which refreshes its state."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.clients import SIGN_INS
from tests.contract.fakes.airflow import FakeAirflow
from tests.unit.project import Project, build_keys

# Dagster 1.13 itself uses a deprecated function of pydantic.
pytestmark = pytest.mark.filterwarnings("ignore:.parse_obj_as. is deprecated")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("DAGSTER_IS_DEV_CLI", "1")
    monkeypatch.syspath_prepend(tmp_path)
    return Project(tmp_path, f"project_of_{tmp_path.name}")


def test_a_load_refreshes_the_state_and_a_failed_refresh_keeps_it(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    with FakeAirflow("v1") as server:
        server.database.add_dag("load_customers")
        project.declare("warehouse", server.url, SIGN_INS["v1"])
        assert project.load_asset_keys() == build_keys("warehouse/load_customers")
        server.database.add_dag("load_orders")
        last_known = build_keys("warehouse/load_customers", "warehouse/load_orders")
        assert project.load_asset_keys() == last_known
    assert caplog.text == ""
    assert project.load_asset_keys() == last_known
    assert f"Airflow 'warehouse' did not answer at {server.url}" in caplog.text
    assert "Using the DAGs as of 20" in caplog.text


def test_without_a_state_the_declared_dags_are_loaded(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    project.declare("metrics", customer_metrics=["metrics/load_customers"])
    assert project.load_asset_keys() == build_keys(
        "metrics/customer_metrics", "metrics/load_customers"
    )
    assert "Using the declared DAGs." in caplog.text
