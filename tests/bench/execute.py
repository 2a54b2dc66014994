"""Measures waiting for many DAGs: ours and dagster-airlift's tutorial, over a real Airflow 2.11.

`make bench-execute`: one Dagster run in a real `dagster dev` runs 50 DAGs that depend on one. Their
DAG runs are running, but their tasks never start, so that they cost Airflow nothing. When all DAG
runs exist, the cost of waiting is measured for a minute:

- Memory, processes and CPU are those of the run worker and its descendants, without Dagster's
  webserver, daemon and code server. Memory is PSS, which counts shared memory once.
- Requests are all that reach the Airflow. All sensors are off.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench.airflow2 import CountingAirflow, SchedulingAirflow, scheduling_airflow
from tests.bench.projects import OURS, Contender, running
from tests.bench.tutorial import UPSTREAM
from tests.contract.fakes.fault_proxy import FaultProxy
from tests.processes import end_on_signals
from tests.waiting import wait_for

NO_TASKS = {"AIRFLOW__CORE__DEFAULT_POOL_TASK_SLOT_COUNT": "0"}
CONTENDERS = {"ours": OURS, "tutorial": "tests.bench.tutorial_of_many"}


@dataclass
class Figures:
    """The figures of one contender.

    Attributes:
        all_running_s: From the launch until all DAG runs were running.
        peak_mb: PSS of the run worker and its descendants.
        workers: The processes among them that run Dagster: the run worker and its steps.
        followers: The other processes, which capture the output of steps.
        dags: The DAGs that ran.
        dag_runs: The runs of all DAGs.
        status: The final status of the Dagster run.
    """

    all_running_s: float = 0
    peak_mb: float = 0
    workers: int = 0
    followers: int = 0
    cpu_s: float = 0
    requests: int = 0
    seconds: float = 0
    dags: int = 0
    dag_runs: int = 0
    status: str = ""


def measure(
    contender: Contender,
    airflow: SchedulingAirflow,
    counting: CountingAirflow,
    dag_ids: list[str],
    seconds: float,
) -> Figures:
    figures = Figures()
    contender.stop_sensors()
    began = time.monotonic()
    run_id = contender.materialize("metrics", *dag_ids)

    def are_all_running() -> bool:
        runs = airflow.read_runs()
        assert len(runs) >= len(dag_ids) or not contender.is_finished(run_id), "it ended too early"
        return {run.dag_id for run in runs if run.state == "running"} == set(dag_ids)

    wait_for(are_all_running, "all DAG runs are running", timeout_s=120 + 15 * len(dag_ids))
    figures.all_running_s = time.monotonic() - began
    sample(figures, find_worker(contender, run_id), counting, seconds)
    count = Counter(run.dag_id for run in airflow.read_runs())
    figures.dags, figures.dag_runs = len(count), count.total()
    airflow.end_runs()
    figures.status = contender.wait_for_run(run_id, timeout_s=120 + 5 * len(dag_ids))
    return figures


def find_worker(contender: Contender, run_id: str) -> psutil.Process:
    started = re.search(r"Started process for run \(pid: (\d+)\)", contender.fetch_messages(run_id))
    assert started
    return psutil.Process(int(started[1]))


def sample(
    figures: Figures, worker: psutil.Process, counting: CountingAirflow, seconds: float
) -> None:
    counting.reset()
    began, before = time.monotonic(), read_cpu_s(worker)
    while time.monotonic() - began < seconds:
        processes = [worker, *worker.children(recursive=True)]
        workers = sum(map(is_dagster, processes))
        figures.workers = max(figures.workers, workers)
        figures.followers = max(figures.followers, len(processes) - workers)
        figures.peak_mb = max(figures.peak_mb, sum(map(read_pss_mb, processes)))
        time.sleep(1)
    figures.cpu_s = read_cpu_s(worker) - before
    figures.requests, figures.seconds = counting.count_requests(), time.monotonic() - began


def is_dagster(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return "--multiprocessing-fork" in process.cmdline()
    return False


def read_pss_mb(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        return process.memory_full_info().pss / 2**20
    return 0.0


def read_cpu_s(worker: psutil.Process) -> float:
    total = 0.0
    for process in [worker, *worker.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def build_contender(name: str, folder: Path, url: str, dag_ids: list[str]) -> Contender:
    contender = Contender(folder / name, CONTENDERS[name], {"BENCH_METRICS_URL": url})
    if name == "ours":
        dags = {dag_id: {"depends_on": [f"metrics/{UPSTREAM}"]} for dag_id in dag_ids}
        contender.declare([{"name": "metrics", "url": url, "dags": dags}])
    return contender


def show(name: str, figures: Figures) -> None:
    minutes = figures.seconds / 60
    print(
        f"  {name:<9} {figures.peak_mb:.0f} MB (PSS) at the peak, worker processes: "
        f"{figures.workers} (and {figures.followers} that follow their output); "
        f"{figures.cpu_s / minutes:.1f} s of CPU and {figures.requests / minutes:.0f} requests "
        f"a minute\n"
        f"            all were running {figures.all_running_s:.1f} s after the launch: "
        f"{figures.dag_runs} runs of {figures.dags} DAGs; the Dagster run ended in "
        f"{figures.status}",
        flush=True,
    )


def main() -> None:
    end_on_signals()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dags", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60, help="of waiting to measure")
    options = parser.parse_args()
    dag_ids = [f"dag_{number:03}" for number in range(options.dags)]
    folder = Path(tempfile.mkdtemp(prefix="bench-execute-"))
    found: dict[str, Figures] = {}
    try:
        with scheduling_airflow(folder / "airflow", [UPSTREAM, *dag_ids], NO_TASKS) as airflow:
            print(f"One Dagster run that waits for {options.dags} DAGs, real Airflow 2.11:")
            for name in CONTENDERS:
                with (
                    FaultProxy(airflow.url) as proxy,
                    running(build_contender(name, folder, proxy.url, dag_ids)) as contender,
                ):
                    counting = CountingAirflow(proxy)
                    found[name] = measure(contender, airflow, counting, dag_ids, options.seconds)
                show(name, found[name])
                airflow.delete_runs()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    ratio = found["tutorial"].peak_mb / found["ours"].peak_mb
    print(f"The tutorial takes {ratio:.1f} times the memory.")


if __name__ == "__main__":
    main()
