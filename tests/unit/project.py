"""A Dagster project in a temporary folder, with instances under its defs folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import dagster as dg
import yaml
from dagster._core.definitions.definitions_load_context import (
    DefinitionsLoadContext,
    DefinitionsLoadType,
)
from dagster.components.utils.project_paths import get_local_state_path

from federation_defs import load_federation
from federation_defs.naming import build_asset_key
from federation_defs.schedules import AutoPartitions
from federation_defs.state import write_snapshot
from tests.unit.build import build_snapshot

PYPROJECT = """\
[project]
name = "{module}"
version = "0"

[tool.dg]
directory_type = "project"

[tool.dg.project]
root_module = "{module}"
"""
DEFINITIONS = """\
from pathlib import Path

import dagster as dg
from federation_defs import load_federation


@dg.definitions
def defs() -> dg.Definitions:
    return load_federation(Path(__file__).parent)
"""
PYTHON = """\
from federation_defs import build_federation

warehouse = "a name of the module's own"
globals().update(build_federation({instances}))
"""


class Project:
    """A Dagster project with instances under its defs folder."""

    def __init__(self, path: Path, module: str) -> None:
        self.path = path
        self.defs = path / module / "defs"
        self.defs.mkdir(parents=True)
        (path / module / "__init__.py").touch()
        (path / module / "definitions.py").write_text(DEFINITIONS)
        (path / "pyproject.toml").write_text(PYPROJECT.format(module=module))

    def declare(
        self,
        instance: str,
        url: str = "http://127.0.0.1:1",
        auth: Mapping[str, str] = MappingProxyType({"type": "none"}),
        more: Mapping[str, Any] = MappingProxyType({}),
        **dags: list[str],
    ) -> None:
        """Declare an instance with more keys, and these dependencies by DAG id."""
        attributes: dict[str, Any] = {
            "dags": {dag_id: {"depends_on": upstreams} for dag_id, upstreams in dags.items()},
            **more,
            "name": instance,
            "url": url,
            "auth": dict(auth),
        }
        declared = {"type": "federation_defs.FederatedAirflow", "attributes": attributes}
        (self.defs / instance).mkdir()
        (self.defs / instance / "defs.yaml").write_text(yaml.safe_dump(declared))

    def move_to_python(self) -> None:
        """Declare in a Python file, in place of YAML, all instances that were declared so far."""
        instances = []
        for path in sorted(self.defs.glob("*/defs.yaml")):
            instances.append(yaml.safe_load(path.read_text())["attributes"])
            path.unlink()
            path.parent.rmdir()
        (self.defs / "instances.py").write_text(PYTHON.format(instances=instances))

    def keep_state(self, instance: str, *dag_ids: str, **partitions: AutoPartitions) -> None:
        """Write the last known state of an instance, with what `partitions: auto` stands for."""
        path = get_local_state_path(f"FederatedAirflow[{instance}]", self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_snapshot(replace(build_snapshot(*dag_ids), partitions=partitions), path)

    def load_asset_keys(self) -> set[dg.AssetKey]:
        # A run that another test executed in this process has left its own context (dagster 1.13).
        context = DefinitionsLoadContext(DefinitionsLoadType.INITIALIZATION)
        DefinitionsLoadContext.set(context)
        graph = load_federation(self.path).resolve_asset_graph()
        return set(graph.get_all_asset_keys())


def build_keys(*names: str) -> set[dg.AssetKey]:
    return {build_asset_key(*name.split("/")) for name in names}
