"""TLS that goes wrong: files, ports, and connections that break or stall in the middle of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from federation_defs.errors import TlsError, UnreachableError
from tests.conftest import ROOT
from tests.contract.airflow.test_tls import Authority, assert_works, connect
from tests.contract.clients import (
    SHORT_TIMEOUTS,
    Stopwatch,
    clear_environment,
    declare_client,
    format_error_chain,
)
from tests.contract.fakes.airflow import PASSWORD, FakeAirflow
from tests.contract.fakes.fault_proxy import FaultProxy, close, reset, trickle
from tests.contract.fakes.proxies import ReverseProxy, start_reverse_proxy
from tests.processes import find_free_port

OPEN = {"type": "none"}
TOKEN = {"type": "token", "token": "token-1-of-federation"}
FILES = ["ca_bundle", "client_cert", "client_key"]
LOAD_ENCRYPTED_KEY = """
import sys
from federation_defs.airflow.connections import TlsFileError, build_tls_context
from federation_defs.declaration import TlsDeclaration
try:
    build_tls_context(TlsDeclaration(client_cert=sys.argv[1]))
except TlsFileError as error:
    print(error)
"""
CONNECT_IN_THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from federation_defs.errors import UnreachableError
from tests.contract.clients import declare_client

def connect(_):
    try:
        client.session.request("PATCH", "/")
    except UnreachableError:
        return "refused"

tls = {"ca_bundle": sys.argv[2], "client_cert": sys.argv[3]}
http = {"max_connections": 32}
client = declare_client(sys.argv[1], {"type": "none"}, http=http, tls=tls)
with ThreadPoolExecutor(32) as threads:
    print(set(threads.map(connect, range(500))))
"""


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_environment(monkeypatch)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def airflow() -> Iterator[FakeAirflow]:
    with FakeAirflow("v2") as server:
        server.database.add_dag("load_customers")
        yield server


@pytest.fixture
def server(airflow: FakeAirflow, authority: Authority) -> Iterator[ReverseProxy]:
    with start_reverse_proxy(airflow, tls=authority.build_context()) as server:
        yield server


@pytest.fixture
def secure(airflow: FakeAirflow, authority: Authority) -> Iterator[FaultProxy]:
    with FaultProxy(airflow.url, tls=authority.build_context()) as proxy:
        yield proxy


def name_files(authority: Authority, which: str, path: Path) -> dict[str, str]:
    """All that can be declared, one of them at this path."""
    _, cert, key = authority.issue_client_cert()
    files = {"ca_bundle": authority.bundle, "client_cert": cert, "client_key": key}
    return files | {which: str(path)}


@pytest.mark.parametrize("which", FILES)
def test_a_file_that_is_not_there_is_named(
    server: ReverseProxy, authority: Authority, tmp_path: Path, which: str
) -> None:
    path = tmp_path / "gone.pem"
    with pytest.raises(TlsError, match=str(path)):
        connect(server.url, **name_files(authority, which, path)).fetch_dags()


