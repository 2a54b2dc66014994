"""Make one system of many Apache Airflows, in Dagster."""

from typing import TYPE_CHECKING, Any

from federation_defs.component import FederatedAirflow
from federation_defs.declaration import InstanceDeclaration
from federation_defs.errors import AirflowError, DeclarationError, FederationError
from federation_defs.loading import load_federation

if TYPE_CHECKING:
    from federation_defs.airlift import build_airflow_instance

__all__ = [
    "AirflowError",
    "DeclarationError",
    "FederatedAirflow",
    "FederationError",
    "InstanceDeclaration",
    "build_airflow_instance",
    "load_federation",
]


def __getattr__(name: str) -> Any:
    # On first use: importing dagster-airlift takes longer than the rest of a run worker's start.
    if name == "build_airflow_instance":
        from federation_defs.airlift import build_airflow_instance

        return build_airflow_instance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
