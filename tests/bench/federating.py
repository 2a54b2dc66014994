"""Measures a dependency, stage by stage: ours and dagster-airlift's tutorial.

`make bench-latency`: the contenders take turns over the same two real Airflows 2.11, each in a
`dagster dev` of its own. `load_customers` runs in one Airflow and ends at a random moment of the
daemons' loops. Measured are the seconds from there until `customer_metrics` starts in the other.
`published` is the tutorial with Dagster's default settings. `tuned` is the same with sensors that
tick every second, and the in-process executor.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.airflow2 import RunRow, SchedulingAirflow, scheduling_airflow
from tests.bench.projects import DEFAULTS, OURS, Contender, running
from tests.bench.stages import STAGES, fetch_times
from tests.bench.tutorial import DOWNSTREAM, TUNED_VARIABLE, UPSTREAM
from tests.processes import end_on_signals
from tests.waiting import wait_for

ALL_STAGES = (*STAGES, "triggered", "DAG started")
CONTENDERS = ("published", "tuned", "ours")
AIRFLOW_SETTINGS = {
    # Without this, SQLite only allows the SequentialExecutor, which starts an interpreter per task.
    "_AIRFLOW__SKIP_DATABASE_EXECUTOR_COMPATIBILITY_CHECK": "1",
    "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
    "AIRFLOW__CORE__PARALLELISM": "4",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.25",
    "AIRFLOW__WEBSERVER__WORKERS": "1",
}
LOST_AFTER_S = 120
LOOP_S = {"published": 30, "tuned": 5, "ours": 5}  # of the slowest sensor


@dataclass
class Figures:
    """The figures of one contender.

    Attributes:
        rows: Seconds from the upstream's end to each stage, a row per round.
        lost: Rounds without a downstream run.
        doubled: Downstream runs after the first of a round.
    """

    name: str
    rows: list[list[float]] = field(default_factory=list)
    lost: int = 0
    doubled: int = 0

    def summarize(self, of: Callable[[Sequence[float]], float]) -> list[float]:
        return [of(column) for column in zip(*self.rows, strict=True)]


@dataclass(frozen=True)
class Airflows:
    """The Airflow of the upstream DAG, and that of the downstream DAG."""

    warehouse: SchedulingAirflow
    metrics: SchedulingAirflow

    def delete_runs(self) -> None:
        self.warehouse.delete_runs()
        self.metrics.delete_runs()


@contextmanager
def running_airflows(folder: Path) -> Iterator[Airflows]:
    def start(name: str, dag_id: str) -> SchedulingAirflow:
        airflow = scheduling_airflow(folder / name, [dag_id], AIRFLOW_SETTINGS)
        return stack.enter_context(airflow)

    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        upstream = pool.submit(start, "warehouse", UPSTREAM)
        downstream = pool.submit(start, "metrics", DOWNSTREAM)
        yield Airflows(upstream.result(), downstream.result())


def build_contender(name: str, folder: Path, airflows: Airflows) -> Contender:
    urls = {"warehouse": airflows.warehouse.url, "metrics": airflows.metrics.url}
    if name == "ours":
        ours = Contender(folder / name, OURS, {})
        dependency = {DOWNSTREAM: {"depends_on": [f"warehouse/{UPSTREAM}"]}}
        dags = {"warehouse": {}, "metrics": dependency}
        ours.declare({"name": own, "url": urls[own], "dags": dags[own]} for own in urls)
        return ours
    env = {f"BENCH_{instance.upper()}_URL": url for instance, url in urls.items()}
    if name == "tuned":
        env[TUNED_VARIABLE] = "yes"
    return Contender(folder / name, "tests.bench.tutorial", env, DEFAULTS)


def measure(
    figures: Figures, contender: Contender, airflows: Airflows, rounds: int, warm_up: int
) -> None:
    """Measure some rounds with one start of a contender's `dagster dev`."""
    is_new = contender.process is None
    with running(contender):
        if is_new:
            contender.wait_for_sensors()
            for _ in range(warm_up):
                run_round(Figures("warm-up"), contender, airflows)
        for _ in range(rounds):
            # One loop of the daemons, which may otherwise merge this update with the last round,
            # and a random part of another, so that the upstream ends at any moment of it.
            time.sleep(5 + random.uniform(0, LOOP_S[figures.name]))
            row = run_round(figures, contender, airflows)
            show_line(figures.name, row or (), "" if row else "   lost")
    airflows.delete_runs()  # the next contender would find them


