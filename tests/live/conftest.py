"""The session's federation, and the Airflows that differ in how clients sign in."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import Airflows
from tests.live.airflow_servers import Server, ServerPool
from tests.live.airflow_setups import SETUPS
from tests.live.dagster_dev import DagsterDev
from tests.live.federation import Federation, start_federation
from tests.live.production import DagsterProduction

# The first test waits for the start of two Airflows and of Dagster, on a busy machine for minutes.
TIMEOUT_S = 1200
# These come first, in this order. What some look at happens during the tests of others: see
# `actions` and `outage`.
FIRST = [
    *("test_federation.py", "test_browser.py", "test_dependencies.py"),
    *("test_interruptions.py", "test_time.py"),
]
DEPLOYMENTS = {"dev": DagsterDev, "production": DagsterProduction}  # of the option --deployment


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.real_airflows)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TIMEOUT_S))
            if "federation" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.dagster_dev)
    items.sort(key=lambda item: (*FIRST, item.path.name).index(item.path.name))


@pytest.fixture(scope="session")
def federation(
    request: pytest.FixtureRequest, airflows: Airflows, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("federation")
    deployment = DEPLOYMENTS[str(request.config.getoption("deployment"))]
    with start_federation(airflows, folder, deployment) as federation:
        yield federation


@pytest.fixture(scope="session")
def actions(
    request: pytest.FixtureRequest, federation: Federation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Future[Any]]]:
    """What the tests of a module look at, by the module's name: the result of its function `act`.

    It begins when the first module asks for it, and goes on during the tests of other modules.
    """
    with ThreadPoolExecutor() as pool:
        yield {
            module.__name__: pool.submit(module.act, federation, tmp_path_factory.mktemp("act"))
            for module in find_modules(request.session)
            if hasattr(module, "act")
        }


@pytest.fixture(scope="session")
def outage(
    request: pytest.FixtureRequest, federation: Federation, actions: Mapping[str, Future[Any]]
) -> None:
    """All of Dagster is killed and started again, when all actions are over.

    Meanwhile happens what modules have as their function `act_without_dagster`.
    """
    wait(actions.values())
    federation.dagster.kill()
    for module in find_modules(request.session):
        if hasattr(module, "act_without_dagster"):
            module.act_without_dagster(federation)
    federation.dagster.start()


def find_modules(session: pytest.Session) -> set[ModuleType]:
    """Return the modules whose tests run."""
    functions = [item.obj for item in session.items if isinstance(item, pytest.Function)]
    return {sys.modules[function.__module__] for function in functions}


def on(*names: str) -> pytest.MarkDecorator:
    """Run a test on the Airflow server of each of these setups."""
    return pytest.mark.parametrize("airflow", names, indirect=True)


@pytest.fixture(scope="session")
def servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerPool]:
    """The servers of all tests of this session, started in the tests' order."""
    specs = [getattr(item, "callspec", None) for item in request.session.items]
    params = dict.fromkeys(spec.params.get("airflow") for spec in specs if spec is not None)
    names = [name for name in params if name in SETUPS]
    servers = ServerPool(tmp_path_factory.mktemp("servers"), names)
    yield servers
    servers.close()


@pytest.fixture
def airflow(request: pytest.FixtureRequest, servers: ServerPool) -> Server:
    """The real Airflow of a setup."""
    return servers.get(request.param)
