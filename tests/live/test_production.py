"""Each process of a deployment is killed in turn, while runs of DAGs end and others follow them."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Airflows
from tests.live.chaos import ROUNDS, make_random, report
from tests.live.federation import NAMES, set_duration, trigger, utc_now
from tests.live.production import PARTS, DagsterProduction
from tests.live.streams import RELAYED, STREAMED, Production, start_production, streaming
from tests.waiting import wait_for

INTERVAL_S = 1.0  # between two runs of the stream
DURATION_S = 3.0  # of a run that follows
WORKERS, DATABASE = "run workers", "database"
# For how long there is no database. `make soak` sets more.
AWAY_S = float(os.environ.get("CHAOS_AWAY_S", "10"))

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200 + 300 * ROUNDS)]


@pytest.fixture
def production(airflows: Airflows, tmp_path: Path) -> Iterator[Production]:
    clients = {name: airflows.connect(name) for name in NAMES}
    with start_production(tmp_path, airflows.env, clients) as production:
        yield production


def test_nothing_is_lost_or_doubled_though_each_process_is_killed(production: Production) -> None:
    dagster, warehouse = production.dagster, production.clients["warehouse"]
    chance, since, began = make_random(), utc_now(), time.monotonic()
    set_duration(production.clients["metrics"], DURATION_S, RELAYED)
    production.wait_for_ticks()  # the first ones
    relayed: list[str] = []
    recovery_s: dict[str, float] = {}
    with streaming(warehouse, INTERVAL_S) as streamed:
        for part in list(PARTS) * ROUNDS:
            relayed.append(trigger(warehouse, RELAYED))
            kill(dagster, part, chance)
            killed_at = time.monotonic()
            dagster.wait_until_loaded(f"Dagster runs again without its {part}")
            last = streamed[-1]
            wait_for(lambda last=last: last in production.list_reports("warehouse", STREAMED), last)
            recovery_s[part] = round(time.monotonic() - killed_at, 1)
    production.assert_all_reported_once("warehouse", STREAMED, streamed)
    production.assert_all_reported_once("warehouse", RELAYED, relayed)
    production.assert_each_followed_once(relayed, since)
    report(
        f"{len(streamed)} runs observed and {len(relayed)} followed in"
        f" {time.monotonic() - began:.0f} s; seconds until all was reported again: {recovery_s}"
    )


def kill(dagster: DagsterProduction, part: str, chance: random.Random) -> None:
    """Kill the processes of a part at a random moment of the run that follows."""
    if part == DATABASE:
        with dagster.keeping_down(part):
            time.sleep(AWAY_S)
        return
    if part != WORKERS:
        time.sleep(chance.uniform(0, DURATION_S))
    wait_for(lambda: dagster.kill_part(part), f"there are {part} to kill", interval_s=0.05)
