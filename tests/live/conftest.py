"""The lab of real Airflows, for the tests that say on which of its setups they run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.airflow_lab import Lab, Server
from tests.live.airflow_setups import SETUPS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.real_airflows)


def on(*names: str) -> pytest.MarkDecorator:
    """Runs a test on the server of each of these setups."""
    return pytest.mark.parametrize("airflow", names, indirect=True)


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The servers of all tests that are going to run, in their order."""
    specs = [getattr(item, "callspec", None) for item in request.session.items]
    params = dict.fromkeys(spec.params.get("airflow") for spec in specs if spec is not None)
    lab = Lab(tmp_path_factory.mktemp("lab"), [name for name in params if name in SETUPS])
    yield lab
    lab.close()


@pytest.fixture
def airflow(request: pytest.FixtureRequest, lab: Lab) -> Server:
    """The real Airflow of a setup."""
    return lab.get(request.param)
