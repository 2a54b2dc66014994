"""Declare instances in Python, where a loop replaces hundreds of lines of YAML."""

# No `from __future__ import annotations` here: Dagster finds a component by the return type of the
# function that loads it, and does not resolve text (1.13, `ComponentLoaderDecl`).

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import dagster as dg

from federation_defs.component import FederatedAirflow
from federation_defs.declaration import InstanceDeclaration, parse_declaration
from federation_defs.errors import DeclarationError

_Loader: TypeAlias = Callable[[dg.ComponentLoadContext], FederatedAirflow]


def build_federation(
    instances: Iterable[InstanceDeclaration | Mapping[str, Any]],
) -> dict[str, _Loader]:
    """Return the components of instances, as names for a Python file in a `defs` folder.

    Dagster (1.13) finds components in a Python file as names of its module, so add them there:

        globals().update(build_federation([{"name": "sales", "url": ..., "auth": ...}, ...]))

    Each component equals that of a `defs.yaml` with the same `attributes`: templates are rendered,
    it has a state of its own, and instances in YAML and Python may depend on each other.

    Args:
        instances: The `attributes` of each instance. Nested values may be mappings or types of
            `federation_defs.declaration`.

    Returns:
        Functions that load the components, by names that no Python variable can have.

    Raises:
        DeclarationError: Keys are missing or wrong. Names all problems of all instances.
    """
    loaders: dict[str, _Loader] = {}
    problems: list[str] = []
    for number, values in enumerate(instances, 1):
        is_mapping = isinstance(values, Mapping)
        unnamed = f"number {number}"
        name = values.get("name", unnamed) if is_mapping else getattr(values, "name", unnamed)
        try:
            declaration = parse_declaration(values, f"build_federation ({name})")
        except DeclarationError as error:
            problems += error.problems
        else:
            loaders[f"{name} {number}"] = _build_loader(declaration)
    if problems:
        raise DeclarationError(problems)
    return loaders


def _build_loader(declaration: InstanceDeclaration) -> _Loader:
    @dg.component_instance
    def load(context: dg.ComponentLoadContext) -> FederatedAirflow:
        return FederatedAirflow.load(declaration, context)

    return load
