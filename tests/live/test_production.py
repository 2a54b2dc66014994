"""Each process of a deployment is killed in turn, while runs of DAGs end and others follow them.

The deployment is that of `make demo-production`, over DAGs that no other test has.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from dagster_postgres.utils import DagsterPostgresException
from sqlalchemy.exc import DBAPIError

from federation_defs.airflow.client import AirflowClient
from federation_defs.naming import build_asset_key
from tests.conftest import Airflows
from tests.contract.observation.daemon import fetch_reported_runs
from tests.live.chaos import ROUNDS, make_random, report
from tests.live.federation import (
    NAMES,
    Federation,
    fetch_runs,
    replace_dags,
    set_duration,
    trigger,
    utc_now,
    wait_for_state,
)
from tests.live.production import PARTS, DagsterProduction
from tests.waiting import wait_for

STREAMED, RELAYED = "streamed", "relayed"
DOWNSTREAM = {
    RELAYED: {
        "depends_on": [f"warehouse/{RELAYED}"],
        "trigger": {"runs": "each", "pass_upstream": True},
    }
}
INTERVAL_S = 1.0  # between two runs of the stream
DURATION_S = 3.0  # of a run that follows
WORKERS, DATABASE = "run workers", "database"
# For how long there is no database. `make soak` sets more.
AWAY_S = float(os.environ.get("CHAOS_AWAY_S", "10"))

pytestmark = pytest.mark.timeout(1200 + 300 * ROUNDS)


@pytest.fixture
def production(airflows: Airflows, tmp_path: Path) -> Iterator[Federation]:
    clients = {name: airflows.connect(name) for name in NAMES}
    dagster = DagsterProduction(tmp_path, airflows.env)
    replace_dags(dagster.project, "warehouse", [STREAMED, RELAYED], {})
    replace_dags(dagster.project, "metrics", [RELAYED], DOWNSTREAM)
    with ExitStack() as stack:
        stack.callback(dagster.close)
        dagster.start()
        event_log = stack.enter_context(dagster.open_instance())
        yield Federation(dagster, clients, {}, event_log, airflows.lake)


def test_nothing_is_lost_or_doubled_though_each_process_is_killed(production: Federation) -> None:
    dagster, warehouse = production.dagster, production.clients["warehouse"]
    assert isinstance(dagster, DagsterProduction)
    chance, since, began = make_random(), utc_now(), time.monotonic()
    set_duration(production.clients["metrics"], DURATION_S, RELAYED)
    production.wait_for_ticks()  # the first ones
    relayed: list[str] = []
    recovery_s: dict[str, float] = {}
    with streaming(warehouse) as streamed:
        for part in list(PARTS) * ROUNDS:
            relayed.append(trigger(warehouse, RELAYED))
            kill(dagster, part, chance)
            killed_at = time.monotonic()
            wait_for(dagster.is_loaded, f"Dagster runs again without its {part}", timeout_s=240)
            last = streamed[-1]
            wait_for(
                lambda last=last: last in list_reports(production, "warehouse", STREAMED), last
            )
            recovery_s[part] = round(time.monotonic() - killed_at, 1)
    for dag_id, run_ids in ((STREAMED, streamed), (RELAYED, relayed)):
        assert_reported_once(production, "warehouse", dag_id, run_ids)

    def find_followers() -> list[str] | None:
        runs = fetch_runs(production.clients["metrics"], since, {RELAYED})
        return [run.run_id for run in runs] if len(runs) >= len(relayed) else None

    followers = wait_for(find_followers, f"{len(relayed)} runs follow", timeout_s=300)
    for run_id in followers:
        wait_for_state(production.clients["metrics"], RELAYED, run_id, "success")
    production.settle("metrics", RELAYED)
    runs = fetch_runs(production.clients["metrics"], since, {RELAYED})
    followed = [cause["run_id"] for run in runs for cause in run.conf["federation"]["upstream"]]
    assert Counter(followed) == Counter(relayed)
    assert_reported_once(production, "metrics", RELAYED, [run.run_id for run in runs])
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


@contextmanager
def streaming(client: AirflowClient) -> Iterator[list[str]]:
    """Trigger a DAG again and again. The run ids appear in the list."""
    run_ids, is_over = [trigger(client, STREAMED)], threading.Event()

    def stream() -> None:
        while not is_over.wait(INTERVAL_S):
            run_ids.append(trigger(client, STREAMED))

    thread = threading.Thread(target=stream)
    thread.start()
    try:
        yield run_ids
    finally:
        is_over.set()
        thread.join()


def assert_reported_once(
    production: Federation, name: str, dag_id: str, run_ids: list[str]
) -> None:
    missing = set(run_ids)

    def are_reported() -> bool:
        return missing <= set(list_reports(production, name, dag_id))

    wait_for(are_reported, f"all runs of {dag_id} are reported", timeout_s=300)
    production.wait_for_ticks()
    reported = Counter(list_reports(production, name, dag_id))
    assert {run_id: reported[run_id] for run_id in run_ids} == dict.fromkeys(run_ids, 1)


def list_reports(production: Federation, name: str, dag_id: str) -> list[object]:
    try:
        events = fetch_reported_runs(production.event_log, build_asset_key(name, dag_id))
    except (DBAPIError, DagsterPostgresException):  # the database is not back yet
        return []
    return [event["Run ID"].value for event in events]
