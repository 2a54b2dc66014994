"""Fake Airflows for every test, and the real ones for those tests that can do with either.

Tests of the client's basics run on the fakes and on the demo's Airflows, and the fakes' shapes are
checked against the real ones. `pytest tests/contract -m "not real_airflows"` is for the impatient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import dagster as dg
import pytest
from dotenv import dotenv_values

from federation_defs.airflow.client import AirflowClient
from tests.conftest import ROOT, Airflows
from tests.contract.daemon import DAG, Daemon, Observed
from tests.contract.fake_airflow import FakeAirflow
from tests.contract.fake_database import Database
from tests.contract.worlds import FakeWorld, RealWorld, World, connect_to, run_dag

FAKES = ["fake-v1", "fake-v2"]
REAL = ["real-v1", "real-v2"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    real = [pytest.param(name, marks=pytest.mark.real_airflows) for name in REAL]
    if "world" in metafunc.fixturenames:
        metafunc.parametrize("world", [*FAKES, *real], indirect=True)
    if "real_world" in metafunc.fixturenames:
        metafunc.parametrize("real_world", real, indirect=True)


@dataclass(frozen=True)
class Airflow:
    """A fake Airflow, its database, and the client of the instance it stands for."""

    server: FakeAirflow
    client: AirflowClient

    @property
    def database(self) -> Database:
        return self.server.database


StartAirflow = Callable[..., Airflow]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """An empty Dagster."""
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def start_airflow() -> Iterator[StartAirflow]:
    """Starts a fake Airflow: of an API version, for an instance of a name."""
    with ExitStack() as running:

        def start(api: str = "v2", instance: str = "metrics") -> Airflow:
            server = running.enter_context(FakeAirflow(api))
            return Airflow(server, connect_to(server, instance))

        yield start


@pytest.fixture(params=FAKES)
def airflow(request: pytest.FixtureRequest, start_airflow: StartAirflow) -> Airflow:
    """A fake Airflow of each API version."""
    return start_airflow(request.param.removeprefix("fake-"))


@pytest.fixture
def airflow_v2(start_airflow: StartAirflow) -> Airflow:
    """A fake Airflow 3, for what has nothing to do with the API's version."""
    return start_airflow("v2")


@pytest.fixture
def observed(airflow_v2: Airflow, instance: dg.DagsterInstance) -> Observed:
    """A fake Airflow 3 with one selected DAG, and the daemon that watches it."""
    airflow_v2.database.add_dag(DAG)
    return Observed(airflow_v2.server, Daemon(airflow_v2.client, [DAG], instance))


@pytest.fixture
def world(request: pytest.FixtureRequest) -> World:
    """An Airflow of each API version, fake and real."""
    name: str = request.param
    if name in REAL:
        return build_real_world(request, name)
    start: StartAirflow = request.getfixturevalue("start_airflow")
    return FakeWorld(start(name.removeprefix("fake-")).server)


@pytest.fixture
def real_world(request: pytest.FixtureRequest) -> RealWorld:
    """A real Airflow of each API version."""
    return build_real_world(request, request.param)


@pytest.fixture(scope="session")
def real_worlds(airflows: Airflows) -> dict[str, RealWorld]:
    """The demo's Airflows, once the table is there from which metrics' DAG computes."""
    settings = dotenv_values(ROOT / ".env.example")

    def build(client: AirflowClient, dag_id: str) -> RealWorld:
        username = settings[f"{client.instance.upper()}_AIRFLOW_USERNAME"]
        assert username, "no account in .env.example"
        return RealWorld(client, dag_id, username)

    warehouse = build(airflows.warehouse, "load_customers")
    assert run_dag(warehouse).is_success
    return {"real-v1": warehouse, "real-v2": build(airflows.metrics, "customer_metrics")}


def build_real_world(request: pytest.FixtureRequest, name: str) -> RealWorld:
    """One of the demo's Airflows.

    Args:
        name: "real-v1" is warehouse (2.11, basic auth), "real-v2" metrics (3.3, password auth).
    """
    worlds: dict[str, RealWorld] = request.getfixturevalue("real_worlds")
    return worlds[name]
