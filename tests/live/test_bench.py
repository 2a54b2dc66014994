"""The short version of `make bench-observe`: that it measures, not how fast anything is."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.conftest import ROOT

SHORT = ["--runs", "60", "--outage", "2", "--idle", "10", "--warm-up", "5", "--limit-events", "20"]


def test_observation_beside_its_peer_loses_and_doubles_nothing_and_both_are_measured() -> None:
    command = [sys.executable, "-m", "tests.bench.observe", *SHORT]
    ran = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600
    )
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"Dagster alone.* \d+ materializations/s, \d+ check evaluations/s", ran.stdout)
    ours, peer = re.split(r"\n  airlift ", ran.stdout, maxsplit=1)
    assert "61 runs, 122 events" in ours
    assert "lost 0, doubled 0, reported for the other Airflow 0" in ours
    assert re.search(r"\d+ runs, \d+ events .* requests, \d+ MB", peer)
    assert re.search(r"  ours +\d+ requests, .* s of CPU", peer)
    assert re.search(r"  airlift +\d+ requests, .* s of CPU", peer)