@pytest.mark.parametrize("which", FILES)
@pytest.mark.parametrize("content", ["", "no PEM file", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_file_that_holds_no_such_thing_is_named(
    server: ReverseProxy, authority: Authority, tmp_path: Path, which: str, content: str
) -> None:
    """OpenSSL's own message, `no start line`, does not name which of three files it was."""
    path = tmp_path / "else.pem"
    path.write_text(content)
    with pytest.raises(TlsError, match=str(path)):
        connect(server.url, **name_files(authority, which, path)).fetch_dags()


def test_a_certificate_without_its_key_is_named(server: ReverseProxy, authority: Authority) -> None:
    _, cert, _ = authority.issue_client_cert()
    with pytest.raises(TlsError, match=cert):
        connect(server.url, ca_bundle=authority.bundle, client_cert=cert).fetch_dags()


def test_an_encrypted_key_is_an_error_and_no_prompt(authority: Authority, tmp_path: Path) -> None:
    """OpenSSL would ask on the terminal, and all threads would wait. In a process without one, it
    asks on stderr, and reads stdin."""
    both, _, _ = authority.issue_client_cert()
    locked = tmp_path / "locked.pem"
    encrypt_key(Path(both), locked)
    completed = subprocess.run(
        [sys.executable, "-c", LOAD_ENCRYPTED_KEY, str(locked)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=ROOT,
        start_new_session=True,
        timeout=300,
        check=True,
    )
    assert completed.stdout == f"the key in {locked} is encrypted; give one without a password\n"
    assert "phrase" not in completed.stderr


def encrypt_key(source: Path, target: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    content = source.read_bytes()
    key = serialization.load_pem_private_key(content, None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"pass phrase"),
    )
    target.write_bytes(locked + content[content.index(b"-----BEGIN CERTIFICATE") :])


def test_http_to_an_https_port_asks_whether_the_address_is_right(
    server: ReverseProxy,
) -> None:
    url = server.url.replace("https", "http")
    with pytest.raises(UnreachableError, match="is its `url` right") as error:
        declare_client(url, OPEN).session.request("PATCH", "/")  # which is not repeated
    assert PASSWORD not in format_error_chain(error.value)


def test_https_to_an_http_port_asks_whether_the_address_is_right(
    airflow: FakeAirflow,
) -> None:
    with pytest.raises(TlsError, match="Is `url` right, https and port included"):
        connect(airflow.url.replace("http", "https")).fetch_dags()


@pytest.mark.parametrize("fault", [reset(), reset(5, in_body=True), close(5, in_body=True)])
def test_a_read_that_breaks_in_the_middle_of_tls_is_repeated(
    secure: FaultProxy, authority: Authority, airflow: FakeAirflow, fault: object
) -> None:
    client = connect(secure.url, ca_bundle=authority.bundle)
    assert_works(client)
    secure.fail_next(fault)  # type: ignore[arg-type]
    assert_works(client)
    assert airflow.count("GET", "/dags") == 3


def test_a_deadline_holds_over_tls_too(secure: FaultProxy, authority: Authority) -> None:
    tls = {"ca_bundle": authority.bundle}
    client = declare_client(secure.url, http={"answer_timeout": 2}, tls=tls)
    assert_works(client)
    secure.fail_next(trickle(10, 0.1))
    with Stopwatch() as took, pytest.raises(UnreachableError, match="timed out"):
        client.fetch_dags()
    assert took.seconds < 10
    assert_works(client)


def test_a_server_that_is_silent_in_the_handshake_is_given_up_by_all_threads_in_time() -> None:
    """Whoever waits for its own handshake must not wait for those of others first."""
    with socket.socket() as silent, ThreadPoolExecutor(6) as threads:
        silent.bind(("127.0.0.1", 0))
        silent.listen(20)
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        client = declare_client(url, TOKEN, http=SHORT_TIMEOUTS, api="v2")
        with Stopwatch() as took:
            pending = [threads.submit(client.fetch_dags) for _ in range(6)]
            errors = [dags.exception(timeout=30) for dags in pending]
    assert {type(error) for error in errors} == {UnreachableError}
    assert took.seconds < 10


def test_threads_do_not_deadlock_on_a_server_with_one_worker(
    airflow: FakeAirflow, authority: Authority
) -> None:
    """It shakes hands in the order in which they came: who waits for another one's turn to do so,
    its own connection standing already, waits for ever."""
    context = authority.build_context()
    with (
        start_reverse_proxy(airflow, tls=context, has_one_worker=True) as server,
        ThreadPoolExecutor(8) as pool,
    ):
        client = declare_client(server.url, tls={"ca_bundle": authority.bundle})
        assert_works(client)
        pending = [pool.submit(client.fetch_dags) for _ in range(24)]
        errors = [dags.exception(timeout=60) for dags in pending]
    assert {error for error in errors if error is not None} == set()


def test_threads_that_all_load_our_certificate_do_not_end_the_process(
    authority: Authority,
) -> None:
    """In a process of its own, as OpenSSL ends the one that loads a key into what others use. The
    server hangs up at once, so that there are many connections in little time."""
    both, _, _ = authority.issue_client_cert()
    with FaultProxy(f"http://127.0.0.1:{find_free_port()}") as nobody:
        url = nobody.url.replace("http", "https")
        finished = subprocess.run(
            [sys.executable, "-c", CONNECT_IN_THREADS, url, authority.bundle, both],
            # Few authorities are soon loaded.
            env={**os.environ, "SSL_CERT_FILE": authority.bundle, "SSL_CERT_DIR": "/nonexistent"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert (finished.returncode, finished.stdout) == (0, "{'refused'}\n"), finished.stderr[-2000:]
