"""What all tests of steps share."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

from tests.waiting import wait_for


@pytest.fixture(autouse=True)
def end_steps(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave no thread of a step at work. It would write to Dagster's database in another test."""
    if "instance" in request.fixturenames:
        request.getfixturevalue("instance")  # is closed after this fixture
    yield
    if find_threads("cancellation", "heartbeat"):
        gc.collect()  # closes steps that were interrupted in Dagster's code
    wait_for(lambda: not find_threads("cancellation"), "no step is left", interval_s=0.02)


def find_threads(*names: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name in names]
