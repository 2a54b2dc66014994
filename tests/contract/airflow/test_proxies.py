"""Forward proxies, as the environment names them; and their passwords, which nobody sees."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator

import pytest

from federation_defs.errors import AirflowError, UnreachableError
from tests.contract.airflow.test_tls import Authority, assert_works, connect
from tests.contract.clients import (
    SHORT_TIMEOUTS,
    Stopwatch,
    call_within,
    clear_environment,
    declare_client,
    format_error_chain,
)
from tests.contract.fakes.airflow import FakeAirflow
from tests.contract.fakes.proxies import (
    ForwardProxy,
    ReverseProxy,
    start_forward_proxy,
    start_reverse_proxy,
)
from tests.processes import find_free_port

OPEN = {"type": "none"}
ACCOUNT = "clerk:proxy-secret"


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_environment(monkeypatch)


@pytest.fixture
def airflow() -> Iterator[FakeAirflow]:
    with FakeAirflow("v2") as server:
        server.database.add_dag("load_customers")
        yield server


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[ForwardProxy]:
    with start_forward_proxy() as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy.build_url())
        yield proxy


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def secure(airflow: FakeAirflow, authority: Authority) -> Iterator[ReverseProxy]:
    with start_reverse_proxy(airflow, tls=authority.build_context()) as server:
        yield server


def test_http_goes_by_the_proxy_that_the_environment_names(
    airflow: FakeAirflow, proxy: ForwardProxy
) -> None:
    assert_works(declare_client(airflow.url))
    assert [line.partition("?")[0].split()[:2] for line in proxy.requests] == [
        ["GET", f"{airflow.url}/api/v2/version"],
        ["POST", f"{airflow.url}/auth/token"],
        ["GET", f"{airflow.url}/api/v2/dags"],
    ]


def test_https_goes_through_the_proxy_unread(
    secure: ReverseProxy, authority: Authority, proxy: ForwardProxy
) -> None:
    client = connect(secure.url, ca_bundle=authority.bundle)
    assert_works(client)
    host = secure.url.removeprefix("https://")
    assert {line.rpartition(" ")[0] for line in proxy.requests} == {f"CONNECT {host}"}


def test_a_host_of_no_proxy_is_asked_directly(
    airflow: FakeAirflow, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "example.com,127.0.0.1")
    assert_works(declare_client(airflow.url))
    assert proxy.requests == []


def test_the_proxys_account_is_for_the_proxy_alone(
    secure: ReverseProxy,
    authority: Authority,
    airflow: FakeAirflow,
    proxy: ForwardProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy.account = ACCOUNT
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, proxy.build_url(ACCOUNT))
    assert_works(declare_client(airflow.url))
    assert_works(connect(secure.url, ca_bundle=authority.bundle))
    assert not [headers for headers in secure.requests if "Proxy-Authorization" in headers]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_refuses_us_is_reported_by_its_status_and_without_its_password(
    proxy: ForwardProxy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    scheme: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    proxy.account = "clerk:another"
    monkeypatch.setenv(f"{scheme.upper()}_PROXY", proxy.build_url(ACCOUNT))
    session = declare_client(f"{scheme}://airflow.example.com", OPEN).session
    with pytest.raises(AirflowError, match="407") as error:
        raise session.build_error(session.request("PATCH", "/"))
    assert "proxy-secret" not in format_error_chain(error.value) + caplog.text


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_down_is_reported_as_the_proxy(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    gone = f"http://{ACCOUNT}@127.0.0.1:{find_free_port()}"
    monkeypatch.setenv(f"{scheme.upper()}_PROXY", gone)
    client = declare_client(f"{scheme}://airflow.example.com", OPEN)
    with pytest.raises(UnreachableError, match=r"the proxy: Connection refused") as error:
        client.session.request("PATCH", "/")  # which is not repeated
    assert "proxy-secret" not in format_error_chain(error.value)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_stalls_is_given_up_at_its_time_out_and_not_tried_again(
    proxy: ForwardProxy, scheme: str
) -> None:
    proxy.stalls = True
    client = declare_client(f"{scheme}://airflow.example.com", http=SHORT_TIMEOUTS)
    with Stopwatch() as took, pytest.raises(UnreachableError, match="timed out") as error:
        call_within(20, client.fetch_dags)
    assert took.seconds < 10
    assert error.value.is_late
    assert len(proxy.requests) == 1


def test_a_proxy_that_no_connection_reaches_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        port: int = silent.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]  # fill its queue
        for waiter in waiting:
            waiter.setblocking(False)
            waiter.connect_ex(("127.0.0.1", port))
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
        client = declare_client("http://airflow.example.com", http=SHORT_TIMEOUTS)
        with Stopwatch() as took, pytest.raises(UnreachableError, match="the proxy") as error:
            call_within(20, client.fetch_dags)
        for waiter in waiting:
            waiter.close()
    assert took.seconds < 10
    assert error.value.is_late


@pytest.mark.parametrize("address", ["127.0.0.1:port", "[bad", "", "127.0.0.1:99999"])
def test_an_invalid_proxy_address_is_reported_without_its_password(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://{ACCOUNT}@{address}")
    client = declare_client("http://airflow.example.com", OPEN)
    with pytest.raises(AirflowError) as error:
        client.session.request("PATCH", "/")
    assert "proxy-secret" not in format_error_chain(error.value)
    assert "proxy" in str(error.value)


@pytest.mark.parametrize("hosts", ["localhost,10.0.0.0/8,::1", "localhost:8080,a.example:9090"])
def test_hosts_that_go_by_no_proxy_and_other_programs_proxies_are_no_address_of_ours(
    airflow: FakeAirflow, monkeypatch: pytest.MonkeyPatch, hosts: str
) -> None:
    monkeypatch.setenv("NO_PROXY", hosts)
    monkeypatch.setenv("KUBE_PROXY", "a:b:c")
    client = declare_client(airflow.url)
    assert [dag.dag_id for dag in client.fetch_dags()] == ["load_customers"]


def test_a_socks_proxy_is_reported_as_unsupported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    client = declare_client("http://airflow.example.com", OPEN)
    with pytest.raises(UnreachableError, match=r"the proxy: .* not an http address"):
        client.session.request("PATCH", "/")


def test_no_deadline_and_no_refusal_takes_a_connection_from_a_proxys_pool(
    airflow: FakeAirflow, proxy: ForwardProxy
) -> None:
    client = declare_client(airflow.url, http={**SHORT_TIMEOUTS, "max_connections": 2})
    assert_works(client)
    proxy.stalls = True
    for _ in range(3):
        with pytest.raises(UnreachableError):
            call_within(60, client.fetch_dags)
    proxy.stalls = False
    assert len(call_within(60, client.fetch_dags)) == 1
