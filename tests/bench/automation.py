"""What a tick of an automation sensor costs for each asset: `eager()`, which dagster-airlift's
tutorial uses, our condition as it was before it was made smaller, and our condition.

Measured are the parts of the tick that grow with the assets, as the daemon does them: reading the
cursor, evaluating, and writing the cursor, in CPU time of this process. Dagster stores the cursor
at each tick; MySQL keeps it in 64 kB.

    python -m tests.bench.automation
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import statistics
import time
from collections.abc import Callable

import dagster as dg
from dagster._core.definitions.asset_daemon_cursor import AssetDaemonCursor
from dagster._core.definitions.automation_tick_evaluation_context import (
    AutomationTickEvaluationContext,
)
from dagster._daemon.asset_daemon import (
    asset_daemon_cursor_from_instigator_serialized_cursor,
    asset_daemon_cursor_to_instigator_serialized_cursor,
)

from federation_defs.automation import Upstreams, build_condition
from tests.contract.test_automation_histories import build_reference

_MYSQL_TEXT = 65_535
_DAYS = dg.DailyPartitionsDefinition("2026-01-01")
# Name, number and kind of upstreams, whether a Dagster run waits, whether there are partitions.
KINDS: list[tuple[str, int, Upstreams, bool, bool]] = [
    ("1 upstream", 1, "observed", True, False),
    ("3 upstreams", 3, "observed", True, False),
    ("1 upstream that Dagster runs", 1, "executed", True, False),
    ("3 upstreams that Dagster runs", 3, "executed", True, False),
    ("1 upstream, not waited for", 1, "observed", False, False),
    ("1 upstream, with partitions", 1, "observed", True, True),
]


class Sensor:
    """An automation sensor of many assets with one condition, on an instance of its own."""

    def __init__(
        self, condition: dg.AutomationCondition, assets: int, upstreams: int, is_partitioned: bool
    ) -> None:
        partitions = _DAYS if is_partitioned else None
        names = [f"upstream_{number}" for number in range(assets)]

        def build_asset(number: int) -> dg.AssetsDefinition:
            @dg.asset(
                name=f"downstream_{number}",
                deps=[names[(number + other) % assets] for other in range(upstreams)],
                automation_condition=condition,
                partitions_def=partitions,
            )
            def downstream() -> None: ...

            return downstream

        sources = [dg.AssetSpec(name, partitions_def=partitions) for name in names]
        downstreams = [build_asset(number) for number in range(assets)]
        self.graph = dg.Definitions([*sources, *downstreams]).resolve_asset_graph()
        self.selection = dg.AssetSelection.assets(*downstreams)
        self.assets = assets
        self.keys = [source.key for source in sources]
        self.partition = _DAYS.get_last_partition_key() if is_partitioned else None
        self.instance = dg.DagsterInstance.ephemeral()
        self.cursor: str | None = None
        self.ticks = 0
        self.nodes = 0

    def update(self) -> None:
        for key in self.keys:
            event = dg.AssetMaterialization(key, partition=self.partition)
            self.instance.report_runless_asset_event(event)

    def tick(self) -> float:
        """Evaluate all assets. Returns CPU seconds."""
        gc.collect()
        began = time.process_time()
        cursor = asset_daemon_cursor_from_instigator_serialized_cursor(self.cursor, self.graph)
        self.ticks += 1
        evaluated = asyncio.run(self._evaluate(cursor))
        self.cursor = asset_daemon_cursor_to_instigator_serialized_cursor(evaluated)
        return time.process_time() - began

    async def _evaluate(self, cursor: AssetDaemonCursor) -> AssetDaemonCursor:
        context = AutomationTickEvaluationContext(
            evaluation_id=self.ticks,
            instance=self.instance,
            asset_graph=self.graph,
            cursor=cursor,
            materialize_run_tags={},
            observe_run_tags={},
            auto_observe_asset_keys=set(),
            asset_selection=self.selection,
            logger=logging.getLogger(__name__),
            emit_backfills=False,
        )
        _, following, evaluations = await context.async_evaluate()
        if evaluations:  # of what has changed
            self.nodes = sum(1 for _ in evaluations[0].iter_nodes())
        return following


def measure(assets: int, rounds: int) -> None:
    """Print a row for each kind of asset and each condition, in ms and bytes of an asset."""
    print(f"{'CPU ms of an asset and tick':37}{'nodes':>6}{'idle':>7}{'updated':>9}", end="")
    print(f"{'cursor, bytes':>15}{'assets in 64 kB':>17}")
    for name, upstreams, kind, waits, is_partitioned in KINDS:
        builds: dict[str, Callable[[], dg.AutomationCondition]] = {
            "eager()": dg.AutomationCondition.eager,
            "before": lambda kind=kind, waits=waits: build_reference(waits=waits, upstreams=kind),
            "ours": lambda kind=kind, waits=waits, is_partitioned=is_partitioned: build_condition(
                waits=waits, upstreams=kind, is_partitioned=is_partitioned
            ),
        }
        sensors = {
            title: Sensor(build(), assets, upstreams, is_partitioned)
            for title, build in builds.items()
        }
        idle: dict[str, list[float]] = {title: [] for title in sensors}
        updated: dict[str, list[float]] = {title: [] for title in sensors}
        for sensor in sensors.values():
            sensor.update()
            sensor.tick()
        for _ in range(rounds):  # in turns, so that what else the machine does hits all
            for title, sensor in sensors.items():
                sensor.update()
                updated[title].append(sensor.tick())
                sensor.tick()  # after the request
                idle[title].append(sensor.tick())
        print(name)
        for title, sensor in sensors.items():
            each = [1000 * statistics.median(times[title]) / assets for times in (idle, updated)]
            size = len(sensor.cursor or "") / assets
            print(f"  {title:35}{sensor.nodes:6}{each[0]:7.2f}{each[1]:9.2f}", end="")
            print(f"{size:15.0f}{_MYSQL_TEXT / size:17.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    measure(options.assets, options.rounds)


if __name__ == "__main__":
    main()
