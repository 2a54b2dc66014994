"""Loading a component under `dagster dev`, which refreshes its state."""

from __future__ import annotations

import json
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path
from threading import Barrier

import dagster as dg
import pytest
from dagster._core.storage.defs_state.base import set_defs_state_storage
from dagster._core.storage.defs_state.blob_storage_state_storage import UPathDefsStateStorage
from dagster.components.core.component_tree import ComponentTreeException
from typing_extensions import override
from upath import UPath
from werkzeug import Response

from federation_defs import DeclarationError, FederatedAirflow, InstanceDeclaration
from federation_defs.naming import build_state_asset_key
from federation_defs.specs import build_specs
from federation_defs.state import read_snapshot
from tests.contract.clients import SIGN_INS
from tests.contract.fakes.airflow import FakeAirflow, asks
from tests.contract.fakes.faults import Act
from tests.unit.project import Project, build_keys

# Dagster 1.13 itself uses a deprecated function of pydantic.
pytestmark = pytest.mark.filterwarnings("ignore:.parse_obj_as. is deprecated")


@pytest.fixture
def project(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("DAGSTER_IS_DEV_CLI", "1")
    return project


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
    assert f"Airflow 'warehouse' gave no usable answer at {server.url}" in caplog.text
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


SECRETS = {name: f"{{{{ env.SALES_{name.upper()} }}}}" for name in ("username", "password")}


def test_without_its_secrets_an_instance_is_loaded_and_the_errors_name_them(
    project: Project, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SALES_USERNAME", "me")
    with FakeAirflow("v2") as server, FakeAirflow("v1") as other:
        other.database.add_dag("load_orders")
        project.declare("warehouse", other.url, SIGN_INS["v1"])
        project.declare("sales", server.url, SIGN_INS["v2"] | SECRETS, load=["sales/extract"])
        loaded = build_keys("sales/load", "sales/extract", "warehouse/load_orders")
        assert project.load_asset_keys() == loaded
        assert server.count("POST", ".*") == 0
    assert "Airflow 'sales' gets no requests until you set SALES_PASSWORD." in caplog.text
    unset = "the sign-in failed (environment variables are not set)."
    refused = f"Airflow 'sales' got no request: {unset}"
    assert f"{refused} Check SALES_PASSWORD." in caplog.text
    monkeypatch.setenv("FEDERATION_STRICT", "true")
    with pytest.raises(ComponentTreeException) as caught:
        project.load_asset_keys()
    assert isinstance(caught.value.__cause__, DeclarationError)
    assert "auth.password: set the environment variable SALES_PASSWORD." in str(
        caught.value.__cause__
    )


def test_without_its_address_an_instance_is_loaded_and_the_errors_name_the_variable(
    project: Project, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"tls": {"verify": True}}
    project.declare("metrics", "https://{{ env.NO_HOST }}/air", more=more, load=["metrics/extract"])
    project.declare("sales", "{{ env.NO_URL }}", SIGN_INS["v2"] | SECRETS, load=["sales/extract"])
    names = ("sales/load", "sales/extract", "metrics/load", "metrics/extract")
    assert project.load_asset_keys() == build_keys(*names)
    for name, unset in (
        ("metrics", "NO_HOST"),
        ("sales", "NO_URL and SALES_USERNAME and SALES_PASSWORD"),
    ):
        failed = "the sign-in failed (environment variables are not set)."
        said = f"Airflow '{name}' got no request: {failed}"
        assert f"{said} Check {unset}. Using the declared DAGs." in caplog.text
    monkeypatch.setenv("FEDERATION_STRICT", "true")
    with pytest.raises(ComponentTreeException) as caught:
        project.load_asset_keys()
    assert "url: set the environment variable NO_HOST." in str(caught.value.__cause__)


def test_without_a_state_the_declared_dags_are_loaded(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    project.declare("metrics", customer_metrics=["metrics/load_customers"])
    assert project.load_asset_keys() == build_keys(
        "metrics/customer_metrics", "metrics/load_customers"
    )
    assert "Using the declared DAGs." in caplog.text


@pytest.mark.parametrize("in_python", [False, True])
def test_a_load_refreshes_all_instances_at_the_same_time(
    project: Project, caplog: pytest.LogCaptureFixture, in_python: bool
) -> None:
    barrier = Barrier(3, timeout=60)

    def wait_for_the_others(act: Act) -> Response:
        barrier.wait()
        return act()

    names = ["first", "second", "third"]
    with ExitStack() as running:
        servers = [running.enter_context(FakeAirflow("v1")) for _ in names]
        for name, server in zip(names, servers, strict=True):
            server.database.add_dag("load")
            server.fail_next(asks("GET", "/dags"), wait_for_the_others)
            project.declare(name, server.url, SIGN_INS["v1"])
        if in_python:
            project.move_to_python()
        assert project.load_asset_keys() == build_keys(*(f"{name}/load" for name in names))
        assert [server.count("GET", "/dags") for server in servers] == [1, 1, 1]
    assert caplog.text == ""


@pytest.mark.parametrize("api", ["v1", "v2"])
@pytest.mark.parametrize("select", [{}, {"tags": ["sales"]}, {"dag_ids": ["load_*"]}])
def test_a_dag_that_is_away_for_a_refresh_stays_an_asset(
    api: str, select: dict[str, list[str]], tmp_path: Path
) -> None:
    """Nothing that an earlier refresh has left is needed: the path is a fresh one."""
    now = datetime.now(timezone.utc)
    with FakeAirflow(api) as server:
        for dag_id, hours in {"load_orders": 1, "load_long_ago": 24 * 8}.items():
            away = {"is_present": False, "last_parsed_at": now - timedelta(hours=hours)}
            server.database.add_dag(dag_id, tags=("sales",), **away)
        server.database.add_dag("load_customers", tags=("sales",))
        server.database.add_dag("unparsed", is_present=False)
        declared = {"name": "metrics", "url": server.url, "auth": SIGN_INS[api], "select": select}
        component = FederatedAirflow(InstanceDeclaration.model_validate(declared))
        component.write_state_to_path(tmp_path / "state")
    snapshot = read_snapshot(tmp_path / "state")
    assert snapshot
    assert {dag_id: dag.is_present for dag_id, dag in snapshot.dags.items()} == {
        "load_customers": True,
        "load_orders": False,
    }
    assert snapshot.present_dag_ids == {"load_customers"}


@pytest.mark.parametrize(
    ("select", "is_selected"),
    [
        ({}, True),
        ({"tags": ["sales"]}, True),
        ({"dag_ids": ["load_*"]}, True),
        ({"dag_ids": ["publish"]}, False),
        ({"exclude": ["load_*"]}, False),
    ],
)
def test_a_dag_whose_row_can_not_be_read_is_no_absent_one(
    select: dict[str, list[str]], is_selected: bool, tmp_path: Path
) -> None:
    def spoil(act: Act) -> Response:
        answer = json.loads(act().get_data())
        answer["dags"][0]["is_paused"] = None
        return Response(json.dumps(answer), content_type="application/json")

    with FakeAirflow("v2") as server:
        for dag_id in ("load_orders", "publish"):
            server.database.add_dag(dag_id, tags=("sales",))
        server.fail_next(asks("GET", "/dags"), spoil)
        declared = {"name": "sales", "url": server.url, "auth": SIGN_INS["v2"], "select": select}
        component = FederatedAirflow(InstanceDeclaration.model_validate(declared))
        component.write_state_to_path(tmp_path / "state")
    snapshot = read_snapshot(tmp_path / "state")
    assert snapshot
    assert snapshot.present_dag_ids == {"load_orders", "publish"}
    assert ("load_orders" in build_specs(component.declaration, snapshot, set())) == is_selected


VERSIONED = {"defs_state": {"management_type": "VERSIONED_STATE_STORAGE"}}


def test_versioned_state_keeps_declared_dags_that_an_airflow_has_no_more(
    project: Project, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = UPathDefsStateStorage(UPath(tmp_path / "states"))
    instance = dg.DagsterInstance.ephemeral()
    storage.register_instance(instance)
    with FakeAirflow("v1") as server, set_defs_state_storage(storage):
        server.database.add_dag("load_orders")
        gone = server.database.add_dag("load_customers")
        project.declare("warehouse", server.url, SIGN_INS["v1"], VERSIONED)
        project.declare("metrics", load=["warehouse/load_customers"])
        expected = project.load_asset_keys()
        gone.is_present = False
        assert project.load_asset_keys() == expected
    assert "Airflow 'warehouse' has no DAG 'load_customers'" in caplog.text


class _FullStorage(UPathDefsStateStorage):
    @override
    def upload_state_from_path(self, key: str, version: str, path: Path) -> None:
        raise OSError(28, "No space left on device")


def test_a_state_that_can_not_be_written_is_a_warning(
    project: Project, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = _FullStorage(UPath(tmp_path / "states"))
    instance = dg.DagsterInstance.ephemeral()
    storage.register_instance(instance)
    with FakeAirflow("v2") as server, set_defs_state_storage(storage):
        project.declare("sales", server.url, SIGN_INS["v2"], VERSIONED, load=["sales/extract"])
        state = build_state_asset_key("sales")
        assert project.load_asset_keys() == {*build_keys("sales/load", "sales/extract"), state}
    reason = (
        "The state of Airflow 'sales' can't be read or written: [Errno 28] No space left on device."
    )
    assert f"{reason} Using the declared DAGs." in caplog.text
