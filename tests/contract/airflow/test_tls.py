"""TLS: which certificates the client trusts and sends, and its errors."""

from __future__ import annotations

import logging
import ssl
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import trustme
from urllib3.exceptions import InsecureRequestWarning

from federation_defs.airflow.client import AirflowClient
from federation_defs.errors import TlsError
from tests.contract.clients import SIGN_INS, clear_environment, declare_client
from tests.contract.fakes.airflow import FakeAirflow
from tests.contract.fakes.proxies import ReverseProxy, start_reverse_proxy

OURS = ("127.0.0.1", "localhost")


class Authority:
    """A certificate authority that no system knows, and its files.

    Attributes:
        bundle: Its own certificate.
    """

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self.bundle = str(folder / "authority.pem")
        self._ca.cert_pem.write_to_path(self.bundle)

    def build_context(self, *names: str, wants_client: bool = False, **options: Any) -> Any:
        """What a server proves itself with.

        Args:
            wants_client: Clients have to show a certificate of this authority.
            options: As trustme takes them.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(*(names or OURS), **options).configure_cert(context)
        if wants_client:
            self._ca.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def issue_client_cert(self) -> tuple[str, str, str]:
        """Files: certificate and key in one, and each of its own."""
        issued = self._ca.issue_cert("federation@example.com")
        paths = [self._folder / name for name in ("both.pem", "cert.pem", "key.pem")]
        issued.private_key_and_cert_chain_pem.write_to_path(str(paths[0]))
        issued.cert_chain_pems[0].write_to_path(str(paths[1]))
        issued.private_key_pem.write_to_path(str(paths[2]))
        return str(paths[0]), str(paths[1]), str(paths[2])


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_environment(monkeypatch)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def airflow() -> Iterator[FakeAirflow]:
    with FakeAirflow("v2") as server:
        server.database.add_dag("load_customers")
        yield server


@pytest.fixture
def secure(airflow: FakeAirflow, authority: Authority) -> Iterator[ReverseProxy]:
    with start_reverse_proxy(airflow, tls=authority.build_context()) as server:
        yield server


def connect(url: str, **tls: Any) -> AirflowClient:
    return declare_client(url, SIGN_INS["v2"], tls=tls)


def assert_works(client: AirflowClient) -> None:
    assert [dag.dag_id for dag in client.fetch_dags()] == ["load_customers"]


def refuses(problem: str) -> AbstractContextManager[pytest.ExceptionInfo[TlsError]]:
    return pytest.raises(TlsError, match=rf"Airflow 'metrics' can't be trusted at .*{problem}")


def test_an_unknown_authority_is_not_trusted_and_the_key_that_helps_is_named(
    secure: ReverseProxy,
) -> None:
    with refuses(r"certificate verify failed.*tls\.ca_bundle"):
        connect(secure.url).fetch_dags()
    assert secure.requests == []


def test_a_declared_authority_is_trusted(secure: ReverseProxy, authority: Authority) -> None:
    assert_works(connect(secure.url, ca_bundle=authority.bundle))


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_an_authority_of_the_system_is_trusted(
    secure: ReverseProxy, authority: Authority, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Where a company puts its own: OpenSSL reads the first, and requests the other."""
    monkeypatch.setenv(variable, authority.bundle)
    assert_works(connect(secure.url))


def test_an_authority_of_the_system_is_trusted_beside_a_declared_one(
    secure: ReverseProxy, authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", authority.bundle)
    assert_works(connect(secure.url, ca_bundle=Authority(tmp_path).bundle))


def test_another_host_of_the_same_authority_is_not_trusted(
    airflow: FakeAirflow, authority: Authority
) -> None:
    context = authority.build_context("elsewhere.example.com")
    with start_reverse_proxy(airflow, tls=context) as server, refuses("mismatch"):
        connect(server.url, ca_bundle=authority.bundle).fetch_dags()


def test_a_certificate_that_has_ended_is_not_trusted(
    airflow: FakeAirflow, authority: Authority
) -> None:
    now = datetime.now(timezone.utc)
    began, ended = now - timedelta(days=9), now - timedelta(days=1)
    context = authority.build_context(not_before=began, not_after=ended)
    with start_reverse_proxy(airflow, tls=context) as server, refuses("expired"):
        connect(server.url, ca_bundle=authority.bundle).fetch_dags()


def test_without_verification_any_server_is_trusted_and_a_warning_logged(
    secure: ReverseProxy, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureRequestWarning)  # urllib3's, at every request
        client = connect(secure.url, verify=False)
        assert_works(client)
        assert_works(client)
    (warning,) = [record for record in caplog.records if record.name.startswith("federation_defs")]
    assert "Airflow 'metrics' is not verified" in warning.getMessage()


def test_an_instance_that_is_verified_warns_of_nothing(
    secure: ReverseProxy, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    assert_works(connect(secure.url, ca_bundle=authority.bundle))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_without_verification_the_environment_is_ignored(
    secure: ReverseProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", Authority(tmp_path).bundle)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureRequestWarning)
        assert_works(connect(secure.url, verify=False))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_server_that_wants_our_certificate_is_reported(
    airflow: FakeAirflow, authority: Authority, version: ssl.TLSVersion
) -> None:
    """In TLS 1.3 it says so only after the request was sent."""
    context = authority.build_context(wants_client=True)
    context.minimum_version = context.maximum_version = version
    with start_reverse_proxy(airflow, tls=context) as server:
        for _ in range(10):
            with refuses(r"tls\.client_cert"):
                connect(server.url, ca_bundle=authority.bundle).fetch_dags()


def test_our_certificate_is_shown_to_a_server_that_wants_it(
    airflow: FakeAirflow, authority: Authority
) -> None:
    both, cert, key = authority.issue_client_cert()
    with start_reverse_proxy(airflow, tls=authority.build_context(wants_client=True)) as server:
        assert_works(connect(server.url, ca_bundle=authority.bundle, client_cert=both))
        apart = {"client_cert": cert, "client_key": key}
        assert_works(connect(server.url, ca_bundle=authority.bundle, **apart))


def test_a_certificate_of_ours_from_another_authority_is_refused(
    airflow: FakeAirflow, authority: Authority, tmp_path: Path
) -> None:
    both, _, _ = Authority(tmp_path).issue_client_cert()
    context = authority.build_context(wants_client=True)
    with start_reverse_proxy(airflow, tls=context) as server, refuses(r"tls\.client_cert"):
        connect(server.url, ca_bundle=authority.bundle, client_cert=both).fetch_dags()
