"""Short runs of the benchmarks: they measure something, however fast it is."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.conftest import ROOT
from tests.processes import LoggedProcess

pytestmark = pytest.mark.soak

OBSERVE = ["--runs", "60", "--outage", "2", "--idle", "10", "--warm-up", "5", "--limit-events"]
FLEET = ["--sizes", "XS", "--rounds", "1", "--idle-minutes", "0.5", "--minutes", "0.5"]
FEDERATING = ["--contenders", "tuned", "ours", "--runs", "1", "--starts", "1", "--warm-up", "0"]


def run(benchmark: str, *options: str) -> str:
    """Return what a benchmark prints."""
    command = [sys.executable, "-m", f"tests.bench.{benchmark}", *options]
    with TemporaryDirectory() as folder:
        process = LoggedProcess(command, Path(folder) / "printed", cwd=ROOT, env={})
        exit_code = process.wait(timeout_s=600)
        assert exit_code == 0, process.read_log()
        return process.read_log()


def test_observe_measures_airlift_and_ours_which_loses_and_doubles_nothing() -> None:
    printed = run("observe", *OBSERVE, "20")
    assert re.search(r"Dagster alone.* \d+ materializations/s, \d+ check evaluations/s", printed)
    ours, peer = re.split(r"\n  airlift ", printed, maxsplit=1)
    assert "61 runs, 122 events" in ours
    assert "lost 0, doubled 0, reported for the other Airflow 0" in ours
    assert re.search(r"\d+ runs, \d+ events .* requests, \d+ MB", peer)
    assert re.search(r"  ours +\d+ requests, .* s of CPU", peer)
    assert re.search(r"  airlift +\d+ requests, .* s of CPU", peer)


def test_execute_measures_the_tutorial_and_ours_which_waits_in_one_process() -> None:
    printed = run("execute", "--dags", "3", "--seconds", "5")
    ours, peer = re.split(r"\n  tutorial ", printed, maxsplit=1)
    for figures in (ours, peer):
        assert re.search(r"\d+ MB .* s of CPU and \d+ requests a minute", figures)
        assert "the Dagster run ended in SUCCESS" in figures
    assert "worker processes: 1 " in ours
    assert "3 runs of 3 DAGs" in ours
    assert re.search(r"The tutorial takes [\d.]+ times the memory", peer)


def test_federating_measures_the_tutorial_and_ours_which_loses_and_doubles_nothing() -> None:
    printed = run("federating", *FEDERATING)
    figures = r"(?: +[\d.]+){7}"
    assert re.search(rf"tuned {figures}   median of 1, \d+ lost, \d+ doubled", printed)
    assert re.search(rf"ours {figures}   median of 1, 0 lost, 0 doubled", printed)
    assert re.search(r"tuned takes [\d.]+ times as long", printed)


def test_fleet_measures_airlift_and_ours_which_follows_each_end() -> None:
    printed = run("fleet", *FLEET)
    assert "failed" not in printed
    for contender in ("ours", "airlift"):
        start = r"[\d.]+ CPU s, \d+ MB \("
        assert re.search(rf"run worker until its trigger +{contender} +{start}", printed)
        assert re.search(rf"code server from state +{contender} +{start}", printed)
        parts = r"code server [\d.]+, webserver [\d.]+, daemon [\d.]+, workers [\d.]+"
        assert re.search(rf"idle.* {contender} +[\d.]+ CPU s a minute \({parts}\)", printed)
        gaps = r"observation [\d.]+ s .*; automation and events [\d.]+ s "
        assert re.search(rf"longest intervals while idle +{contender} +{gaps}", printed)
        assert re.search(rf"upstream end to trigger +{contender} +p95 .*, n 1[56], ", printed)
    assert re.search(r"upstream end to trigger +ours .*, 0 never ", printed)
