"""The Dagster daemons of `observe`: their cost, and the contents of their event logs."""

from __future__ import annotations

import shutil
import sqlite3
import sys
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from threading import Event, Thread
from typing import Any

import dagster as dg
import psutil
import yaml

from tests.bench.airflow2 import CountingAirflow
from tests.bench.contender import PASSWORD, USERNAME
from tests.bench.observers import INTERVAL_VARIABLE
from tests.conftest import ROOT
from tests.contract.fakes.airflow import FakeAirflow
from tests.live.dagster_dev import copy_project
from tests.processes import LoggedProcess

DAGS = 50
LAST_DAG = f"dag_{DAGS:03}"  # its only run ends last of all
_INSERT = """
INSERT INTO dag_run (dag_id, run_id, run_type, state, conf, execution_date, queued_at, start_date,
  end_date, data_interval_start, data_interval_end, updated_at, external_trigger, clear_number)
VALUES (:dag, :run, 'manual', 'success', X'80057d942e', :date, :start, :start, :end, :date, :date,
  :end, 1, 0)
"""


class Contender:
    """A Dagster daemon that observes both Airflows, to be started several times.

    Args:
        name: "ours" or "airlift".
        busy: The Airflow with runs, behind a proxy of the contender's own.
        quiet: The address of the Airflow without runs.
    """

    def __init__(self, name: str, folder: Path, busy: CountingAirflow, quiet: str) -> None:
        self.name = name
        self.airflow = busy
        self.home = folder / f"{name}-home"
        self.home.mkdir(parents=True)
        shutil.copy(ROOT / "deployment" / "dagster.yaml", self.home)
        self._log = folder / f"{name}.log"
        self._env = {
            "DAGSTER_HOME": str(self.home),
            "BENCH_BUSY_URL": busy.url,
            "BENCH_QUIET_URL": quiet,
            "DAGSTER_IS_DEV_CLI": "1",  # makes our components fetch their state
        }
        module, self._folder = "tests.bench.observers", ROOT
        if name == "ours":
            module, self._folder = "federation_defs.definitions", copy_project(folder / name)
            declare(self._folder, {"busy": busy.url, "quiet": quiet})
        self._env["PYTHONPATH"] = str(self._folder)
        daemon = Path(sys.executable).with_name("dagster-daemon")
        self._command = [daemon, "run", "-m", module, "-d", str(self._folder)]
        self.process: LoggedProcess | None = None

    def start(self, interval_s: int) -> None:
        env = {**self._env, INTERVAL_VARIABLE: str(interval_s)}
        self.process = LoggedProcess(self._command, self._log, self._folder, env)

    def stop(self) -> None:
        assert self.process
        assert self.process.is_running, self.process.read_log()[-3000:]
        self.process.terminate()

    def kill(self) -> None:
        if self.process and self.process.is_running:
            self.process.kill_tree()

    def find_processes(self) -> list[psutil.Process]:
        assert self.process
        return self.process.find_processes()

    def read_rss_mb(self) -> float:
        total = 0
        for process in self.find_processes():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total / 2**20

    def read_cpu_s(self) -> float:
        total = 0.0
        for process in self.find_processes():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total


def declare(project: Path, urls: Mapping[str, str]) -> None:
    """Replace the demo's instances."""
    folder = project / "federation_defs" / "defs"
    shutil.rmtree(folder)
    auth = {"type": "basic", "username": USERNAME, "password": PASSWORD}
    for name, url in urls.items():
        attributes = {"name": name, "url": url, "auth": auth}
        (folder / name).mkdir(parents=True)
        declared = {"type": "federation_defs.FederatedAirflow", "attributes": attributes}
        (folder / name / "defs.yaml").write_text(yaml.safe_dump(declared))


class Sampler:
    """Samples a contender's memory and its requests to the quiet Airflow, ten times a second."""

    def __init__(self, contender: Contender, quiet: FakeAirflow) -> None:
        self.peak_mb = self.longest_gap_s = 0.0
        self._contender, self._quiet = contender, quiet
        self._is_stopped = Event()
        self._thread = Thread(target=self._run)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopped.set()
        self._thread.join()

    def _run(self) -> None:
        seen, at = len(self._quiet.requests), 0.0
        while not self._is_stopped.wait(0.1):
            self.peak_mb = max(self.peak_mb, self._contender.read_rss_mb())
            now, count = time.monotonic(), len(self._quiet.requests)
            if count != seen:
                if at:  # from its first request on
                    self.longest_gap_s = max(self.longest_gap_s, now - at)
                seen, at = count, now


def insert_runs(home: Path, runs: int, since: datetime) -> set[tuple[str, str]]:
    """Insert runs that ended between a moment and now, and return them as (DAG id, run id)."""
    now = datetime.now(timezone.utc)
    step = (now - since) / (runs + 2)
    rows = []
    for number in range(runs + 1):
        dag_id = LAST_DAG if number == runs else f"dag_{number % DAGS:03}"
        end = since + step * (number + 1)
        # Logical dates are unique within a DAG.
        date = now - timedelta(days=1000) + timedelta(seconds=number)
        moments = {"date": date, "start": end - timedelta(seconds=1), "end": end}
        texts = {name: f"{moment:%F %T.%f}" for name, moment in moments.items()}
        rows.append({"dag": dag_id, "run": f"bench__{number:06}", **texts})
    with closing(sqlite3.connect(home / "airflow.db", timeout=60)) as database, database:
        database.execute("DELETE FROM dag_run")
        database.executemany(_INSERT, rows)
    return {(row["dag"], row["run"]) for row in rows}


def read_events(home: Path) -> list[tuple[float, str, str, str]]:
    """Return all materializations as (time, instance, DAG id, run id), sorted.

    Check evaluations are among them, with "check" before the DAG id and without a run id.
    """
    events = []
    with dg.DagsterInstance.from_config(str(home)) as instance:
        for key in instance.all_asset_keys():
            where, dag_id = key.path[0], key.path[-1]
            cursor = None
            while True:
                page = instance.fetch_materializations(key, limit=1000, cursor=cursor)
                for record in page.records:
                    event = record.asset_materialization
                    run_id = find_run_id(event.metadata if event else {})
                    events.append((record.timestamp, where, dag_id, run_id))
                if not page.has_more:
                    break
                cursor = page.cursor
            history = instance.event_log_storage.get_asset_check_execution_history(
                dg.AssetCheckKey(key, "dag_run"), limit=10_000
            )
            events += [
                (record.event.timestamp, where, f"check {dag_id}", "")
                for record in history
                if record.event
            ]
    return sorted(events)


def find_run_id(metadata: Mapping[str, Any]) -> str:
    for name in ("Run ID", "Airflow Run ID"):
        if name in metadata:
            return str(metadata[name].value)
    return ""


def count_materializations(home: Path) -> int:
    index = home / "history" / "runs" / "index.db"
    if not index.exists():
        return 0
    with closing(sqlite3.connect(f"file:{index}?mode=ro", uri=True, timeout=60)) as database:
        sql = "SELECT count(*) FROM event_logs WHERE dagster_event_type = 'ASSET_MATERIALIZATION'"
        try:
            return database.execute(sql).fetchone()[0]
        except sqlite3.OperationalError:
            return 0
