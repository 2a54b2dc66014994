"""The layers of the package, checked by its imports."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "federation_defs"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "defs" not in path.parts[-3:-1])

# From top to bottom. A module imports only from its own layer and the layers below.
LAYERS = [
    ["definitions"],
    ["__init__"],
    ["loading", "federation", "command"],
    ["refresh"],
    ["component"],
    ["scaffolder", "instance_defs"],
    ["validation", "observation", "observation.__init__", "observation.sensor"],
    ["dependencies.sensor"],
    ["dependencies.starter"],
    ["dependencies.run_lookup"],
    ["execution", "execution.__init__", "execution.asset"],
    ["execution.monitor", "execution.cancellation", "execution.reporter"],
    ["execution.launcher", "execution.concurrency"],
    ["execution.polling", "dependencies.decider"],
    ["observation.check_evaluator"],
    ["observation.max_duration_check", "observation.deadline_check", "observation.ready_check"],
    ["observation.partitions_check"],
    ["observation.periodic_check"],
    ["observation.poll_interval", "observation.poller", "observation.reporter"],
    ["observation.outcome_fetcher", "observation.tick"],
    ["observation.cursor"],
    ["specs", "checks"],
    ["events"],
    ["dagster_io.event_log"],
    ["dagster_io.reports"],
    ["automation", "state", "partitions", "outcome"],
    ["schedules"],
    ["partition_mapping"],
    ["dependencies", "dependencies.__init__", "dependencies.only_if"],
    ["dagster_io", "dagster_io.__init__", "dagster_io.heartbeat"],
    ["dagster_io.current_run", "dagster_io.deployment", "dagster_io.long_poll"],
    ["dagster_io.run_tags", "dagster_io.code_locations"],
    ["airlift"],
    ["airflow.client"],
    ["airflow.runs"],
    ["airflow.api"],
    ["airflow.session"],
    ["airflow.cloud_auth", "airflow.auth"],
    ["airflow.http", "airflow.versions"],
    ["airflow.connections", "airflow.pages"],
    ["airflow.models", "airflow.__init__"],
    ["declaration", "declaration.__init__"],
    ["declaration.instance"],
    ["declaration.dag"],
    ["declaration.connection", "declaration.dependency", "declaration.partitions"],
    ["declaration.fields"],
    ["naming", "errors", "redaction", "safety", "threads", "timing", "dependencies.record"],
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


def layer_of(name: str) -> int:
    return next(number for number, modules in enumerate(LAYERS) if name in modules)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    own = layer_of(name_of(path))
    for name in imports_of(path):
        if name.startswith("federation_defs."):
            assert layer_of(name.removeprefix("federation_defs.")) >= own, name


# Private modules of other packages, by the module that imports them and says why.
PRIVATE = {"dagster_io.deployment": "dagster._core.definitions"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_private_is_imported_and_libraries_only_where_they_belong(path: Path) -> None:
    name = name_of(path)
    for imported in imports_of(path):
        parts = imported.split(".")
        is_private = any(part.startswith("_") for part in parts if part != "__future__")
        assert not is_private or PRIVATE.get(name) == imported
        if imported.split(".")[0] in ("requests", "urllib3"):
            assert name.startswith("airflow.")
        if imported.startswith("dagster_airlift"):
            assert name == "airlift"


# The most modules of the package that are imported, by the module that imports them.
MOST = {"observation.sensor": 55, "execution.asset": 49}
STATEMENTS = {
    "package": "from federation_defs import FederatedAirflow, load_federation",
    **{entry: f"import federation_defs.{entry}" for entry in MOST},
}
# Prints what is imported after each of the statements, one by one: Dagster takes a second.
PRINT_IMPORTED = """
import json, os, sys
import dagster

for name, statement in json.loads(sys.argv[1]).items():
    if os.fork() == 0:
        exec(statement)
        files = {key: getattr(module, "__file__", "") for key, module in sys.modules.items()}
        print(json.dumps([name, files]))
        sys.exit()
    if os.wait()[1]:
        sys.exit(f"failed: {statement}")
"""


@pytest.fixture(scope="module")
def imported() -> Mapping[str, Mapping[str, str]]:
    """The files of the modules that are imported after each of the statements, by name."""
    command = [sys.executable, "-c", PRINT_IMPORTED, json.dumps(STATEMENTS)]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    return dict(map(json.loads, printed.stdout.splitlines()))


def test_importing_the_package_does_not_import_what_run_workers_do_without(
    imported: Mapping[str, Mapping[str, str]],
) -> None:
    """Every trigger waits for a run worker to start; importing dagster-airlift takes 1.6 s."""
    left_out = {
        "dagster_airlift",
        "dagster_graphql",
        "federation_defs.dependencies.sensor",
        "federation_defs.observation",
    }
    assert "federation_defs.component" in imported["package"]
    assert not left_out & imported["package"].keys()


@pytest.mark.parametrize(("entry", "most"), MOST.items())
def test_a_sensor_and_a_step_import_no_more_modules_than_they_need(
    imported: Mapping[str, Mapping[str, str]], entry: str, most: int
) -> None:
    """`pytest -s` prints how many these are, with their lines."""
    modules = [
        Path(file)
        for name, file in imported[entry].items()
        if name.split(".")[0] == "federation_defs"
    ]
    assert modules
    lines = sum(len(module.read_text().splitlines()) for module in modules)
    print(f"{entry}: {len(modules)} modules, {lines:,} lines")  # noqa: T201
    assert len(modules) <= most
