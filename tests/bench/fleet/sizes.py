"""The fleets of the benchmark: their instances, DAGs and dependencies, and their projects on disk.

A fleet is the same each time: all that is random in it comes from one seed. Each downstream DAG
depends on one DAG of another instance, which no other DAG depends on, so that an end in one Airflow
is followed by exactly one trigger in another.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tests.contract.fakes.airflow import PASSWORD, USERNAME
from tests.unit.project import DEFINITIONS, PYPROJECT

SEED = 13
URL_VARIABLE, PASSWORD_VARIABLE, SIZE_VARIABLE = "FLEET_URL", "FLEET_PASSWORD", "FLEET_SIZE"
PACKAGE = "sales_platform"
AUTOMATION_SENSOR = "automation_sensor"  # airlift's

Dag = tuple[str, str]  # instance and DAG id


def _build_plain(upstream: str) -> dict[str, Any]:
    return {"depends_on": [upstream]}


def _build_with(**trigger: Any) -> Callable[[str], dict[str, Any]]:
    return lambda upstream: {"depends_on": [upstream], "trigger": trigger}


# The kinds of dependencies, each as often as in a fleet where most are plain. A success of the
# upstream starts each of them.
_KINDS = [
    *[_build_plain] * 3,
    _build_with(when="all"),
    *[_build_plain] * 3,
    _build_with(runs="each"),
    lambda upstream: {"depends_on": [{"dag": upstream, "state": "finished"}]},
    _build_with(runs="each", pass_upstream=True, reruns="rerun"),
]


@dataclass(frozen=True)
class Fleet:
    """Some Airflows.

    Attributes:
        dags: Of each instance.
        edges: Dependencies between DAGs of two instances.
        ends_per_s: How many runs of upstream DAGs end while latency is measured.
        uses_postgres: Dagster's storage; SQLite if not.
    """

    name: str
    instances: int
    dags: int
    edges: int
    ends_per_s: float
    uses_postgres: bool

    def __str__(self) -> str:
        storage = "PostgreSQL" if self.uses_postgres else "SQLite"
        dags = f"{self.instances} Airflows of {self.dags} DAGs, {self.edges} dependencies"
        return f"{dags}, {storage}"

    @cached_property
    def dag_ids(self) -> dict[str, list[str]]:
        """The DAGs of each instance, by its name."""
        names = [f"i{number:03}" for number in range(self.instances)]
        return {name: [f"dag_{number:04}" for number in range(self.dags)] for name in names}

    @cached_property
    def upstreams(self) -> dict[Dag, Dag]:
        """The upstream DAG of each downstream DAG. The instances have equally many of both."""
        instances = self.dag_ids.items()
        all_dags = [(name, ids[number]) for number in range(self.dags) for name, ids in instances]
        downstreams, sources = all_dags[: self.edges], all_dags[self.edges :]
        random.Random(SEED).shuffle(sources)
        found: dict[Dag, Dag] = {}
        for downstream in downstreams:
            found[downstream] = next(dag for dag in sources if dag[0] != downstream[0])
            sources.remove(found[downstream])
        return found

    def build_declarations(self) -> list[dict[str, Any]]:
        """Build the attributes of each instance's defs.yaml. Address and password are variables."""
        dags: defaultdict[str, dict[str, Any]] = defaultdict(dict)
        for (instance, dag_id), upstream in self.upstreams.items():
            build = _KINDS[len(dags[instance]) % len(_KINDS)]
            dags[instance][dag_id] = build("/".join(upstream))
        password = f"{{{{ env.{PASSWORD_VARIABLE} }}}}"
        auth = {"type": "password", "username": USERNAME, "password": password}
        url = f"{{{{ env.{URL_VARIABLE} }}}}"
        return [
            {"name": name, "url": f"{url}/{name}", "auth": auth, "dags": dags[name]}
            for name in self.dag_ids
        ]

    def write_project(self, folder: Path) -> None:
        """Write a project as in the README, with a defs.yaml for each instance."""
        package = folder / PACKAGE
        (package / "defs").mkdir(parents=True)
        (folder / "pyproject.toml").write_text(PYPROJECT.format(module=PACKAGE))
        for module in (package, package / "defs"):
            (module / "__init__.py").touch()
        (package / "definitions.py").write_text(DEFINITIONS)
        for attributes in self.build_declarations():
            own = package / "defs" / attributes["name"]
            own.mkdir()
            declared = {"type": "federation_defs.FederatedAirflow", "attributes": attributes}
            (own / "defs.yaml").write_text(yaml.safe_dump(declared))


def refresh_state(folder: Path, url: str) -> None:
    """Fetch the state of all instances of a project from the Airflows at this address."""
    command = [Path(sys.executable).with_name("dg"), "utils", "refresh-defs-state"]
    env = {**os.environ, **build_environment(url), "PYTHONPATH": str(folder)}
    ran = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=600
    )
    if ran.returncode != 0:
        raise SystemExit(f"The state was not refreshed:\n{ran.stdout}{ran.stderr}")


def build_environment(url: str) -> dict[str, str]:
    """Build the variables that the declarations read."""
    return {URL_VARIABLE: url, PASSWORD_VARIABLE: PASSWORD}


SIZES = {
    fleet.name: fleet
    for fleet in (
        Fleet("XS", 2, 3, 2, ends_per_s=0.5, uses_postgres=False),  # for tests of the benchmark
        Fleet("S", 2, 5, 5, ends_per_s=0.2, uses_postgres=False),
        Fleet("M", 7, 100, 150, ends_per_s=0.5, uses_postgres=False),
        Fleet("L", 20, 500, 2_000, ends_per_s=0.3, uses_postgres=True),
        Fleet("XL", 200, 70, 2_800, ends_per_s=0.2, uses_postgres=True),
        # One of the deployments that a larger fleet is split into: two or three for M, two for L,
        # and four for XL.
        Fleet("M2", 4, 100, 86, ends_per_s=0.29, uses_postgres=False),
        Fleet("M3", 3, 100, 64, ends_per_s=0.21, uses_postgres=False),
        Fleet("L2", 10, 500, 1_000, ends_per_s=0.15, uses_postgres=True),
        Fleet("XL4", 50, 70, 700, ends_per_s=0.05, uses_postgres=True),
    )
}
