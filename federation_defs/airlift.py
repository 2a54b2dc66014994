"""For those who have code on dagster-airlift: an instance that its functions take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from federation_defs.airflow.connecting import build_client
from federation_defs.declaration import parse_declaration

if TYPE_CHECKING:
    from dagster_airlift.core import AirflowInstance


def build_airflow_instance(**attributes: Any) -> AirflowInstance:
    """A dagster-airlift `AirflowInstance` for Airflow 2 or 3, whichever way it is signed in to.

    `load_airflow_dag_asset_specs`, `build_airflow_polling_sensor` and
    `build_defs_from_airflow_instance` take it. Errors are this package's own, not airlift's.

    Args:
        attributes: As in a defs.yaml: `name`, `url` and `auth`, and if need be `api`, `tls` and
            `http`.

    Raises:
        DeclarationError: They don't hold.
        MissingExtraError: The way to sign in needs a package that is not installed.
    """
    # Deferred: it takes 1.6 s, and who does not use airlift's functions does not need it.
    from federation_defs.airflow.instance import ClientInstance

    declaration = parse_declaration(attributes, "build_airflow_instance(...)")
    return ClientInstance(build_client(declaration, "`auth`"))
