"""Measures observation: ours and dagster-airlift's polling sensor, over a real Airflow 2.11.

`make bench-observe`: each contender in turn polls an Airflow and is stopped. Then 2,000 runs of 50
DAGs end, and last of all the only run of another DAG. The contender is started again and reports
them. It also polls a second Airflow, where nothing happens. Then the cost of idling is measured.
Events are written to SQLite, as in `make demo`. The rate at which Dagster alone writes them is the
limit.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import dagster as dg

from tests.bench.airflow2 import CountingAirflow, running_airflow
from tests.bench.contender import PASSWORD
from tests.bench.observation_daemon import (
    DAGS,
    LAST_DAG,
    Contender,
    Sampler,
    count_materializations,
    insert_runs,
    read_events,
)
from tests.conftest import ROOT
from tests.contract.fakes.airflow import FakeAirflow
from tests.contract.fakes.fault_proxy import FaultProxy
from tests.processes import end_on_signals
from tests.waiting import wait_for


@dataclass
class Figures:
    """The figures of one contender.

    Attributes:
        seconds: From its first event to its last.
        newest_s: From its first event to that of the run that ended last.
        events: The events that it wrote, one or two per run.
        misplaced: Events for the second Airflow, which has no runs.
        quiet_gap_s: The longest time without a request to the second Airflow.
        peak_mb: Resident memory of all its processes.
    """

    seconds: float = 0
    total_s: float = 0
    newest_s: float = 0
    events: int = 0
    runs: int = 0
    lost: int = 0
    doubled: int = 0
    misplaced: int = 0
    requests: int = 0
    quiet_gap_s: float = 0
    peak_mb: float = 0


@dataclass(frozen=True)
class Idle:
    """The cost of a time without runs."""

    requests: int
    cpu_s: float
    mb: float


def measure(
    contender: Contender,
    quiet: FakeAirflow,
    home: Path,
    options: argparse.Namespace,
) -> Figures:
    figures, airflow = Figures(), contender.airflow
    airflow.reset()
    contender.start(interval_s=1)
    wait_for(lambda: has_polled(airflow), f"{contender.name} polls", timeout_s=120)
    time.sleep(12)  # two loops of the daemon, so that its cursor is saved
    contender.stop()

    stopped = datetime.now(timezone.utc)
    time.sleep(options.outage)
    truth = insert_runs(home, options.runs, stopped)
    airflow.reset()
    began = time.time()
    contender.start(interval_s=1)
    with Sampler(contender, quiet) as sampler:
        wait_for_end(contender, len(truth))
    figures.total_s = time.time() - began
    figures.requests, figures.peak_mb = airflow.count_requests(), sampler.peak_mb
    figures.quiet_gap_s = sampler.longest_gap_s
    contender.stop()
    count_events(figures, read_events(contender.home), truth, began)
    return figures


def measure_idle(
    contenders: Sequence[Contender], seconds: float, warm_up_s: float
) -> dict[str, Idle]:
    """Return the cost of idling of each contender. All idle at the same time."""
    for contender in contenders:
        contender.start(interval_s=30)  # airlift's default; ours is 5
    for contender in contenders:
        wait_for(
            lambda airflow=contender.airflow: has_polled(airflow),
            f"{contender.name} polls",
            timeout_s=240,
        )
    time.sleep(warm_up_s)
    before = {contender.name: contender.read_cpu_s() for contender in contenders}
    for contender in contenders:
        contender.airflow.reset()
    time.sleep(seconds)
    found = {
        contender.name: Idle(
            contender.airflow.count_requests(),
            contender.read_cpu_s() - before[contender.name],
            contender.read_rss_mb(),
        )
        for contender in contenders
    }
    for contender in contenders:
        contender.stop()
    return found


def has_polled(airflow: CountingAirflow) -> bool:
    return airflow.has_received(rb"/dagRuns")


def wait_for_end(contender: Contender, expected: int) -> None:
    """Return when all events are written, or no more come."""
    count, since = 0, time.monotonic()
    while time.monotonic() - since < (15 if count >= expected else 90):
        assert contender.process
        assert contender.process.is_running, contender.process.read_log()[-3000:]
        time.sleep(0.5)
        if (now := count_materializations(contender.home)) != count:
            count, since = now, time.monotonic()


def count_events(
    figures: Figures,
    events: list[tuple[float, str, str, str]],
    truth: set[tuple[str, str]],
    began: float,
) -> None:
    written = [event for event in events if event[0] >= began]
    seen = Counter((dag_id, run) for _, where, dag_id, run in written if where == "busy" and run)
    figures.events = len(written)
    figures.runs = len(truth & seen.keys())
    figures.lost = len(truth - seen.keys())
    figures.doubled = sum(count - 1 for run, count in seen.items() if run in truth)
    figures.misplaced = sum(where == "quiet" for _, where, _, _ in written)
    first, last = written[0][0], written[-1][0]
    figures.seconds = last - first
    newest = [
        at for at, where, dag_id, run in written if (where, dag_id) == ("busy", LAST_DAG) and run
    ]
    figures.newest_s = newest[0] - first if newest else float("nan")


def measure_limit(folder: Path, count: int, rounds: int = 3) -> dict[str, float]:
    """Return the median events per second that Dagster alone writes, by kind."""
    home = folder / "limit"
    home.mkdir()
    shutil.copy(ROOT / "deployment" / "dagster.yaml", home)
    key = dg.AssetKey(["busy", "dag", "dag_000"])
    metadata = {f"entry {number}": dg.MetadataValue.float(float(number)) for number in range(12)}
    kinds = {
        "materializations": dg.AssetMaterialization(key, metadata=metadata),
        "check evaluations": dg.AssetCheckEvaluation(
            asset_key=key, check_name="dag_run", passed=True, metadata=metadata
        ),
    }
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    with dg.DagsterInstance.from_config(str(home)) as instance:
        for _ in range(rounds):
            for kind, event in kinds.items():
                began = time.perf_counter()
                for _ in range(count):
                    instance.report_runless_asset_event(event)
                rates[kind].append(count / (time.perf_counter() - began))
    return {kind: statistics.median(measured) for kind, measured in rates.items()}


@contextmanager
def running(folder: Path) -> Iterator[tuple[CountingAirflow, FakeAirflow]]:
    with (
        running_airflow(folder / "airflow", dags=DAGS + 1, files=5) as airflow,
        FakeAirflow("v1") as quiet,
    ):
        quiet.database.add_dag("dag_000")  # a DAG id of the other Airflow, too
        quiet.password = PASSWORD
        yield airflow, quiet


def show(name: str, figures: Figures) -> None:
    print(
        f"  {name:<8} {figures.runs} runs, {figures.events} events in {figures.seconds:.1f} s "
        f"({figures.runs / figures.seconds:.0f} runs/s, {figures.events / figures.seconds:.0f} "
        f"events/s), {figures.requests} requests, {figures.peak_mb:.0f} MB at the peak\n"
        f"           lost {figures.lost}, doubled {figures.doubled}, reported for the other "
        f"Airflow {figures.misplaced}; the newest came after {figures.newest_s:.1f} s; the other "
        f"Airflow was not asked for {figures.quiet_gap_s:.1f} s at most",
        flush=True,
    )


def main() -> None:
    end_on_signals()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--outage", type=float, default=20, help="seconds")
    parser.add_argument("--idle", type=float, default=600, help="seconds; 0 for none")
    # Runs that ended lately are polled again for this long.
    parser.add_argument("--warm-up", type=float, default=130, help="seconds, before idling")
    parser.add_argument("--limit-events", type=int, default=300, help="written by Dagster alone")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-observe-"))
    try:
        limit = measure_limit(folder, options.limit_events)
        rates = ", ".join(f"{rate:.0f} {kind}/s" for kind, rate in limit.items())
        print(f"Dagster alone, report_runless_asset_event on SQLite: {rates}")
        with running(folder) as (airflow, quiet), ExitStack() as stack:
            print(f"\nCatching up on {options.runs} runs of {DAGS} DAGs, real Airflow 2.11:")
            contenders = []
            for name in ("ours", "airlift"):
                proxied = CountingAirflow(stack.enter_context(FaultProxy(airflow.url)))
                contender = Contender(name, folder / "contenders", proxied, quiet.url)
                stack.callback(contender.kill)
                show(name, measure(contender, quiet, folder / "airflow", options))
                contenders.append(contender)
            if options.idle:
                print(f"\nIdle for {options.idle:.0f} s, requests to one Airflow:")
                for name, idle in measure_idle(contenders, options.idle, options.warm_up).items():
                    cost = f"{idle.requests} requests, {idle.cpu_s:.1f} s of CPU, {idle.mb:.0f} MB"
                    print(f"  {name:<8} {cost}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
