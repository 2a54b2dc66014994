"""Where an instance may be, and what goes there: nothing that was not declared."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from federation_defs.airflow.client import AirflowClient
from federation_defs.errors import UnexpectedAnswerError
from tests.contract.clients import SIGN_INS, clear_environment, declare_client
from tests.contract.fakes.airflow import FakeAirflow
from tests.contract.fakes.fault_proxy import FaultProxy
from tests.contract.fakes.proxies import start_reverse_proxy


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clear_environment(monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(params=["v1", "v2"])
def airflow(request: pytest.FixtureRequest) -> Iterator[FakeAirflow]:
    with FakeAirflow(request.param) as server:
        server.database.add_dag("load_customers", schedule="@daily")
        yield server


def connect(airflow: FakeAirflow, url: str) -> AirflowClient:
    return declare_client(url, SIGN_INS[airflow.api])


def assert_works(client: AirflowClient) -> None:
    """Reads, triggers and looks again, as a federation does."""
    assert [dag.dag_id for dag in client.fetch_dags()] == ["load_customers"]
    assert client.trigger_run("load_customers", "mine+1").run_id == "mine+1"
    assert client.fetch_run("load_customers", "mine+1") is not None
    assert client.fetch_version()


@pytest.mark.parametrize("end", ["", "/", "//"])
def test_an_instance_may_be_at_the_root(airflow: FakeAirflow, end: str) -> None:
    client = connect(airflow, airflow.url + end)
    assert_works(client)
    assert client.build_dag_url("load_customers").startswith(f"{airflow.url}/dags/")


@pytest.mark.parametrize("path", ["/airflow", "/data/team-a/airflow"])
@pytest.mark.parametrize("end", ["", "/"])
def test_an_instance_may_be_below_a_path(airflow: FakeAirflow, path: str, end: str) -> None:
    with start_reverse_proxy(airflow, path) as server:
        client = connect(airflow, server.url + end)
        assert_works(client)
        assert client.build_dag_url("load_customers").startswith(f"{server.url}/dags/")


def test_an_instance_whose_path_was_left_out_is_asked_for_it(airflow: FakeAirflow) -> None:
    with start_reverse_proxy(airflow, "/airflow") as server:
        client = connect(airflow, server.url.removesuffix("/airflow"))
        with pytest.raises(UnexpectedAnswerError, match="web address, path prefix included"):
            client.fetch_dags()


def test_an_instance_may_have_an_ipv6_address(airflow: FakeAirflow) -> None:
    with FaultProxy(airflow.url, host="::1") as proxy:
        client = connect(airflow, proxy.url)
        assert_works(client)
        assert client.url == f"http://[::1]:{proxy.port}"


def test_requests_carry_user_agent_and_accept_headers(airflow: FakeAirflow) -> None:
    with start_reverse_proxy(airflow) as server:
        assert_works(connect(airflow, server.url))
    expected = f"federation-defs/{version('federation-defs')}"
    assert {headers["User-Agent"] for headers in server.requests} == {expected}
    assert {headers["Accept"] for headers in server.requests} == {"application/json"}


@pytest.mark.parametrize("where", [".netrc", "another"])
def test_an_account_of_netrc_is_not_sent(
    airflow: FakeAirflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """requests sends it wherever it is given no sign-in, and in place of one after a redirect."""
    netrc = tmp_path / where
    netrc.write_text("machine 127.0.0.1 login intruder password netrc-secret\n")
    netrc.chmod(0o600)
    if where != ".netrc":
        monkeypatch.setenv("NETRC", str(netrc))
    with start_reverse_proxy(airflow) as server:
        assert_works(connect(airflow, server.url))
        open_client = declare_client(server.url, {"type": "none"})
        open_client.fetch_version()
        open_client.session.request("GET", f"/api/{airflow.api}/dags")
    sent = {headers.get("Authorization", "nothing").split()[0] for headers in server.requests}
    assert sent == {"nothing", "Basic" if airflow.api == "v1" else "Bearer"}
    assert not [
        headers for headers in server.requests if "aW50cnVkZXI" in headers.get("Authorization", "")
    ]


@pytest.mark.parametrize("attributes", ["", "; Path=/", "; Domain=127.0.0.1", "; Max-Age=3600"])
def test_a_cookie_that_the_server_sets_is_not_kept(airflow: FakeAirflow, attributes: str) -> None:
    """A session of the web pages is a sign-in of its own, and would outlast the declared one."""
    with start_reverse_proxy(airflow) as server:
        server.sets = {"Set-Cookie": f"session=of-the-web-pages{attributes}"}
        assert_works(connect(airflow, server.url))
    assert not [headers for headers in server.requests if "Cookie" in headers]


def test_nothing_is_sent_before_it_is_asked_for(airflow: FakeAirflow) -> None:
    connect(airflow, airflow.url)
    assert airflow.requests == []


def test_an_account_may_have_letters_of_any_language(airflow: FakeAirflow) -> None:
    """HTTP says nothing of them; Airflow, and so we, take names and passwords for UTF-8."""
    airflow.password = "pässwörd-ł€-パスワード"
    account = {**SIGN_INS[airflow.api], "password": airflow.password}
    assert_works(declare_client(airflow.url, account))


def test_ids_of_any_letters_reach_the_server_as_they_are(airflow: FakeAirflow) -> None:
    dag_id, run_id = "tägliche.Zählung-日本", "manual__2026-01-02T03:04:05+00:00 100%?#&;=ü"
    airflow.database.add_dag(dag_id)
    airflow.database.start_run(dag_id, run_id)
    run = connect(airflow, airflow.url).fetch_run(dag_id, run_id)
    assert run is not None
    assert (run.dag_id, run.run_id) == (dag_id, run_id)
