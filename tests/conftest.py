"""What all tests share: options, and the demo's two real Airflows."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from hypothesis import HealthCheck, settings

from tests.airflows import ROOT as ROOT
from tests.airflows import STARTED_AIRFLOWS, Airflows, start_airflows
from tests.contract.storages import STORAGES, OpenInstance, prepare
from tests.processes import end_on_signals
from tests.unit.project import Project

# The same examples in each run, unless more are asked for, and no time limit for one: other
# processes may slow it down.
settings.register_profile(
    "tests",
    deadline=None,
    derandomize="HISTORIES" not in os.environ,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--storage", choices=STORAGES, default="sqlite", help="of Dagster's instances in tests"
    )
    parser.addoption(
        "--deployment",
        choices=["dev", "production"],
        default="dev",
        help="how live tests run Dagster: `dagster dev`, or as `make demo-production`",
    )


def pytest_configure() -> None:
    end_on_signals()


def pytest_collection_finish() -> None:
    """Leave what was imported out of all later garbage collections."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """An empty project, whose module can be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    return Project(tmp_path, f"project_of_{tmp_path.name}")


@pytest.fixture(scope="session")
def open_instance(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OpenInstance]:
    """A function that opens an empty Dagster instance on the storage that is tested."""
    storage = str(pytestconfig.getoption("--storage"))
    with prepare(storage, tmp_path_factory.mktemp("dagster")) as open_instance:
        yield open_instance


@pytest.fixture(scope="session", autouse=True)
def read_revisions_once() -> Iterator[None]:
    """Let alembic read the revisions of Dagster's tables once, not for each instance."""
    read, known = ScriptDirectory.from_config, dict[str | None, ScriptDirectory]()

    def read_once(config: Config) -> ScriptDirectory:
        location = config.get_main_option("script_location")
        if location not in known:
            known[location] = read(config)
        return known[location]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptDirectory, "from_config", read_once)
        yield


@pytest.fixture(scope="session")
def airflows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflows]:
    """The Airflows that run already, or two that run as long as the session."""
    if exported := os.environ.get(STARTED_AIRFLOWS):
        found = json.loads(exported)
        yield Airflows(Path(found["lake"]), found["env"])
        return
    with start_airflows(tmp_path_factory.mktemp("demo")) as airflows:
        yield airflows
