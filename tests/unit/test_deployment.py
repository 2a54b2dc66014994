"""Two code locations that declare one instance. Their sensors are stored as the daemon does it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.scheduler.instigation import InstigatorStatus, SensorInstigatorData, TickStatus

from federation_defs.dagster_io.deployment import find_left_cursor, find_same_sensor
from tests.unit.sensors import store_sensor, store_tick

SENSOR = "metrics__observation"
NOW = 1_800_000_000.0
FAILURE = TickStatus.FAILURE


@dataclass
class Sensor:
    """A sensor as it is stored.

    Attributes:
        ticked_s_ago: When its last tick began; None if it has not ticked yet.
        ended: How its ticks before that one ended, the first one first.
    """

    location: str
    name: str = SENSOR
    status: InstigatorStatus = InstigatorStatus.DECLARED_IN_CODE
    ticked_s_ago: float | None = 5.0
    interval_s: int = 1
    cursor: str | None = None
    ended: tuple[TickStatus, ...] = ()

    def store(self, instance: dg.DagsterInstance) -> None:
        at = None if self.ticked_s_ago is None else NOW - self.ticked_s_ago
        # The daemon forgets the last success before it evaluates a sensor (1.13).
        data = SensorInstigatorData(
            cursor=self.cursor,
            last_tick_start_timestamp=at,
            last_tick_success_timestamp=None,
            min_interval=self.interval_s,
        )
        origin = store_sensor(instance, self.location, self.name, data, self.status)
        for status in (*self.ended, TickStatus.STARTED):
            store_tick(instance, origin, status, at or NOW)


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


@pytest.mark.parametrize("ticked_s_ago", [5.0, None])
def test_of_two_locations_the_first_by_name_goes_on(
    instance: dg.DagsterInstance, ticked_s_ago: float | None
) -> None:
    for location in ("sales", "core"):
        Sensor(location, ticked_s_ago=ticked_s_ago).store(instance)
    assert find_same_sensor(instance, SENSOR, "core") is None
    assert find_same_sensor(instance, SENSOR, "sales") == "core"


@pytest.mark.parametrize(
    "other",
    [
        Sensor("core", ticked_s_ago=400),  # the location was removed
        Sensor("core", status=InstigatorStatus.STOPPED),
        Sensor("core", name="warehouse__observation"),
        Sensor("core", name="metrics__automation"),
    ],
)
def test_another_sensor_or_one_that_does_not_run_is_no_obstacle(
    instance: dg.DagsterInstance, other: Sensor
) -> None:
    for sensor in (other, Sensor("sales")):
        sensor.store(instance)
    assert find_same_sensor(instance, SENSOR, "sales") is None


def test_a_removed_location_is_no_obstacle_where_the_own_sensor_is_stopped(
    instance: dg.DagsterInstance,
) -> None:
    Sensor("core", ticked_s_ago=86_400).store(instance)
    Sensor("sales", status=InstigatorStatus.STOPPED).store(instance)
    assert find_same_sensor(instance, SENSOR, "sales") is None


def test_a_sensor_with_a_long_interval_is_found_between_its_ticks(
    instance: dg.DagsterInstance,
) -> None:
    Sensor("core", ticked_s_ago=500, interval_s=600).store(instance)
    Sensor("sales", interval_s=600).store(instance)
    assert find_same_sensor(instance, SENSOR, "sales") == "core"


@pytest.mark.parametrize(
    ("left", "own", "expected"),
    [
        (Sensor("sales", cursor="left"), None, "left"),
        (Sensor("sales", cursor="left", status=InstigatorStatus.STOPPED), None, "left"),
        (Sensor("sales", cursor="left", ticked_s_ago=8 * 86_400), None, None),
        (Sensor("sales", "metrics__events", cursor="left"), None, None),
        (Sensor("sales", cursor="left"), Sensor("core"), "left"),
        # As long as both locations declared it.
        (Sensor("sales", cursor="left"), Sensor("core", ended=(FAILURE, FAILURE)), "left"),
        # Where a person has reset the cursor of a sensor, it is not that of long ago again.
        (Sensor("sales", cursor="left"), Sensor("core", ended=(TickStatus.SUCCESS,)), None),
        (Sensor("sales", cursor="left"), Sensor("core", ended=(TickStatus.SKIPPED, FAILURE)), None),
        (Sensor("core", cursor="own"), None, None),
    ],
)
def test_the_first_tick_in_a_location_finds_the_cursor_that_another_one_has_left(
    instance: dg.DagsterInstance, left: Sensor, own: Sensor | None, expected: str | None
) -> None:
    Sensor("other", "warehouse__observation", cursor="another").store(instance)
    for sensor in filter(None, (left, own)):
        sensor.store(instance)
    assert find_left_cursor(instance, SENSOR, "core") == expected


def test_of_several_locations_the_one_that_ticked_last_has_left_the_cursor(
    instance: dg.DagsterInstance,
) -> None:
    Sensor("sales", cursor="older", ticked_s_ago=500).store(instance)
    Sensor("finance", cursor="newer", ticked_s_ago=400).store(instance)
    assert find_left_cursor(instance, SENSOR, "core") == "newer"
