"""Signing in to real Airflows, in each of their own ways: what is accepted, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import NamedTuple

import pytest
import requests

from federation_defs.airflow.client import AirflowClient
from federation_defs.errors import (
    AirflowError,
    PermissionMissingError,
    SignInRefusedError,
    UnexpectedAnswerError,
)
from tests.live.airflow_lab import Server
from tests.live.airflow_setups import ASSET, DAG, get_password
from tests.live.conftest import on


class Permissions(NamedTuple):
    """What an account may do."""

    may_read: bool
    may_trigger: bool
    may_clear: bool
    may_post_asset_events: bool


READS = Permissions(True, False, False, False)
RUNS_DAGS = Permissions(True, True, True, False)
ALL = Permissions(True, True, True, True)
ROLES = {
    "basic": {"admin": ALL, "op": ALL, "user": ALL, "viewer": READS},
    "simple": {"admin": ALL, "op": ALL, "user": RUNS_DAGS, "viewer": READS},
    "fab": {"admin": ALL, "op": ALL, "user": ALL, "viewer": READS},
}
LONG_AGO = datetime(2020, 1, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("airflow", "account", "expected"),
    [(name, account, may) for name, roles in ROLES.items() for account, may in roles.items()],
    indirect=["airflow"],
)
def test_permissions_are_those_of_the_role_and_come_true(
    airflow: Server, account: str, expected: Permissions
) -> None:
    client, run_id = airflow.connect_as(account), f"by-{account}"
    before = count_deeds(client)
    assert expected == Permissions(
        may_read=may(lambda: client.fetch_dag(DAG)),
        may_trigger=may(lambda: client.trigger_run(DAG, run_id)),
        may_clear=may(lambda: client.clear_failed_tasks(DAG, run_id)),
        may_post_asset_events=may(lambda: post_asset_event(client)),
    )
    assert may(lambda: client.clear_run(DAG, run_id)) == expected.may_clear
    new = expected.may_trigger + expected.may_post_asset_events
    assert count_deeds(client) == before + new


def may(act: Callable[[], object]) -> bool:
    try:
        act()
    except PermissionMissingError:
        return False
    return True


def count_deeds(client: AirflowClient) -> int:
    """The runs and the asset events that there are."""
    api_version = client.api_version
    path = f"{api_version.prefix}/{api_version.assets}/events"
    events = client.session.request("GET", path).json()["total_entries"]
    return len(client.fetch_changed_runs(LONG_AGO).runs) + events


def post_asset_event(client: AirflowClient) -> None:
    api_version = client.api_version
    (asset,) = client.fetch_assets()
    body = {"asset_id": asset.id} if api_version.api == "v2" else {"dataset_uri": ASSET}
    path = f"{api_version.prefix}/{api_version.assets}/events"
    response = client.session.request("POST", path, json={**body, "extra": {}})
    if response.status_code != 200:
        raise client.session.build_error(response)


@on("basic", "simple", "fab")
def test_a_viewer_who_triggers_is_told_what_is_missing(airflow: Server) -> None:
    """Airflow says "Forbidden" in 3.3 and nothing at all in 2.11."""
    client = airflow.connect_as("viewer")
    assert [dag.dag_id for dag in client.fetch_dags()] == [DAG]
    tokens = airflow.count("POST", "/auth/token", 201)
    with pytest.raises(PermissionMissingError) as error:
        client.trigger_run(DAG, "never")
    told = str(error.value)
    assert (
        f"Airflow '{airflow.name}' forbids POST {client.api_version.prefix}/dags/{DAG}/dag" in told
    )
    assert "lacks the permission to trigger DAG runs" in told
    assert "the role User has it" in told
    assert client.fetch_run(DAG, "never") is None
    assert airflow.count("POST", "/auth/token", 201) == tokens, "a new token does not help"


@pytest.mark.parametrize("account", ["viewer", "nobody"])
@pytest.mark.parametrize(
    ("airflow", "kind", "told"),
    [
        # Whom it doesn't know has the role Public, unless it is told to have no such role.
        ("basic", PermissionMissingError, "forbids GET /api/v1/dags/report (403). Check {}: "),
        ("basic_under_prefix", SignInRefusedError, "refused GET /airflow/api/v1/dags/report (401)"),
        ("simple", SignInRefusedError, "refused POST /auth/token (401). Check {}."),
        ("fab", SignInRefusedError, "refused POST /auth/token (401). Check {}."),
    ],
    indirect=["airflow"],
)
def test_a_wrong_password_is_told_with_the_account_to_check(
    airflow: Server, kind: type[AirflowError], told: str, account: str
) -> None:
    with pytest.raises(kind) as error:
        airflow.connect_as(account, "not-the-password").fetch_dag(DAG)
    message = str(error.value)
    assert message.startswith(f"Airflow '{airflow.name}' {told.format('LAB_PASSWORD')}")
    assert "Check LAB_PASSWORD" in message


@pytest.mark.parametrize(
    ("airflow", "kind"),
    [
        ("basic", PermissionMissingError),
        ("basic_under_prefix", SignInRefusedError),
        ("simple", SignInRefusedError),
        ("fab", SignInRefusedError),
    ],
    indirect=["airflow"],
)
def test_nobody_is_let_in_without_a_sign_in(airflow: Server, kind: type[AirflowError]) -> None:
    client = airflow.connect(type="none")
    with pytest.raises(kind, match="Check LAB_PASSWORD"):
        client.fetch_dag(DAG)
    assert client.fetch_version() in ("2.11.2", "3.3.2")


@on("open")
def test_an_airflow_that_lets_everybody_in_needs_no_sign_in(airflow: Server) -> None:
    client = airflow.connect(type="none")
    assert client.trigger_run(DAG, "by-nobody").state == "queued"


@on("simple", "fab")
def test_airflow_3_is_not_signed_in_to_as_airflow_2(airflow: Server) -> None:
    client = airflow.connect(type="basic", username="admin", password=get_password("admin"))
    with pytest.raises(SignInRefusedError, match=r"\(401\).* declare `type: password`"):
        client.fetch_dag(DAG)


@on("basic", "basic_under_prefix")
def test_airflow_2_is_not_signed_in_to_as_airflow_3(airflow: Server) -> None:
    client = airflow.connect(type="password", username="admin", password=get_password("admin"))
    with pytest.raises(UnexpectedAnswerError, match=r"with 404.* declare `type: basic`"):
        client.fetch_dag(DAG)


@pytest.mark.parametrize("slash", ["", "/"])
@on("basic_under_prefix", "under_prefix")
def test_a_path_prefix_is_a_part_of_the_address(airflow: Server, slash: str) -> None:
    client = airflow.connect_as("admin", url=airflow.url + slash)
    run_id = f"below{slash}".replace("/", "-and-slash")
    assert client.trigger_run(DAG, run_id).run_id == run_id
    for _ in range(10):  # Airflow 2 is signed in to in another way after some
        assert client.fetch_run(DAG, run_id) is not None
    client.clear_run(DAG, run_id)
    assert client.build_dag_url(DAG).startswith(f"{airflow.url}/dags/")
    assert requests.get(client.build_dag_url(DAG), timeout=30).status_code == 200


@pytest.mark.parametrize("path", ["", "/elsewhere"])
@on("basic_under_prefix", "under_prefix")
def test_an_address_without_its_path_prefix_is_no_airflow(airflow: Server, path: str) -> None:
    """3.3.2 answers there too: its API without the prefix, any other path with its web page, and
    the sign-in not at all."""
    client = airflow.connect_as("admin", url=airflow.root + path)
    with pytest.raises(UnexpectedAnswerError):
        client.fetch_dag(DAG)
