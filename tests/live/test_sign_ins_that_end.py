"""Tokens of real Airflows: given by somebody else, rotated, at their end, and after another secret
has come to the server."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from federation_defs.airflow.client import AirflowClient
from federation_defs.errors import PermissionMissingError, SignInRefusedError
from tests.live.airflow_lab import Server
from tests.live.airflow_setups import DAG, get_password
from tests.live.conftest import on
from tests.waiting import wait_for

READ = f"GET /api/v2/dags/{DAG}"
# A program as a vault's would be: prints a token and nothing else.
_PRINT_TOKEN = """
import json, sys, urllib.request

url, *account = sys.argv[1:]
body = json.dumps(dict(zip(("username", "password"), account))).encode()
request = urllib.request.Request(url + "/auth/token", body, {"Content-Type": "application/json"})
print(json.load(urllib.request.urlopen(request))["access_token"])
"""


@on("simple", "fab")
def test_a_token_that_somebody_else_asked_for_is_enough(airflow: Server) -> None:
    client = airflow.connect(type="token", token=airflow.fetch_token("viewer"))
    assert [dag.dag_id for dag in client.fetch_dags()] == [DAG]
    with pytest.raises(PermissionMissingError, match="to trigger DAG runs"):
        client.trigger_run(DAG, "never")


@on("simple", "fab")
def test_a_token_that_is_none_is_a_sign_in_refused(airflow: Server) -> None:
    """3.3.2 says 403 to it, as to whoever lacks a permission."""
    client = airflow.connect(type="token", token="not-a-token")
    with pytest.raises(SignInRefusedError, match=rf"refused {READ} \(403\)\. Check LAB_PASSWORD\."):
        client.fetch_dag(DAG)


@on("simple")
def test_a_token_file_that_is_rotated_is_read_again(airflow: Server, tmp_path: Path) -> None:
    file = tmp_path / "token"
    rotate(file, airflow.fetch_token("viewer"))
    client = airflow.connect(type="token", token_file=str(file))
    with pytest.raises(PermissionMissingError):
        client.trigger_run(DAG, "after-a-rotation")
    rotate(file, airflow.fetch_token("user"))
    assert client.trigger_run(DAG, "after-a-rotation").run_id == "after-a-rotation"


@on("simple", "fab")
def test_a_token_that_ended_is_refused_until_there_is_another(
    airflow: Server, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    token = airflow.fetch_token("viewer", "/cli")
    rotate(file, token)
    client = airflow.connect(type="token", token=token)
    reader = airflow.connect(type="token", token_file=str(file))
    assert is_let_in(client)
    assert is_let_in(reader)
    wait_for(lambda: not is_let_in(client), "the token's end", timeout_s=20, interval_s=0.2)
    for one in (client, reader):
        with pytest.raises(SignInRefusedError, match=rf"{READ} \(401\)\. Check LAB_PASSWORD\."):
            one.fetch_dag(DAG)
    rotate(file, airflow.fetch_token("viewer"))
    assert is_let_in(reader)
    assert not is_let_in(client)


@pytest.mark.parametrize("kind", ["password", "token_command"])
@on("short_lived")
def test_who_can_ask_for_tokens_outlives_them(airflow: Server, kind: str) -> None:
    """Renewed before their end; and when they are refused, for their 3 s count from the beginning
    of the second in which they are made."""
    account = ("admin", get_password("admin"))
    command = [sys.executable, "-c", _PRINT_TOKEN, airflow.url, *account]
    client = {
        "password": airflow.connect_as("admin"),
        "token_command": airflow.connect(type="token", token_command=command),
    }[kind]
    made_before, refused_before = count_tokens(airflow)

    def is_renewed_both_ways() -> bool:
        assert client.fetch_dag(DAG).dag_id == DAG
        made, refused = count_tokens(airflow)
        made, refused = made - made_before, refused - refused_before
        return refused > 0 and made > refused + 1  # the first, and one for each refused

    wait_for(is_renewed_both_ways, "tokens renewed both ways", timeout_s=60, interval_s=0.05)
    assert client.trigger_run(DAG, f"at-last-with-{kind}").state == "queued"


@on("simple", "fab")
def test_a_server_with_another_secret_is_signed_in_to_anew(airflow: Server) -> None:
    """3.3.2 then says 403 to all tokens that it gave before."""
    client = airflow.connect_as("user")
    bearer = airflow.connect(type="token", token=airflow.fetch_token("user"))
    assert is_let_in(client)
    assert is_let_in(bearer)
    airflow.restart(AIRFLOW__API_AUTH__JWT_SECRET="another secret, as long" * 3)
    assert client.trigger_run(DAG, "with-another-secret").run_id == "with-another-secret"
    with pytest.raises(SignInRefusedError, match=rf"refused {READ} \(403\)\. Check LAB_PASSWORD\."):
        bearer.fetch_dag(DAG)


def count_tokens(airflow: Server) -> tuple[int, int]:
    """Those that were made, and those that were refused when a DAG was asked for."""
    refused = airflow.count("GET", f"/api/v2/dags/{DAG}", 401)
    return airflow.count("POST", "/auth/token", 201), refused


def rotate(file: Path, token: str) -> None:
    """As those do who rotate: no reader sees half of it."""
    new = file.with_suffix(".new")
    new.write_text(f"{token}\n")
    os.replace(new, file)


def is_let_in(client: AirflowClient) -> bool:
    try:
        return client.fetch_dag(DAG).dag_id == DAG
    except SignInRefusedError:
        return False
