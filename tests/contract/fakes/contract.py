"""The DAGs of `dags/`, in a fake Airflow: the same tests find the same things in the real ones."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from tests.contract.fakes.database import Database
from tests.contract.fakes.rows import TaskSpec

FOLDERS = {name: Path(__file__).parents[1] / "dags" / name for name in ("warehouse", "metrics")}

LINES = 12_000
_EMPTY = "EmptyOperator"
_PARAMS = {
    "day": {
        "value": "2026-01-01",
        "description": "The day to load: größer, 日.",
        "schema": {"type": "string"},
    },
    "size": {"value": 3, "description": None, "schema": {"type": "integer", "minimum": 1}},
}
_DESCRIBED: dict[str, Any] = {
    "schedule": "0 3 29 2 *",
    "start_date": datetime(2025, 12, 31, 23, tzinfo=timezone.utc),
    "run_timeout": timedelta(hours=1, minutes=30),
    "description": "Prüft, was ein Airflow von einer DAG erzählt.",
    "doc": "# Größen\n\nWhat `described` is for: 数据.",
    "max_active_runs": 3,
    "params": _PARAMS,
    "tags": ("contract", "größe"),
    "owners": ("zoë",),
    "tasks": (
        TaskSpec("begin", ("load",), _EMPTY),
        TaskSpec("load", ("end",), retries=2),
        TaskSpec("end", (), _EMPTY, "all_done"),
    ),
}
_TALK = tuple(f"line {number:05d}: größer als 数" for number in range(LINES))
_DAGS: dict[str, dict[str, Any]] = {
    "described": _DESCRIBED,
    "mapped": {
        "tasks": (
            TaskSpec(
                "weigh",
                labels=("number 10", "number 20", "number 30"),
                says=("weighing {label}",),
            ),
        )
    },
    "write_numbers": {"file": "assets.py", "tasks": ("write",)},
    "read_numbers": {"file": "assets.py", "tasks": ("read",)},
    "wordy": {"tasks": (TaskSpec("talk", says=_TALK),)},
    "endless": {
        "tasks": (
            TaskSpec("wait", ("go_on",), says=("waiting in process 7",)),
            TaskSpec("go_on", (), _EMPTY),
        ),
        "polls": math.inf,
    },
    "warned": {"tasks": ("work",)},
}
_WARNINGS = {
    "v1": ("non-existent pool", "no_such_pool"),
    "v2": ("runtime varying value", "Line 15"),
}


def add_contract_dags(database: Database, api: str) -> None:
    """All that an Airflow of this version reads from `dags/`."""
    folder = FOLDERS["warehouse" if api == "v1" else "metrics"]
    dags = _DAGS | ({"partitioned": {"key_format": "%Y-%m-%d"}} if api == "v2" else {})
    for dag_id, columns in dags.items():
        dag = database.add_dag(dag_id, **{"polls": 2, "tags": ("contract",), **columns})
        dag.source = (folder / dag.file).read_text()
    database.add_asset(
        "x-contract://lake/numbers",
        name="numbers",
        group="lake",
        extra={"owner": "Zoë"},
        producers=(("write_numbers", "write"),),
        scheduled=("read_numbers",),
        event_extra={"rows": 3, "place": "Zürich"},
    )
    database.add_warning("warned", *_WARNINGS[api])
    database.add_import_error(
        "broken.py", "Traceback (most recent call last):\nRuntimeError: bröken on purpose\n"
    )
