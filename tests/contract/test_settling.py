"""PostgreSQL: an update that is stored while the daemon evaluates automation conditions."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions import automation_tick_evaluation_context as tick_context
from dagster._core.definitions.asset_daemon_cursor import AssetDaemonCursor
from dagster._core.definitions.declarative_automation.automation_condition_evaluator import (
    AUTOMATION_TICK_SETTLE_SECONDS_ENV_VAR as SETTLE_S,
)
from dagster_postgres.event_log import PostgresEventLogStorage

from federation_defs.automation import build_condition
from tests.contract.storages import OpenInstance, prepare

UPSTREAM, DOWNSTREAM = dg.AssetKey("load_orders"), dg.AssetKey("revenue_forecast")


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            DOWNSTREAM,
            deps=[UPSTREAM],
            automation_condition=build_condition({UPSTREAM: "observed"}),
        )
    ]
)
def run_dags() -> None: ...


class Daemon:
    """Evaluates the condition, as the daemon does in each loop."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.cursor = AssetDaemonCursor.empty()
        self.graph = dg.Definitions([dg.AssetSpec(UPSTREAM), run_dags]).get_repository_def()

    def tick(self) -> int:
        """Return how many runs are requested."""
        context = tick_context.AutomationTickEvaluationContext(
            evaluation_id=self.cursor.evaluation_id + 1,
            instance=self.instance,
            asset_graph=self.graph.asset_graph,
            cursor=self.cursor,
            materialize_run_tags={},
            observe_run_tags={},
            auto_observe_asset_keys=set(),
            asset_selection=dg.AssetSelection.all(),
            logger=logging.getLogger(__name__),
            emit_backfills=False,
        )
        requests, self.cursor, _ = asyncio.run(context.async_evaluate())
        return len(requests)


@pytest.fixture(scope="module")
def open_on_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenInstance]:
    with prepare("postgres", tmp_path_factory.mktemp("postgres")) as open_instance:
        yield open_instance


@pytest.mark.parametrize(("settle_s", "requested"), [("0.1", [1, 0]), ("0", [0, 0])])
def test_an_update_between_its_two_transactions_starts_a_run_only_if_the_daemon_lets_it_settle(
    open_on_postgres: OpenInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settle_s: str,
    requested: list[int],
) -> None:
    """Dagster stores an event, and then that it is the asset's last one (1.13). A tick in between
    takes the event for seen. By default, the daemon does not wait, and the update is lost."""
    with open_on_postgres(tmp_path / "dagster") as instance:
        daemon = Daemon(instance)
        for key in (UPSTREAM, DOWNSTREAM):
            instance.report_runless_asset_event(dg.AssetMaterialization(key))
        assert [daemon.tick(), daemon.tick()] == [0, 0]

        is_between, may_go_on = threading.Event(), threading.Event()
        store: Any = PostgresEventLogStorage._store_asset_event  # noqa: SLF001 - the second one

        def store_later(*given: Any) -> None:
            is_between.set()
            assert may_go_on.wait(60)
            store(*given)

        monkeypatch.setattr(PostgresEventLogStorage, "_store_asset_event", store_later)
        update = dg.AssetMaterialization(UPSTREAM)
        reporting = threading.Thread(target=instance.report_runless_asset_event, args=[update])
        reporting.start()
        assert is_between.wait(60)

        async def settle(seconds: float) -> None:
            assert seconds == float(settle_s)
            may_go_on.set()
            reporting.join()

        monkeypatch.setenv(SETTLE_S, settle_s)
        pausing = SimpleNamespace(**{**vars(asyncio), "sleep": settle})
        monkeypatch.setattr(tick_context, "asyncio", pausing)
        begun = [daemon.tick()]
        may_go_on.set()
        reporting.join()
        assert [*begun, daemon.tick()] == requested
