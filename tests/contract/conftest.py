"""Fake Airflows for every test, and the real ones for those tests that can do with either.

Tests of the client's basics run on the fakes and on the demo's Airflows, and the fakes' shapes are
checked against the real ones. `pytest tests/contract -m "not real_airflows"` is for the impatient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest

from federation_defs.airflow.client import AirflowClient
from tests.conftest import Airflows
from tests.contract.fakes.airflow import FakeAirflow
from tests.contract.fakes.database import Database
from tests.contract.observation.daemon import DAG, Daemon, Observed
from tests.contract.storages import OpenInstance
from tests.contract.worlds import (
    SIGN_INS,
    FakeWorld,
    RealWorld,
    Upgraded,
    World,
    connect,
    connect_to,
    start_upgradable,
)

FAKES = ["fake-v1", "fake-v2"]
REAL = ["real-v1", "real-v2"]


WORLDS = {
    "world": [*FAKES, *REAL],
    "world_v1": ["fake-v1", "real-v1"],
    "world_v2": ["fake-v2", "real-v2"],
    "real_world": REAL,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture in WORLDS.keys() & set(metafunc.fixturenames):
        # `make real-airflows` runs no other tests of `tests/contract`.
        assert "/tests/contract/airflow/" in metafunc.definition.path.as_posix()
        params = [
            pytest.param(name, marks=pytest.mark.real_airflows) if name in REAL else name
            for name in WORLDS[fixture]
        ]
        metafunc.parametrize(fixture, params, indirect=True)


@dataclass(frozen=True)
class Airflow:
    """A fake Airflow, its database, and a client."""

    server: FakeAirflow
    client: AirflowClient

    @property
    def database(self) -> Database:
        return self.server.database


StartAirflow = Callable[..., Airflow]


@pytest.fixture
def instance(open_instance: OpenInstance, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An empty Dagster instance that is not in memory, since threads deadlock on one that is."""
    with open_instance(tmp_path / "dagster") as instance:
        yield instance


@pytest.fixture
def start_airflow() -> Iterator[StartAirflow]:
    """A function that starts a fake Airflow of an API version and an instance name."""
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
    """A fake Airflow 3, for tests that do not depend on the API version."""
    return start_airflow("v2")


@pytest.fixture(params=["v1", "v2"])
def upgraded(request: pytest.FixtureRequest) -> Iterator[Upgraded]:
    """A fake Airflow of each API version that a test upgrades."""
    with start_upgradable(request.param) as upgraded:
        yield upgraded


@pytest.fixture
def observed(airflow_v2: Airflow, instance: dg.DagsterInstance) -> Observed:
    """A fake Airflow 3 with one selected DAG, and a sensor that observes it."""
    airflow_v2.database.add_dag(DAG)
    return Observed(airflow_v2.server, Daemon(airflow_v2.client, [DAG], instance))


@pytest.fixture
def world(request: pytest.FixtureRequest) -> World:
    """An Airflow of each API version, fake and real."""
    return build_world(request)


@pytest.fixture
def world_v1(request: pytest.FixtureRequest) -> World:
    """An Airflow 2, fake and real."""
    return build_world(request)


@pytest.fixture
def world_v2(request: pytest.FixtureRequest) -> World:
    """An Airflow 3, fake and real."""
    return build_world(request)


@pytest.fixture
def real_world(request: pytest.FixtureRequest) -> RealWorld:
    """A real Airflow of each API version."""
    return build_real_world(request, request.param)


@pytest.fixture
def fake_world(airflow: Airflow) -> FakeWorld:
    """A fake Airflow of each API version, with the DAGs in `dags/`."""
    return FakeWorld(airflow.server)


@pytest.fixture(scope="session")
def real_worlds(airflows: Airflows) -> dict[str, RealWorld]:
    def build(name: str, api: str) -> RealWorld:
        url, username, password = (
            airflows.env[f"{name.upper()}_AIRFLOW_{what}"]
            for what in ("URL", "USERNAME", "PASSWORD")
        )
        client = connect(url, SIGN_INS[api], password, name, username)
        return RealWorld(client, "quick", username)

    return {"real-v1": build("warehouse", "v1"), "real-v2": build("metrics", "v2")}


def build_world(request: pytest.FixtureRequest) -> World:
    name: str = request.param
    if name in REAL:
        return build_real_world(request, name)
    start: StartAirflow = request.getfixturevalue("start_airflow")
    return FakeWorld(start(name.removeprefix("fake-")).server)


def build_real_world(request: pytest.FixtureRequest, name: str) -> RealWorld:
    """One of the demo's Airflows.

    Args:
        name: "real-v1" is warehouse (2.11, basic auth), "real-v2" metrics (3.3, password auth).
    """
    worlds: dict[str, RealWorld] = request.getfixturevalue("real_worlds")
    return worlds[name]


@pytest.fixture
def threaded_instance(open_instance: OpenInstance, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """A Dagster whose daemon evaluates sensors in parallel, so that ticks may be long."""
    sensors = {"use_threads": True, "num_workers": 8}
    with open_instance(tmp_path / "threaded", sensors=sensors) as instance:
        yield instance
