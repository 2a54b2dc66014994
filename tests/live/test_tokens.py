"""Tokens of real Airflows: given, rotated, expired, and signed with an earlier secret."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from federation_defs.airflow.client import AirflowClient
from federation_defs.errors import PermissionMissingError, SignInRefusedError
from tests.live.airflow_servers import Server
from tests.live.airflow_setups import DAG, get_password
from tests.live.conftest import on
from tests.waiting import wait_for

pytestmark = pytest.mark.soak

READ = f"GET /api/v2/dags/{DAG}"
# A program like a vault's client: it prints a token and nothing else.
_PRINT_TOKEN = """
import json, sys, urllib.request

url, *account = sys.argv[1:]
body = json.dumps(dict(zip(("username", "password"), account))).encode()
request = urllib.request.Request(url + "/auth/token", body, {"Content-Type": "application/json"})
print(json.load(urllib.request.urlopen(request))["access_token"])
"""


@on("simple", "fab")
def test_a_given_token_is_enough_to_sign_in(airflow: Server) -> None:
    client = airflow.connect(type="token", token=airflow.fetch_token("viewer"))
    assert [dag.dag_id for dag in client.fetch_dags()] == [DAG]
    with pytest.raises(PermissionMissingError, match="to trigger DAG runs"):
        client.trigger_run(DAG, "never")


@on("simple", "fab")
def test_an_invalid_token_is_a_refused_sign_in(airflow: Server) -> None:
    """3.3.2 answers it with 403, like a missing permission."""
    client = airflow.connect(type="token", token="not-a-token")
    with pytest.raises(SignInRefusedError, match=rf"refused {READ} \(403\)\. Check LAB_PASSWORD\."):
        client.fetch_dag(DAG)


@on("simple")
def test_a_rotated_token_file_is_read_again(airflow: Server, tmp_path: Path) -> None:
    file = tmp_path / "token"
    rotate(file, airflow.fetch_token("viewer"))
    client = airflow.connect(type="token", token_file=str(file))
    with pytest.raises(PermissionMissingError):
        client.trigger_run(DAG, "after-a-rotation")
    rotate(file, airflow.fetch_token("user"))
    assert client.trigger_run(DAG, "after-a-rotation").run_id == "after-a-rotation"


@on("simple", "fab")
def test_an_expired_token_is_refused_until_its_file_has_another(
    airflow: Server, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    token = airflow.fetch_token("viewer", "/cli")
    rotate(file, token)
    client = airflow.connect(type="token", token=token)
    reader = airflow.connect(type="token", token_file=str(file))
    assert is_admitted(client)
    assert is_admitted(reader)
    wait_for(lambda: not is_admitted(client), "the token has expired", interval_s=0.2)
    for refused in (client, reader):
        with pytest.raises(SignInRefusedError, match=rf"{READ} \(401\)\. Check LAB_PASSWORD\."):
            refused.fetch_dag(DAG)
    rotate(file, airflow.fetch_token("viewer"))
    assert is_admitted(reader)
    assert not is_admitted(client)


@pytest.mark.parametrize("kind", ["password", "token_command"])
@on("short_lived")
def test_tokens_are_renewed_before_they_expire_and_when_they_are_refused(
    airflow: Server, kind: str
) -> None:
    """Their 3 s count from the beginning of the second in which they are made, so some are refused
    before the client expects it."""
    account = ("admin", get_password("admin"))
    command = [sys.executable, "-c", _PRINT_TOKEN, airflow.url, *account]
    client = {
        "password": airflow.connect_as("admin"),
        "token_command": airflow.connect(type="token", token_command=command),
    }[kind]
    made_before, refused_before = count_tokens(airflow)

    def were_renewed_both_ways() -> bool:
        assert client.fetch_dag(DAG).dag_id == DAG
        made, refused = count_tokens(airflow)
        made, refused = made - made_before, refused - refused_before
        return refused > 0 and made > refused + 1  # the first, and one for each refused

    wait_for(were_renewed_both_ways, "tokens were renewed both ways", interval_s=0.05)
    assert client.trigger_run(DAG, f"at-last-with-{kind}").state == "queued"


@on("simple", "fab")
def test_the_client_signs_in_again_when_the_server_gets_another_secret(airflow: Server) -> None:
    """3.3.2 then answers all earlier tokens with 403."""
    client = airflow.connect_as("user")
    bearer = airflow.connect(type="token", token=airflow.fetch_token("user"))
    assert is_admitted(client)
    assert is_admitted(bearer)
    airflow.restart(AIRFLOW__API_AUTH__JWT_SECRET="another secret, as long" * 3)
    assert client.trigger_run(DAG, "with-another-secret").run_id == "with-another-secret"
    with pytest.raises(SignInRefusedError, match=rf"refused {READ} \(403\)\. Check LAB_PASSWORD\."):
        bearer.fetch_dag(DAG)


def count_tokens(airflow: Server) -> tuple[int, int]:
    """Return the numbers of tokens made, and of tokens refused when a DAG was fetched."""
    refused = airflow.count("GET", f"/api/v2/dags/{DAG}", 401)
    return airflow.count("POST", "/auth/token", 201), refused


def rotate(file: Path, token: str) -> None:
    """Replace a token file atomically, as secret managers do."""
    new = file.with_suffix(".new")
    new.write_text(f"{token}\n")
    os.replace(new, file)


def is_admitted(client: AirflowClient) -> bool:
    try:
        return client.fetch_dag(DAG).dag_id == DAG
    except SignInRefusedError:
        return False
