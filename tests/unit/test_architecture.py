"""Who may know whom, read off the imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "federation_defs"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "defs" not in path.parts[-3:-1])

# From the top down: a room imports only from rooms below it, or beside it.
FLOORS = [
    ["definitions"],
    ["__init__"],
    ["loading", "component", "airlift"],
    ["scaffolding", "validation", "observation", "observation.__init__"],
    ["execution", "execution.__init__"],
    ["execution.definition"],
    ["execution.step"],
    ["execution.watching"],
    ["execution.admission", "execution.stopping"],
    ["execution.patience", "execution.slots", "execution.starting", "execution.telling"],
    ["execution.waiting"],
    ["execution.attempt", "execution.calls", "execution.failures"],
    ["execution.provenance", "execution.safety"],
    ["lineage"],
    ["observation.sensor"],
    ["observation.judging", "observation.looking", "observation.ownership"],
    ["observation.cursor"],
    ["observation.choosing", "observation.backoff", "observation.timely", "observation.gaps"],
    ["observation.handover", "observation.turn"],
    ["checks"],
    ["reporting"],
    ["automation", "discovery", "partitioning", "recovery", "verdicts"],
    ["success", "masking"],
    ["airflow.connecting"],
    ["airflow.instance"],
    ["airflow.backend"],
    ["airflow.client"],
    ["airflow.dags", "airflow.runs", "airflow.tasks", "airflow.assets"],
    ["airflow.paging"],
    ["airflow.api"],
    ["airflow.session"],
    ["airflow.clouds", "airflow.basic"],
    ["airflow.auth"],
    ["airflow.transport"],
    [
        "airflow.sockets",
        "airflow.pace",
        "airflow.tls",
        "airflow.flight",
        "airflow.dialects",
        "airflow.parsing",
        "airflow.permissions",
    ],
    ["airflow.records", "airflow.__init__"],
    ["declaration", "declaration.__init__"],
    ["declaration.instance"],
    ["declaration.dag"],
    ["declaration.connection"],
    ["declaration.fields"],
    ["templates"],
    ["naming", "errors", "tagging"],
]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module}
    return names


def floor_of(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down_the_hall(path: Path) -> None:
    own = floor_of(name_of(path))
    for name in imports_of(path):
        if name.startswith("federation_defs."):
            assert floor_of(name.removeprefix("federation_defs.")) >= own, name


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_private_is_imported_and_libraries_stay_in_their_rooms(path: Path) -> None:
    name = name_of(path)
    for imported in imports_of(path):
        assert not any(part.startswith("_") for part in imported.split(".") if part != "__future__")
        if imported.split(".")[0] in ("requests", "urllib3"):
            assert name.startswith("airflow.")
        if imported.startswith("dagster_airlift") and name != "airflow.instance":
            assert imported == "dagster_airlift.core"
            assert name in ("airlift", "airflow.backend", "discovery")


def test_importing_the_package_imports_neither_airlift_nor_anything_as_slow() -> None:
    """A run worker's start is the user's waiting time; airlift takes 1.6 s of import."""
    code = (
        "import sys, federation_defs; "
        "print([name for name in ('dagster_airlift', 'dagster_graphql') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert printed.stdout.strip() == "[]"
