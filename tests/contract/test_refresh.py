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


@pytest.mark.parametrize(
    ("api", "refused"),
    [("v1", "forbids GET /api/v1/dags (403)"), ("v2", "refused POST /auth/token (401)")],
)
def test_a_wrong_password_is_reported_with_the_variables_to_check(
    project: Project,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    api: str,
    refused: str,
) -> None:
    monkeypatch.setenv("SALES_USERNAME", "me")
    monkeypatch.setenv("SALES_PASSWORD", "wr0ng-s3cret")
    names = ("username", "password")
    account = {name: f"{{{{ env.SALES_{name.upper()} }}}}" for name in names}
    with FakeAirflow(api) as server:
        project.declare("sales", server.url, SIGN_INS[api] | account)
        project.load_asset_keys()
    message = f"Airflow 'sales' {refused}. Check SALES_USERNAME and SALES_PASSWORD"
    assert message in caplog.text
    assert "wr0ng-s3cret" not in caplog.text


def test_without_a_state_the_declared_dags_are_loaded(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    project.declare("metrics", customer_metrics=["metrics/load_customers"])
    assert project.load_asset_keys() == build_keys(
        "metrics/customer_metrics", "metrics/load_customers"
    )
    assert "Using the declared DAGs." in caplog.text
