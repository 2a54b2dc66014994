"""What an instance says of itself and of the account, on an Airflow of either API version."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from federation_defs.airflow.models import Permissions
from federation_defs.errors import AirflowError, SignInRefusedError, UnreachableError
from tests.contract.conftest import Airflow, StartAirflow
from tests.contract.fakes.airflow import PASSWORD, VIEWER, asks
from tests.contract.fakes.answers import build_error
from tests.contract.fakes.faults import answer, edit
from tests.contract.worlds import SIGN_INS, FakeWorld, World, connect


def test_the_api_version_is_found_out(world: World) -> None:
    assert world.client.api_version.api == world.api


def test_the_version_is_of_the_major_that_serves_the_api(world: World) -> None:
    assert world.client.fetch_version().startswith({"v1": "2.", "v2": "3."}[world.api])


def test_a_wrong_password_is_told_as_such(world: World) -> None:
    """2.11 as it comes answers 403 to it: who is not known has the role Public."""
    client = world.connect_with_password("not-the-password")
    with pytest.raises(AirflowError) as refused:
        client.fetch_dags()
    assert client.instance in str(refused.value)
    assert f"{client.instance.upper()}_PASSWORD" in str(refused.value)
    assert "not-the-password" not in str(refused.value)


def test_the_health_tells_of_each_part(world: World) -> None:
    health = world.client.fetch_health()
    assert health.is_healthy
    parts = health.components
    assert set(parts) == {"metadatabase", "scheduler", "triggerer", "dag_processor"}
    assert parts["metadatabase"].status == parts["scheduler"].status == "healthy"
    beat = parts["scheduler"].latest_heartbeat
    assert beat is not None
    assert abs(beat - datetime.now(timezone.utc)) < timedelta(minutes=1)
    # The demo has none; nor does an Airflow without deferrable tasks need one.
    assert (parts["triggerer"].status, parts["triggerer"].latest_heartbeat) == (None, None)
    # 2.11 reads its DAG files in its scheduler, unless told otherwise.
    reader = {"v1": None, "v2": "healthy"}[world.api]
    assert parts["dag_processor"].status == reader


def test_the_health_is_told_to_whoever_is_not_signed_in(world: World) -> None:
    assert world.connect_with_password("not-the-password").fetch_health().is_healthy


def test_an_instance_with_an_unhealthy_part_is_not_healthy(airflow: Airflow) -> None:
    def stop_scheduler(health: dict[str, dict[str, str]]) -> None:
        health["scheduler"]["status"] = "unhealthy"

    airflow.client.fetch_version()
    airflow.server.fail_next(asks("GET", "/health|/monitor/health"), edit(stop_scheduler))
    health = airflow.client.fetch_health()
    assert not health.is_healthy
    assert health.components["scheduler"].status == "unhealthy"


def test_health_that_cannot_be_told_now_is_no_health(airflow: Airflow) -> None:
    airflow.client.fetch_version()
    airflow.server.fail_next(asks("GET", "/health|/monitor/health"), answer(503, "no"), times=9)
    with pytest.raises(UnreachableError, match="503"):
        airflow.client.fetch_health()


def test_the_admin_may_do_everything(world: World) -> None:
    assert world.client.fetch_permissions(world.dag_id) == Permissions(
        may_read=True, may_trigger=True, may_clear=True, may_post_asset_events=True
    )


def test_asking_for_permissions_does_nothing(world: World) -> None:
    since = datetime.now(timezone.utc) - timedelta(seconds=1)
    events = world.client.fetch_asset_events(since)
    # Of a DAG that no other test runs.
    world.client.fetch_permissions("warned")
    runs = world.client.fetch_changed_runs(since - timedelta(hours=1)).runs
    assert [run for run in runs if run.dag_id == "warned"] == []
    assert world.client.fetch_asset_events(since) == events


def test_a_viewer_may_read_and_no_more(fake_world: FakeWorld) -> None:
    url, sign_in = fake_world.client.url, SIGN_INS[fake_world.api]
    viewer = connect(url, sign_in, PASSWORD, username=VIEWER)
    assert viewer.fetch_permissions("described") == Permissions(
        may_read=True, may_trigger=False, may_clear=False, may_post_asset_events=False
    )


def test_permissions_that_cannot_be_asked_for_now_are_not_missing_ones(airflow: Airflow) -> None:
    airflow.database.add_dag("load_customers")
    airflow.client.fetch_version()
    busy = answer(503, {"detail": "busy"})
    airflow.server.fail_next(asks("POST", "/dags/load_customers/dagRuns"), busy)
    with pytest.raises(UnreachableError, match="503: busy"):
        airflow.client.fetch_permissions("load_customers")


def test_a_refused_sign_in_is_not_a_missing_permission(airflow: Airflow) -> None:
    airflow.server.has_public_role = False
    sign_in = SIGN_INS[airflow.server.api]
    client = connect(airflow.server.url, sign_in, "not-the-password")
    with pytest.raises(SignInRefusedError):
        client.fetch_permissions("load_customers")


def test_an_airflow_from_before_dataset_events_could_be_posted_lets_nobody_post_them(
    start_airflow: StartAirflow,
) -> None:
    """2.9 is the first that can; before it, the path only reads."""
    airflow = start_airflow("v1")
    airflow.database.add_dag("load_customers")
    airflow.client.fetch_version()
    words = build_error("v1", 405, "The method is not allowed.", "Method Not Allowed")
    airflow.server.fail_next(asks("POST", ".*/events"), answer(405, words))
    permissions = airflow.client.fetch_permissions("load_customers")
    assert (permissions.may_trigger, permissions.may_post_asset_events) == (True, False)
