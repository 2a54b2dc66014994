"""Two code locations that declare one instance. Their sensors are stored as the daemon does it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.scheduler.instigation import InstigatorStatus, SensorInstigatorData, TickStatus

from federation_defs.dagster_io.code_locations import find_moved_cursor, find_observing_location
from federation_defs.timing import Timing
from tests.contract.storages import OpenInstance
from tests.unit.sensors import store_sensor, store_tick

SENSOR = "metrics__observation"
NOW = 1_800_000_000.0
TIMING = Timing(utc_now=lambda: datetime.fromtimestamp(NOW, timezone.utc))
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
    cursor: str | None = None
    ended: tuple[TickStatus, ...] = ()

    def store(self, instance: dg.DagsterInstance) -> None:
        at = None if self.ticked_s_ago is None else NOW - self.ticked_s_ago
        # The daemon forgets the last success before it evaluates a sensor (1.13).
        data = SensorInstigatorData(
            cursor=self.cursor,
            last_tick_start_timestamp=at,
            last_tick_success_timestamp=None,
            min_interval=1,
        )
        origin = store_sensor(instance, self.location, self.name, data, self.status)
        for status in (*self.ended, TickStatus.STARTED):
            store_tick(instance, origin, status, at or NOW)


@pytest.fixture
def instance(open_instance: OpenInstance, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with open_instance(tmp_path / "dagster") as instance:
        yield instance


@pytest.mark.parametrize("kind", ["observation", "automation", "events"])
def test_of_several_locations_the_alphabetically_first_goes_on(
    instance: dg.DagsterInstance, kind: str
) -> None:
    """Also if a person has switched off some of its sensors."""
    for location in ("sales", "finance"):
        Sensor(location).store(instance)
    Sensor("core", status=InstigatorStatus.STOPPED).store(instance)
    Sensor("core", f"metrics__{kind}").store(instance)
    assert find_observing_location(instance, "metrics", "core", TIMING) is None
    for other in ("finance", "sales"):
        assert find_observing_location(instance, "metrics", other, TIMING) == ("core", NOW - 5)


@pytest.mark.parametrize(
    "other",
    [
        Sensor("core", ticked_s_ago=400),  # the location was removed
        Sensor("core", status=InstigatorStatus.STOPPED),
        Sensor("core", ticked_s_ago=None),
        Sensor("core", name="warehouse__observation"),
        Sensor("core", ticked_s_ago=-86_400),  # the location was removed, and a clock put right
    ],
)
def test_another_sensor_or_one_that_does_not_run_is_no_obstacle(
    instance: dg.DagsterInstance, other: Sensor
) -> None:
    for sensor in (other, Sensor("sales")):
        sensor.store(instance)
    assert find_observing_location(instance, "metrics", "sales", TIMING) is None


def test_a_removed_location_is_no_obstacle_where_the_own_sensor_is_stopped(
    instance: dg.DagsterInstance,
) -> None:
    Sensor("core", ticked_s_ago=86_400).store(instance)
    Sensor("sales", status=InstigatorStatus.STOPPED).store(instance)
    assert find_observing_location(instance, "metrics", "sales", TIMING) is None


def test_a_clock_that_was_wrong_once_hides_no_location(instance: dg.DagsterInstance) -> None:
    Sensor("removed", "warehouse__observation", ticked_s_ago=-86_400).store(instance)
    Sensor("core", cursor="moved").store(instance)
    assert find_observing_location(instance, "metrics", "sales", TIMING) == ("core", NOW - 5)
    assert find_moved_cursor(instance, SENSOR, "sales", TIMING) == "moved"


@pytest.mark.parametrize(
    ("moved", "own", "expected"),
    [
        (Sensor("sales", cursor="moved"), None, "moved"),
        (Sensor("sales", cursor="moved", status=InstigatorStatus.STOPPED), None, "moved"),
        (Sensor("sales", cursor="moved", ticked_s_ago=8 * 86_400), None, None),
        (Sensor("sales", "metrics__events", cursor="moved"), None, None),
        (Sensor("sales", cursor="moved"), Sensor("finance", ticked_s_ago=1), "moved"),  # refused
        (Sensor("sales", cursor="moved"), Sensor("core"), "moved"),
        # As long as both locations declared it.
        (Sensor("sales", cursor="moved"), Sensor("core", ended=(FAILURE, FAILURE)), "moved"),
        # Where a person has reset the cursor of a sensor, it is not that of long ago again.
        (Sensor("sales", cursor="moved"), Sensor("core", ended=(TickStatus.SUCCESS,)), None),
        (
            Sensor("sales", cursor="moved"),
            Sensor("core", ended=(TickStatus.SKIPPED, FAILURE)),
            None,
        ),
        (Sensor("core", cursor="own"), None, None),
    ],
)
def test_the_first_tick_in_a_location_finds_the_cursor_that_another_one_has_left(
    instance: dg.DagsterInstance, moved: Sensor, own: Sensor | None, expected: str | None
) -> None:
    Sensor("other", "warehouse__observation", cursor="another").store(instance)
    for sensor in filter(None, (moved, own)):
        sensor.store(instance)
    assert find_moved_cursor(instance, SENSOR, "core", TIMING) == expected


def test_of_several_locations_the_one_that_ticked_last_has_left_the_cursor(
    instance: dg.DagsterInstance,
) -> None:
    Sensor("sales", cursor="older", ticked_s_ago=500).store(instance)
    Sensor("finance", cursor="newer", ticked_s_ago=400).store(instance)
    assert find_moved_cursor(instance, SENSOR, "core", TIMING) == "newer"
