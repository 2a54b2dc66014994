"""The short versions of the benchmarks: that they measure, not how fast anything is."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.conftest import ROOT

OBSERVE = ["--runs", "60", "--outage", "2", "--idle", "10", "--warm-up", "5", "--limit-events"]
FEDERATING = ["--contenders", "tuned", "ours", "--runs", "1", "--starts", "1", "--warm-up", "0"]


def run(benchmark: str, *options: str) -> str:
    """What a benchmark prints."""
    command = [sys.executable, "-m", f"tests.bench.{benchmark}", *options]
    ran = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_observation_beside_its_peer_loses_and_doubles_nothing_and_both_are_measured() -> None:
    printed = run("observe", *OBSERVE, "20")
    assert re.search(r"Dagster alone.* \d+ materializations/s, \d+ check evaluations/s", printed)
    ours, peer = re.split(r"\n  airlift ", printed, maxsplit=1)
    assert "61 runs, 122 events" in ours
    assert "lost 0, doubled 0, reported for the other Airflow 0" in ours
    assert re.search(r"\d+ runs, \d+ events .* requests, \d+ MB", peer)
    assert re.search(r"  ours +\d+ requests, .* s of CPU", peer)
    assert re.search(r"  airlift +\d+ requests, .* s of CPU", peer)


def test_waiting_beside_its_peer_takes_one_process_and_both_are_measured() -> None:
    printed = run("execute", "--dags", "3", "--seconds", "5")
    ours, peer = re.split(r"\n  tutorial ", printed, maxsplit=1)
    for told in (ours, peer):
        assert re.search(r"\d+ MB .* s of CPU and \d+ requests a minute", told)
        assert "the Dagster run ended in SUCCESS" in told
    assert "worker processes: 1 " in ours
    assert "3 runs of 3 DAGs" in ours
    assert re.search(r"The tutorial takes [\d.]+ times the memory", peer)


def test_a_dependency_beside_its_peer_is_followed_once_and_both_are_measured() -> None:
    printed = run("federating", *FEDERATING)
    figures = r"(?: +[\d.]+){7}"
    assert re.search(rf"tuned {figures}   median of 1, \d+ lost, \d+ doubled", printed)
    assert re.search(rf"ours {figures}   median of 1, 0 lost, 0 doubled", printed)
    assert re.search(r"tuned takes [\d.]+ times as long", printed)
