"""A run of an instance that another code location may still observe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.scheduler.instigation import SensorInstigatorData

from federation_defs.execution.asset import find_other_location
from federation_defs.timing import Timing
from tests.unit.sensors import store_sensor

NOW = 1_800_000_000.0


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


class Clock:
    """Time passes only in pauses. The sensors of some locations tick meanwhile."""

    def __init__(self, instance: dg.DagsterInstance, *ticking: str) -> None:
        self.instance, self.ticking, self.now = instance, ticking, NOW
        self.timing = replace(Timing(), sleep=self.sleep)
        for location in ("core", "sales"):
            self._tick(location)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for location in self.ticking:
            self._tick(location)

    def _tick(self, location: str) -> None:
        data = SensorInstigatorData(last_tick_start_timestamp=self.now, min_interval=1)
        store_sensor(self.instance, location, "metrics__observation", data)


def test_a_run_is_refused_while_the_other_location_observes_the_instance(
    instance: dg.DagsterInstance,
) -> None:
    clock = Clock(instance, "core", "sales")
    assert find_other_location(instance, "metrics", "sales", clock.timing) == "core"
    assert find_other_location(instance, "metrics", "core", clock.timing) is None


def test_a_run_waits_until_it_is_sure_that_the_instance_has_moved_from_the_other_location(
    instance: dg.DagsterInstance,
) -> None:
    clock = Clock(instance, "sales")
    assert find_other_location(instance, "metrics", "sales", clock.timing) is None
    assert 300 <= clock.now - NOW < 310
