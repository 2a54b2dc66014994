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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import dagster as dg
from dagster._core.definitions.asset_daemon_cursor import AssetDaemonCursor
from dagster._core.definitions.automation_tick_evaluation_context import (
    AutomationTickEvaluationContext,
)
from dagster._daemon.asset_daemon import (
    asset_daemon_cursor_from_instigator_serialized_cursor,
    asset_daemon_cursor_to_instigator_serialized_cursor,
)

from federation_defs.automation import Upstream, build_condition
from federation_defs.naming import CHECK_NAME
from tests.contract.test_automation_histories import build_reference

_MYSQL_TEXT = 65_535


@dataclass(frozen=True)
class Kind:
    """Which DAGs are measured: they have so many upstreams of a kind.

    Attributes:
        waits: A Dagster run waits for the DAG run.
    """

    name: str
    number: int
    upstreams: Upstream = "observed"
    when: Literal["any", "all"] = "any"
    waits: bool = True


KINDS = [
    Kind("1 upstream", 1),
    Kind("3 upstreams", 3),
    Kind("1 upstream that Dagster runs", 1, "executed"),
    Kind("3 upstreams that Dagster runs", 3, "executed"),
    Kind("1 upstream, not waited for", 1, waits=False),
    Kind("all of 2 upstreams", 2, when="all"),
    Kind("all of 5 upstreams", 5, when="all"),
    Kind("all of 2 upstreams that Dagster runs", 2, "executed", when="all"),
    Kind("all of 5 upstreams that Dagster runs", 5, "executed", when="all"),
]
# Of the upstreams and the asset of a DAG.
Build = Callable[[Mapping[dg.AssetKey, Upstream], dg.AssetKey], dg.AutomationCondition]


class Sensor:
    """An automation sensor of many assets with one condition, on an instance of its own."""

    def __init__(self, build: Build, kind: Kind, assets: int) -> None:
        sources = [
            dg.AssetSpec(["airflow", "dag", f"upstream_{number}"]) for number in range(assets)
        ]

        def build_asset(number: int) -> dg.AssetsDefinition:
            own = dg.AssetKey(["airflow", "dag", f"downstream_{number}"])
            deps = [sources[(number + other) % assets].key for other in range(kind.number)]

            @dg.asset(
                key=own,
                deps=deps,
                automation_condition=build(dict.fromkeys(deps, kind.upstreams), own),
            )
            def downstream() -> None: ...

            return downstream

        def build_check(source: dg.AssetSpec) -> dg.AssetChecksDefinition:
            @dg.asset_check(asset=source.key, name=CHECK_NAME)
            def check() -> dg.AssetCheckResult:
                raise NotImplementedError

            return check

        downstreams = [build_asset(number) for number in range(assets)]
        defs = dg.Definitions([*sources, *downstreams], asset_checks=map(build_check, sources))
        self.graph = defs.resolve_asset_graph()
        self.selection = dg.AssetSelection.assets(*downstreams)
        self.assets = assets
        self.keys = [source.key for source in sources]
        self.instance = dg.DagsterInstance.ephemeral()
        self.cursor: str | None = None
        self.ticks = 0
        self.nodes = 0

    def update(self) -> None:
        for key in self.keys:
            self.instance.report_runless_asset_event(dg.AssetMaterialization(key))

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
    for kind in KINDS:
        builds: dict[str, Build] = {
            "eager()": lambda _upstreams, _own: dg.AutomationCondition.eager(),
            "before": lambda upstreams, own, kind=kind: build_reference(
                upstreams, detached=None if kind.waits else own
            ),
            "ours": lambda upstreams, own, kind=kind: build_condition(
                upstreams, when=kind.when, detached=None if kind.waits else own
            ),
        }
        if kind.when == "all":
            del builds["before"]
        sensors = {title: Sensor(build, kind, assets) for title, build in builds.items()}
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
        print(kind.name)
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
