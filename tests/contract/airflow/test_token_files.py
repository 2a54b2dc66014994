"""Files that hold a token: read when they change, and never quoted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation_defs.airflow.client import AirflowClient
from federation_defs.errors import CredentialError, SignInRefusedError
from tests.contract.clients import ACCOUNT_HINT, declare_client, format_error_chain
from tests.contract.fakes.sign_ins import TokenAirflow

SECRET = "secret-of-the-vault"
NO_TOKENS = {
    "nothing": b"",
    "spaces": b" \n ",
    "two words": f"Bearer {SECRET}".encode(),
    "two lines": f"{SECRET}\n{SECRET}\n".encode(),
    "no text": f"{SECRET}\xff".encode("latin-1"),
    "another alphabet": f"{SECRET}é".encode(),
    "a program": f"\x7fELF\x02\x01\x01\x00{SECRET}".encode(),
}


@pytest.fixture
def server() -> Iterator[TokenAirflow]:
    with TokenAirflow(SECRET) as server:
        yield server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A token file."""
    path = tmp_path / "token"
    path.write_text(f"{SECRET}\n")
    return path


def connect(server: TokenAirflow, path: Path) -> AirflowClient:
    return declare_client(server.url, {"type": "token", "token_file": str(path)})


def assert_works(client: AirflowClient) -> None:
    assert [dag.dag_id for dag in client.fetch_dags()] == ["load_customers"]


def test_a_file_is_read_again_when_it_is_replaced(server: TokenAirflow, path: Path) -> None:
    client = connect(server, path)
    assert_works(client)
    server.token = "another-secret"
    (path.parent / "new").write_text(server.token)
    os.replace(path.parent / "new", path)
    assert_works(client)
    assert server.count("GET", "/dags") == 2, "then the old one was sent first"


def test_a_file_whose_change_is_not_seen_is_read_when_its_token_is_refused(
    server: TokenAirflow, path: Path
) -> None:
    client = connect(server, path)
    assert_works(client)
    server.token = SECRET[::-1]
    before = path.stat()
    path.write_text(f"{server.token}\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert_works(client)


def test_a_refused_token_of_an_unchanged_file_is_reported(server: TokenAirflow, path: Path) -> None:
    server.token = "another-secret"
    with pytest.raises(SignInRefusedError, match=ACCOUNT_HINT) as error:
        connect(server, path).fetch_dags()
    assert SECRET not in format_error_chain(error.value)
    assert server.count("GET", "/dags") <= 2


@pytest.mark.parametrize("content", NO_TOKENS.values(), ids=NO_TOKENS.keys())
def test_a_file_that_holds_no_token_is_named_and_not_quoted(
    server: TokenAirflow, path: Path, content: bytes
) -> None:
    path.write_bytes(content)
    client = connect(server, path)
    for _ in range(2):
        with pytest.raises(CredentialError, match=rf"{path}.*{ACCOUNT_HINT}") as error:
            client.fetch_dags()
        assert SECRET not in format_error_chain(error.value)
    path.write_text(SECRET)
    assert_works(client)


@pytest.mark.parametrize("spoil", ["empty", "binary", "removed"])
def test_a_broken_file_is_reported_until_it_is_mended(
    server: TokenAirflow, path: Path, spoil: str
) -> None:
    client = connect(server, path)
    assert_works(client)
    path.unlink()
    if spoil != "removed":
        path.write_bytes(NO_TOKENS["nothing" if spoil == "empty" else "no text"])
    for _ in range(3):
        with pytest.raises(CredentialError, match=str(path)):
            client.fetch_dags()
    path.write_text(SECRET)
    assert_works(client)


def test_a_path_that_no_file_can_have_is_reported(server: TokenAirflow) -> None:
    with pytest.raises(CredentialError, match=r"the token file .* can't be read"):
        connect(server, Path("no\0path")).fetch_dags()


def test_a_folder_in_place_of_a_token_file_is_named(server: TokenAirflow, tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match=str(tmp_path)):
        connect(server, tmp_path).fetch_dags()
