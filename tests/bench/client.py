"""Compares our client with dagster-airlift's own, in turn, on the same servers.

`make bench-client` reads 5,000 DAGs and 10,000 runs from a stub that answers as 2.11 does, and 505
DAGs with their sources from a real Airflow 2.11. It prints the median of the seconds, and the peak
of the memory that Python allocated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from tests.bench.airflow2 import running_airflow
from tests.processes import LoggedProcess, end_on_signals, find_free_port
from tests.waiting import wait_for

CONTENDERS = ("ours", "airlift")


@dataclass
class Figures:
    """The measurements of one contender in one benchmark."""

    seconds: list[float] = field(default_factory=list)
    peak_mb: float = 0
    count: int = 0
    requests: int = 0
    connections: int = 0

    def add(self, answer: dict[str, Any]) -> None:
        self.seconds.append(answer["seconds"])
        self.count = answer["count"]


def run_contender(contender: str, what: str, url: str, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.bench.contender", contender, what, url, *options]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if ran.returncode != 0:
        raise SystemExit(f"{contender} did not read the {what}:\n{ran.stderr}")
    return json.loads(ran.stdout.splitlines()[-1])


@contextmanager
def running_stub(page_ms: float, folder: Path) -> Iterator[str]:
    port = find_free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "tests.bench.stub"]
    command += ["--port", str(port), "--page-ms", str(page_ms)]
    stub = LoggedProcess(command, folder / f"stub-{port}.log", cwd=Path.cwd(), env={})
    try:
        wait_for(lambda: answers(f"{url}/api/v1/version"), "the stub answers", timeout_s=30)
        yield url
    finally:
        stub.terminate()


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.ConnectionError:
        return False


def bench_stub(what: str, page_ms: float, rounds: int, folder: Path) -> dict[str, Figures]:
    figures = {contender: Figures() for contender in CONTENDERS}
    with running_stub(page_ms, folder) as url:
        for _ in range(rounds):
            for contender, own in figures.items():
                requests.get(f"{url}/figures", timeout=5)  # resets the counters
                own.add(run_contender(contender, what, url))
                seen: dict[str, Any] = requests.get(f"{url}/figures", timeout=5).json()
                own.requests = seen["requests"]
                own.connections = max(own.connections, seen["most_connections"])
        for contender, own in figures.items():
            # In a run of its own, since measuring memory slows it down.
            own.peak_mb = run_contender(contender, what, url, "--memory")["peak_mb"]
    return figures


def bench_sources(layout: str, files: int, rounds: int, folder: Path) -> dict[str, Figures]:
    figures = {contender: Figures() for contender in CONTENDERS}
    with running_airflow(folder / layout, dags=505, files=files) as server:
        for _ in range(rounds):
            for contender, own in figures.items():
                server.reset()
                own.add(run_contender(contender, "sources", server.url))
                own.requests = server.count_requests()
                own.connections = max(own.connections, server.most_connections)
    return figures


def show(title: str, figures: dict[str, Figures]) -> None:
    ours, airlift = (statistics.median(figures[name].seconds) for name in CONTENDERS)
    print(f"\n{title}: {airlift / ours:.1f} times faster")
    for contender, own in figures.items():
        print(
            f"  {contender:<8} {statistics.median(own.seconds):7.2f} s  "
            f"({min(own.seconds):.2f} to {max(own.seconds):.2f})  {own.count} read, "
            f"{own.requests} requests, at most {own.connections} connections at a time"
            + (f", {own.peak_mb:.0f} MB" if own.peak_mb else ""),
            flush=True,
        )


def main() -> None:
    end_on_signals()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--airflow-rounds", type=int, default=1)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-client-"))
    try:
        for page_ms in (30, 0):
            for what, title in (("dags", "5,000 DAGs"), ("runs", "10,000 runs")):
                figures = bench_stub(what, page_ms, asked.rounds, folder)
                show(f"{title}, stub with 4 workers and {page_ms} ms a page", figures)
        for layout, files in (("a file for each DAG", 505), ("files of 101 DAGs each", 5)):
            figures = bench_sources(layout, files, asked.airflow_rounds, folder)
            show(f"505 DAGs with source, real Airflow 2.11, {layout}", figures)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
