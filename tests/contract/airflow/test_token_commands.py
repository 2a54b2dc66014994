"""Programs that print a token: run when they must be, and never quoted."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from federation_defs.airflow.client import AirflowClient
from federation_defs.errors import CredentialError, SignInRefusedError
from tests.contract.clients import (
    ACCOUNT_HINT,
    FakeClock,
    declare_client,
    format_error_chain,
)
from tests.contract.fakes.proxies import start_reverse_proxy
from tests.contract.fakes.sign_ins import TokenAirflow, build_timed_jwt

SECRET = "secret-of-the-vault"
NO_TOKENS = {
    "nothing": ":",
    "two words": f"echo Bearer {SECRET}",
    "two lines": f"echo {SECRET}; echo {SECRET}",
    "no text": rf"printf '{SECRET}\377'",
    "its input": "cat",
    "an error": f"echo {SECRET}; echo {SECRET} >&2; exit 3",
    "a signal": f"echo {SECRET}; kill -9 $$",
}


class Program:
    """A shell script that counts how often it is run.

    Attributes:
        command: As it is declared.
        output: The file that it prints.
    """

    def __init__(self, folder: Path, body: str = "") -> None:
        self._path = folder / "print-token"
        self._runs = folder / "runs"
        self.output = folder / "output"
        lines = ["#!/bin/sh", f"echo run >>'{self._runs}'", body or f"cat '{self.output}'"]
        self._path.write_text("\n".join(lines) + "\n")
        self._path.chmod(stat.S_IRWXU)
        self.command = [str(self._path)]

    @property
    def runs(self) -> int:
        return len(self._runs.read_text().splitlines())


@pytest.fixture
def server() -> Iterator[TokenAirflow]:
    with TokenAirflow(SECRET) as server:
        yield server


@pytest.fixture
def program(tmp_path: Path) -> Program:
    program = Program(tmp_path)
    program.output.write_text(f"{SECRET}\n")
    return program


def connect(url: str, command: list[str]) -> AirflowClient:
    return declare_client(url, {"type": "token", "token_command": command})


def assert_works(client: AirflowClient) -> None:
    assert [dag.dag_id for dag in client.fetch_dags()] == ["load_customers"]


def test_a_program_is_run_once_for_many_requests_and_threads(
    server: TokenAirflow, program: Program
) -> None:
    client = connect(server.url, program.command)
    with ThreadPoolExecutor(16) as threads:
        pending = [threads.submit(client.fetch_dags) for _ in range(64)]
        assert {len(dags.result(timeout=60)) for dags in pending} == {1}
    assert program.runs == 1


def test_a_program_is_run_again_when_its_token_is_refused(
    server: TokenAirflow, program: Program
) -> None:
    client = connect(server.url, program.command)
    assert_works(client)
    server.token = "another-secret"
    program.output.write_text(server.token)
    with ThreadPoolExecutor(16) as threads:
        pending = [threads.submit(client.fetch_dags) for _ in range(32)]
        assert {len(dags.result(timeout=60)) for dags in pending} == {1}
    assert program.runs == 2


def test_a_program_that_prints_a_refused_token_is_not_run_for_ever(
    server: TokenAirflow, program: Program
) -> None:
    client = connect(server.url, program.command)
    server.token = "another-secret"
    with pytest.raises(SignInRefusedError, match=ACCOUNT_HINT):
        client.fetch_dags()
    assert program.runs <= 2


def test_a_program_is_run_again_before_its_token_expires(
    server: TokenAirflow, program: Program
) -> None:
    clock = FakeClock()
    auth = {"type": "token", "token_command": program.command}
    client = declare_client(server.url, auth, clock.timing)
    server.token = build_timed_jwt(1000)
    program.output.write_text(server.token)
    assert_works(client)
    clock.advance(899)
    assert_works(client)
    assert program.runs == 1
    clock.advance(2)  # the server would still accept the token
    assert_works(client)
    assert program.runs == 2


@pytest.mark.parametrize("body", NO_TOKENS.values(), ids=NO_TOKENS.keys())
def test_a_program_that_prints_no_token_is_named_and_not_quoted(
    server: TokenAirflow, tmp_path: Path, body: str
) -> None:
    program = Program(tmp_path, body)
    arguments = ["--for", "an-argument-that-is-nobody's-business"]
    client = connect(server.url, program.command + arguments)
    with pytest.raises(CredentialError, match=rf"{program.command[0]}.*{ACCOUNT_HINT}") as error:
        client.fetch_dags()
    assert SECRET not in format_error_chain(error.value)
    assert "nobody's" not in format_error_chain(error.value)
    assert program.runs == 1


def test_the_stderr_of_a_program_is_ignored(server: TokenAirflow, tmp_path: Path) -> None:
    """Warnings on stderr, in whatever letters."""
    said = rf"printf 'warnung: ver\344ltet\n' >&2; echo {SECRET}"
    assert_works(connect(server.url, Program(tmp_path, said).command))


@pytest.mark.parametrize("kind", ["not there", "not executable", "a folder"])
def test_a_program_that_can_not_be_run_is_named(
    server: TokenAirflow, program: Program, tmp_path: Path, kind: str
) -> None:
    path = {"not there": tmp_path / "gone", "a folder": tmp_path}.get(kind, program.output)
    with pytest.raises(CredentialError, match=rf"token command {path} failed") as error:
        connect(server.url, [str(path)]).fetch_dags()
    assert SECRET not in format_error_chain(error.value)


def test_a_program_with_a_null_in_its_arguments_is_named(
    server: TokenAirflow, program: Program
) -> None:
    with pytest.raises(CredentialError, match=program.command[0]):
        connect(server.url, [*program.command, "a\0b"]).fetch_dags()


@pytest.mark.parametrize("argument", ["$HOME", "$(id)", "`id`", "a;id", "*", "~", "%s"])
def test_no_shell_reads_a_command(server: TokenAirflow, argument: str) -> None:
    server.token = argument
    with start_reverse_proxy(server) as proxy:
        assert_works(connect(proxy.url, ["/bin/echo", argument]))
    assert f"Bearer {argument}" in {headers.get("Authorization") for headers in proxy.requests}
