"""A run of an instance that another code location may still observe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.scheduler.instigation import SensorInstigatorData

from federation_defs.dagster_io.code_locations import wait_for_observing_location
from federation_defs.dagster_io.run_tags import is_only_request
from federation_defs.timing import Timing
from tests.contract.storages import OpenInstance
from tests.unit.sensors import store_sensor

NOW = 1_800_000_000.0
JOB = dg.GraphDefinition("job").to_job()


@pytest.fixture
def instance(open_instance: OpenInstance, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with open_instance(tmp_path / "dagster") as instance:
        yield instance


class Clock:
    """Time passes only in pauses. The sensors of some locations tick meanwhile."""

    def __init__(self, instance: dg.DagsterInstance, *ticking: str) -> None:
        self.instance, self.ticking, self.now = instance, ticking, NOW
        self.timing = replace(
            Timing(),
            sleep=self.sleep,
            monotonic=lambda: self.now,
            utc_now=lambda: datetime.fromtimestamp(self.now, timezone.utc),
        )
        for location in ("core", "sales"):
            self.tick(location)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for location in self.ticking:
            self.tick(location)

    def tick(self, location: str) -> None:
        data = SensorInstigatorData(last_tick_start_timestamp=self.now, min_interval=1)
        store_sensor(self.instance, location, "metrics__observation", data)

    def wait_for_observing_location(self, location: str) -> str | None:
        log = dg.build_op_context(instance=self.instance).log
        return wait_for_observing_location(self.instance, "metrics", location, self.timing, log)


def test_a_run_is_refused_while_the_other_location_observes_the_instance(
    instance: dg.DagsterInstance,
) -> None:
    clock = Clock(instance, "core", "sales")
    assert clock.wait_for_observing_location("sales") == "core"
    assert clock.wait_for_observing_location("core") is None


@pytest.mark.parametrize("ticking", [["sales"], []])  # without a daemon, nothing ticks
def test_a_run_waits_until_it_is_sure_that_the_instance_has_moved_from_the_other_location(
    instance: dg.DagsterInstance, ticking: list[str]
) -> None:
    clock = Clock(instance, *ticking)
    assert clock.wait_for_observing_location("sales") is None
    assert 300 <= clock.now - NOW <= 320


def test_a_run_waits_for_each_of_two_locations_that_the_instance_was_moved_from(
    instance: dg.DagsterInstance,
) -> None:
    clock = Clock(instance, "sales")
    clock.now += 100
    clock.tick("finance")
    assert clock.wait_for_observing_location("sales") is None


TAGS = {"dagster/run_key": "metrics/report 7", "federation/request.metrics.report": "{}"}


def test_of_a_request_of_two_locations_neither_run_is_the_only_one(
    instance: dg.DagsterInstance,
) -> None:
    run = instance.create_run_for_job(JOB, tags=TAGS)
    by_hand = instance.create_run_for_job(JOB)
    assert not is_only_request(instance, by_hand, "metrics")
    assert not is_only_request(instance, run, "warehouse")
    retry = instance.create_run_for_job(
        JOB, tags=TAGS, parent_run_id=run.run_id, root_run_id=run.run_id
    )
    assert is_only_request(instance, run, "metrics")
    assert is_only_request(instance, retry, "metrics")
    instance.create_run_for_job(JOB, tags=TAGS)
    assert not is_only_request(instance, run, "metrics")
    assert not is_only_request(instance, retry, "metrics")
