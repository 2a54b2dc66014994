"""A deployment runs for an hour, with Airflows of its own: `make soak`. SOAK_MINUTES sets less.

One Airflow is restarted and the daemon is killed meanwhile. The figures are printed.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.airflows import Airflows, build_env
from tests.live.chaos import report
from tests.live.federation import fetch_runs, trigger, utc_now, wait_for_state
from tests.live.production import DagsterProduction
from tests.live.restartable_airflow import RestartableAirflow, start_airflows
from tests.live.streams import RELAYED, STREAMED, Production, start_production, streaming
from tests.waiting import wait_for

DURATION_S = 60 * float(os.environ.get("SOAK_MINUTES", "60"))
INTERVAL_S = 2.0  # between two runs that end
STEP_S = 30.0  # between two runs that another one follows, and two samples
STEPS = round(DURATION_S / STEP_S)
# Both in the first third, as the others are compared.
KILL_AT, RESTART_AT = STEPS // 6, STEPS // 4
LASTING = ("webserver", "daemon", "code servers")  # parts whose processes last
GROWTH, GROWTH_MB = 0.1, 10  # what the memory of a process may differ by

pytestmark = [pytest.mark.soak, pytest.mark.timeout(DURATION_S + 2400)]


@dataclass(frozen=True)
class Sample:
    """What a process uses.

    Attributes:
        memory_mb: Its proportional set size.
        cpu_s: Since its start, with its children that have ended: those of a code server are run
            workers.
    """

    memory_mb: float
    cpu_s: float


Samples = Mapping[str, Sequence[Sample]]


@pytest.fixture
def airflows_of_its_own(tmp_path: Path) -> Iterator[Mapping[str, RestartableAirflow]]:
    planned = Airflows(tmp_path / "lake.duckdb", build_env(tmp_path))
    with start_airflows(planned, tmp_path / "airflows") as started:
        yield started


@pytest.fixture
def production(
    airflows_of_its_own: Mapping[str, RestartableAirflow], tmp_path: Path
) -> Iterator[Production]:
    clients = {name: airflow.client for name, airflow in airflows_of_its_own.items()}
    env = build_env(tmp_path)
    for name, client in clients.items():
        port = client.url.rpartition(":")[2]
        env |= {f"{name.upper()}_AIRFLOW_URL": client.url, f"{name.upper()}_PORT": port}
    with start_production(tmp_path, env, clients) as production:
        yield production


def test_an_hour_loses_and_doubles_nothing_and_no_process_grows(
    production: Production, airflows_of_its_own: Mapping[str, RestartableAirflow]
) -> None:
    dagster, warehouse = production.dagster, production.clients["warehouse"]
    since, gate = utc_now(), threading.Lock()
    relayed: list[str] = []
    away_s = 0.0
    samples: dict[str, list[Sample]] = defaultdict(list)
    production.wait_for_ticks()  # the first ones
    began = time.monotonic()
    with streaming(warehouse, INTERVAL_S, gate) as streamed:
        for step in range(STEPS):
            time.sleep(max(0.0, began + step * STEP_S - time.monotonic()))
            for name, sample in take_samples(dagster).items():
                samples[name].append(sample)
            relayed.append(trigger(warehouse, RELAYED))
            if step == KILL_AT:
                assert dagster.kill_part("daemon")
            if step == RESTART_AT:
                # A task that is killed would be lost to Airflow for minutes.
                wait_for_state(warehouse, RELAYED, relayed[-1], "success")
                with gate:
                    away_s = restart(airflows_of_its_own["warehouse"])
    production.assert_all_reported_once("warehouse", STREAMED, streamed)
    production.assert_all_reported_once("warehouse", RELAYED, relayed)
    followers = production.assert_each_followed_once(relayed, since)

    report(f"{len(streamed)} runs reported, {len(relayed)} followed; {DURATION_S / 60:.0f} minutes")
    report(f"The daemon was killed, and warehouse restarted, which took {away_s:.0f} s.")
    ended = {
        run.run_id: run.end_date.timestamp()
        for run in fetch_runs(warehouse, since, {STREAMED, RELAYED})
        if run.end_date
    }
    reports = production.fetch_report_times("warehouse", STREAMED)
    report(describe("end to report", [reports[run_id] - ended[run_id] for run_id in streamed]))
    delays = [
        run.start_date.timestamp() - ended[cause["run_id"]]
        for run in followers
        for cause in run.conf["federation"]["upstream"]
        if run.start_date
    ]
    report(describe("end to the start of the follower", delays))
    assert_flat(samples)


def restart(airflow: RestartableAirflow) -> float:
    """Kill an Airflow and start it again, and return the seconds until it answers."""
    began = time.monotonic()
    airflow.kill()
    airflow.start()
    wait_for(airflow.is_answering, "the Airflow answers again", timeout_s=240)
    return time.monotonic() - began


def take_samples(dagster: DagsterProduction) -> dict[str, Sample]:
    """Return what each lasting process uses, by what it does."""
    samples: dict[str, Sample] = {}
    for part in LASTING:
        for process in dagster.find_part(part):
            with suppress(psutil.NoSuchProcess):
                name = name_process(part, process.cmdline())
                memory_mb = process.memory_full_info().pss / 2**20
                samples[name] = Sample(memory_mb, sum(process.cpu_times()[:4]))
    return samples


def name_process(part: str, command: list[str]) -> str:
    """Return the part, for code servers with the location and which of its two processes."""
    if "--location-name" not in command:
        return part
    location = command[command.index("--location-name") + 1]
    return f"{location}: {'code' if 'grpc' in command else 'server'}"


def describe(what: str, delays: Sequence[float]) -> str:
    """Return the median, the 95th percentile and the worst of some times, as text."""
    p95 = statistics.quantiles(delays, n=20, method="inclusive")[-1]
    return (
        f"Seconds from {what}: median {statistics.median(delays):.1f}, p95 {p95:.1f},"
        f" worst {max(delays):.1f}"
    )


def assert_flat(samples: Samples) -> None:
    """Print what the processes use, and check that none has more memory in the last third."""
    grown: list[str] = []
    for name, taken in samples.items():
        third = len(taken) // 3
        first, second, last = (
            statistics.median(each.memory_mb for each in part)
            for part in (taken[:third], taken[third : 2 * third], taken[2 * third :])
        )
        minutes = (len(taken) - third - 1) * STEP_S / 60
        cpu_s = (taken[-1].cpu_s - taken[third].cpu_s) / minutes
        line = (
            f"{name:20} memory of each third: {first:.0f}, {second:.0f}, {last:.0f} MB;"
            f" {cpu_s:.1f} CPU s a minute"
        )
        report(line)
        if last > second * (1 + GROWTH) + GROWTH_MB:
            grown.append(line)
    assert samples, "no process was measured"
    assert not grown
