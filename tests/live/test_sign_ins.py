"""Every way to sign in to a real Airflow: what is accepted, and what is refused.

`make test` signs in to one real Airflow of each version, in the contract tests.
"""

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
from tests.live.airflow_servers import Server
from tests.live.airflow_setups import ASSET, DAG, get_password
from tests.live.conftest import on

pytestmark = pytest.mark.soak


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
def test_an_account_may_do_what_its_role_permits(
    airflow: Server, account: str, expected: Permissions
) -> None:
    client, run_id = airflow.connect_as(account), f"by-{account}"
    before = count_writes(client)
    assert expected == Permissions(
        may_read=may(lambda: client.fetch_dag(DAG)),
        may_trigger=may(lambda: client.trigger_run(DAG, run_id)),
        may_clear=may(lambda: client.clear_failed_tasks(DAG, run_id)),
        may_post_asset_events=may(lambda: post_asset_event(client)),
    )
    assert may(lambda: client.clear_run(DAG, run_id)) == expected.may_clear
    new = expected.may_trigger + expected.may_post_asset_events
    assert count_writes(client) == before + new


def may(act: Callable[[], object]) -> bool:
    try:
        act()
    except PermissionMissingError:
        return False
    return True


def count_writes(client: AirflowClient) -> int:
    """Return the number of runs and asset events."""
    api_version = client.api_version
    path = f"{api_version.prefix}/{api_version.assets}/events"
    events = client.session.request("GET", path).json()["total_entries"]
    return len(client.fetch_changed_runs(LONG_AGO).entries) + events


def post_asset_event(client: AirflowClient) -> None:
    api_version = client.api_version
    (asset,) = client.fetch_assets()
    body = {"asset_id": asset.id} if api_version.api == "v2" else {"dataset_uri": ASSET}
    path = f"{api_version.prefix}/{api_version.assets}/events"
    response = client.session.request("POST", path, json={**body, "extra": {}})
    if response.status_code != 200:
        raise client.session.build_error(response)


@on("basic", "simple", "fab")
def test_a_viewers_trigger_fails_with_the_missing_permission(airflow: Server) -> None:
    """Airflow says "Forbidden" in 3.3 and nothing at all in 2.11."""
    client = airflow.connect_as("viewer")
    assert [dag.dag_id for dag in client.fetch_dags()] == [DAG]
    tokens = airflow.count("POST", "/auth/token", 201)
    with pytest.raises(PermissionMissingError) as error:
        client.trigger_run(DAG, "never")
    message = str(error.value)
    path = f"{client.api_version.prefix}/dags/{DAG}/dag"
    assert f"Airflow '{airflow.name}' forbids POST {path}" in message
    assert "lacks the permission to trigger DAG runs" in message
    assert "the role User has it" in message
    assert client.fetch_run(DAG, "never") is None
    assert airflow.count("POST", "/auth/token", 201) == tokens, "a new token does not help"


@pytest.mark.parametrize("account", ["viewer", "nobody"])
@pytest.mark.parametrize(
    ("airflow", "kind", "expected"),
    [
        # An unknown user has the role Public, unless that is switched off.
        ("basic", PermissionMissingError, "forbids GET /api/v1/dags/report (403). Check {}: "),
        ("basic_under_prefix", SignInRefusedError, "refused GET /airflow/api/v1/dags/report (401)"),
        ("simple", SignInRefusedError, "refused POST /auth/token (401). Check {}."),
        ("fab", SignInRefusedError, "refused POST /auth/token (401). Check {}."),
    ],
    indirect=["airflow"],
)
def test_a_wrong_password_is_an_error_that_names_the_account_to_check(
    airflow: Server, kind: type[AirflowError], expected: str, account: str
) -> None:
    with pytest.raises(kind) as error:
        airflow.connect_as(account, "not-the-password").fetch_dag(DAG)
    message = str(error.value)
    assert message.startswith(f"Airflow '{airflow.name}' {expected.format('LAB_PASSWORD')}")
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
def test_a_client_without_a_sign_in_is_refused(airflow: Server, kind: type[AirflowError]) -> None:
    client = airflow.connect(type="none")
    with pytest.raises(kind, match="Check LAB_PASSWORD"):
        client.fetch_dag(DAG)
    assert client.fetch_version() in ("2.11.2", "3.3.2")


@on("open")
def test_an_airflow_that_admits_everybody_needs_no_sign_in(airflow: Server) -> None:
    client = airflow.connect(type="none")
    assert client.trigger_run(DAG, "by-nobody").state == "queued"


@on("simple", "fab")
def test_airflow_3_refuses_basic_auth_and_the_error_names_the_right_type(airflow: Server) -> None:
    client = airflow.connect(type="basic", username="admin", password=get_password("admin"))
    with pytest.raises(SignInRefusedError, match=r"\(401\).* declare `type: password`"):
        client.fetch_dag(DAG)


@on("basic", "basic_under_prefix")
def test_airflow_2_refuses_tokens_and_the_error_names_the_right_type(
    airflow: Server,
) -> None:
    client = airflow.connect(type="password", username="admin", password=get_password("admin"))
    with pytest.raises(UnexpectedAnswerError, match=r"with 404.* declare `type: basic`"):
        client.fetch_dag(DAG)


@pytest.mark.parametrize("slash", ["", "/"])
@on("basic_under_prefix", "under_prefix")
def test_an_address_may_have_a_path_prefix(airflow: Server, slash: str) -> None:
    client = airflow.connect_as("admin", url=airflow.url + slash)
    run_id = f"below{slash}".replace("/", "-and-slash")
    assert client.trigger_run(DAG, run_id).run_id == run_id
    for _ in range(10):  # after some requests, the client keeps a session of Airflow 2
        assert client.fetch_run(DAG, run_id) is not None
    client.clear_run(DAG, run_id)
    assert client.build_dag_url(DAG).startswith(f"{airflow.url}/dags/")
    assert requests.get(client.build_dag_url(DAG), timeout=30).status_code == 200


@pytest.mark.parametrize("path", ["", "/elsewhere"])
@on("basic_under_prefix", "under_prefix")
def test_an_address_without_its_path_prefix_is_an_error(airflow: Server, path: str) -> None:
    """3.3.2 answers there too: its API without the prefix, any other path with its web page, and
    the sign-in not at all."""
    client = airflow.connect_as("admin", url=airflow.root + path)
    with pytest.raises(UnexpectedAnswerError):
        client.fetch_dag(DAG)
