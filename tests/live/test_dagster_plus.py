"""A real code server and real run workers whose storages refuse what those of Dagster+ refuse.

Daemon and webserver, which Dagster+ runs itself, may do everything. `make soak` runs it;
`tests/contract/test_locations.py` shows the same over fake Airflows.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import dagster as dg
import pytest
import yaml

from tests.conftest import ROOT, Airflows
from tests.contract.dagster_plus import IN_USER_CODE
from tests.contract.storages import CLOUD
from tests.live.dagster_dev import DagsterDev
from tests.live.federation import (
    NAMES,
    UNWATCHED,
    Dependency,
    Federation,
    replace_dags,
    utc_now,
)

pytestmark = pytest.mark.soak

RELAY = Dependency(UNWATCHED, UNWATCHED)


def prepare(dagster: DagsterDev) -> None:
    """Let code servers, and with them their run workers, know that they are user code."""
    python = dagster.home / "python"
    python.write_text(f'#!/bin/sh\n{IN_USER_CODE}=1 exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    module = {
        "module_name": "federation_defs.definitions",
        "working_directory": str(dagster.project),
        "location_name": "federation_defs",
        "executable_path": str(python),
    }
    workspace = dagster.home / "workspace.yaml"
    workspace.write_text(yaml.safe_dump({"load_from": [{"python_module": module}]}))
    dagster.options = ["--workspace", str(workspace)]
    with (dagster.home / "dagster.yaml").open("a") as settings:
        settings.write(f"\n{yaml.safe_dump(CLOUD)}")
    dagster.env["PYTHONPATH"] += f"{os.pathsep}{ROOT}"


def find_user_code(dagster: DagsterDev) -> list[str]:
    """Return the command lines of the processes to which requests are refused."""
    assert dagster.process
    processes = dagster.process.find_processes()
    return [" ".join(each.cmdline()) for each in processes if IN_USER_CODE in each.environ()]


@pytest.fixture
def plus(airflows: Airflows, tmp_path: Path) -> Iterator[Federation]:
    clients = {name: airflows.connect(name) for name in NAMES}
    dagster = DagsterDev(tmp_path, airflows.env)
    prepare(dagster)
    downstream = {UNWATCHED: {"depends_on": [f"warehouse/{UNWATCHED}"]}}
    replace_dags(dagster.project, "warehouse", [UNWATCHED], {})
    replace_dags(dagster.project, "metrics", [UNWATCHED], downstream)
    with ExitStack() as stack:
        dagster.start()
        assert dagster.process
        stack.callback(dagster.process.kill_tree)
        event_log = stack.enter_context(dg.DagsterInstance.from_config(str(dagster.home)))
        yield Federation(dagster, clients, {}, event_log, airflows.lake)


def test_a_dag_follows_one_of_another_airflow_in_the_user_code_of_dagster_plus(
    plus: Federation,
) -> None:
    commands = find_user_code(plus.dagster)
    assert any("dagster api grpc" in command for command in commands), commands
    assert not [command for command in commands if "daemon" in command or "webserver" in command]
    plus.wait_for_ticks()  # which report what ended before
    since = utc_now()
    (upstream,) = plus.run_upstream(RELAY)
    plus.wait_for_materialization("warehouse", RELAY.upstream, upstream, since)
    downstream = plus.wait_for_downstream(RELAY, since, "success")
    plus.wait_for_materialization("metrics", RELAY.downstream, downstream, since)

    plus.wait_for_ticks()
    # Other tests may run the same DAGs meanwhile.
    for name, dag_id, run in (
        ("warehouse", RELAY.upstream, upstream),
        ("metrics", RELAY.downstream, downstream),
    ):
        reports = plus.fetch_materializations(name, dag_id, since)
        assert [report.run_id for report in reports].count(run.run_id) == 1