def run_round(figures: Figures, contender: Contender, airflows: Airflows) -> list[float] | None:
    """Return the seconds from the upstream's end to each stage; None if nothing followed."""
    runs_before = len(contender.fetch_runs(DOWNSTREAM))
    rows_before = len(airflows.metrics.read_runs(DOWNSTREAM))
    airflows.warehouse.trigger(UPSTREAM, f"bench__{time.time()}")

    def find_end() -> float | None:
        return airflows.warehouse.read_runs(UPSTREAM)[-1].end

    end = wait_for(find_end, "the upstream has ended", interval_s=0.1)

    def find_downstream() -> RunRow | bool:
        new = airflows.metrics.read_runs(DOWNSTREAM)[rows_before:]
        if new and new[0].end:
            return new[0]
        return time.time() - end > LOST_AFTER_S

    found = wait_for(find_downstream, "the downstream has ended", LOST_AFTER_S + 10)
    if not isinstance(found, RunRow):
        figures.lost += 1
        return None
    wait_for(
        lambda: not contender.is_in_progress("metrics", DOWNSTREAM), "its Dagster run has ended"
    )
    runs = contender.fetch_runs(DOWNSTREAM)  # the newest first
    new_runs = runs[: len(runs) - runs_before]
    figures.doubled += len(new_runs) - 1
    assert found.queued_at
    assert found.start
    moments = fetch_times(contender.url, new_runs[-1].run_id)
    row = [at - end for at in (*moments, found.queued_at, found.start)]
    figures.rows.append(row)
    return row


def show(figures: Figures) -> None:
    count = f"of {len(figures.rows)}, {figures.lost} lost, {figures.doubled} doubled"
    if figures.rows:
        show_line(figures.name, figures.summarize(statistics.median), f"   median {count}")
        show_line("", figures.summarize(max), "   worst")
    else:
        print(f"{figures.name:<10} {count}", flush=True)


def show_line(name: str, seconds: Sequence[float], what: str = "") -> None:
    print(f"{name:<10}" + "".join(f"{value:14.1f}" for value in seconds) + what, flush=True)


def main() -> None:
    end_on_signals()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    # The phases of the daemons' loops are random, but fixed for each start.
    parser.add_argument("--starts", type=int, default=5, help="of each dagster dev, in turns")
    parser.add_argument("--warm-up", type=int, default=1, help="rounds before measuring")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-federating-"))
    found = {name: Figures(name) for name in options.contenders}
    try:
        with running_airflows(folder) as airflows:
            print("seconds after the end of load_customers, two real Airflows 2.11")
            print(" " * 10 + "".join(f"{stage:>14}" for stage in ALL_STAGES))
            contenders = {name: build_contender(name, folder, airflows) for name in found}
            for start in range(options.starts):
                for name, contender in contenders.items():
                    rounds = len(range(start, options.runs, options.starts))
                    measure(found[name], contender, airflows, rounds, options.warm_up)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print()
    for figures in found.values():
        show(figures)
    medians = {
        name: figures.summarize(statistics.median)[-1]
        for name, figures in found.items()
        if figures.rows
    }
    for name in [name for name in medians if name != "ours" and "ours" in medians]:
        print(f"{name} takes {medians[name] / medians['ours']:.1f} times as long")


if __name__ == "__main__":
    main()
