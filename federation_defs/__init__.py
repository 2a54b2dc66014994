"""Make one system of many Apache Airflows, in Dagster."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from federation_defs.airlift import build_airflow_instance
    from federation_defs.component import FederatedAirflow
    from federation_defs.declaration import InstanceDeclaration
    from federation_defs.dependencies.record import Decision, Run, Skip, UpstreamEvent
    from federation_defs.errors import AirflowError, DeclarationError, FederationError
    from federation_defs.federation import build_federation
    from federation_defs.loading import load_federation
    from federation_defs.naming import build_asset_key

__all__ = [
    "AirflowError",
    "Decision",
    "DeclarationError",
    "FederatedAirflow",
    "FederationError",
    "InstanceDeclaration",
    "Run",
    "Skip",
    "UpstreamEvent",
    "build_airflow_instance",
    "build_asset_key",
    "build_federation",
    "load_federation",
]

_MODULES = {
    "airlift": ["build_airflow_instance"],
    "component": ["FederatedAirflow"],
    "declaration": ["InstanceDeclaration"],
    "dependencies.record": ["Decision", "Run", "Skip", "UpstreamEvent"],
    "errors": ["AirflowError", "DeclarationError", "FederationError"],
    "federation": ["build_federation"],
    "loading": ["load_federation"],
    "naming": ["build_asset_key"],
}


def __getattr__(name: str) -> Any:
    # Imports on first use: a process that calls an `only_if` function then needs no Dagster, whose
    # import takes a second, and a run worker no dagster-airlift, whose import takes longer.
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]  # `dg` finds the component in this list
