"""One system out of many Apache Airflows, in Dagster."""

from federation_defs.airlift import build_airflow_instance
from federation_defs.component import FederatedAirflow
from federation_defs.declaration import InstanceDeclaration
from federation_defs.errors import AirflowError, DeclarationError, FederationError
from federation_defs.loading import load_federation

__all__ = [
    "AirflowError",
    "DeclarationError",
    "FederatedAirflow",
    "FederationError",
    "InstanceDeclaration",
    "build_airflow_instance",
    "load_federation",
]
