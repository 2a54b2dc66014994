"""An Airflow as dagster-airlift knows them, so that its functions can be used on our records."""

from __future__ import annotations

from collections.abc import Sequence

import requests
from dagster_airlift.core import AirflowAuthBackend, AirflowInstance, DagInfo
from typing_extensions import override

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.records import Dag


class _NoRequests(AirflowAuthBackend):
    """Tells airlift where the instance is, and nothing more: our client does the requests."""

    def __init__(self, url: str) -> None:
        self._url = url

    @override
    def get_session(self) -> requests.Session:
        raise NotImplementedError("dagster-airlift asked the instance for what no snapshot holds")

    @override
    def get_webserver_url(self) -> str:
        return self._url


class SnapshotInstance(AirflowInstance):
    """An instance whose DAGs were read already, whichever API they came from.

    Args:
        client: Where the DAGs came from.
        dags: What airlift gets to see.
    """

    def __init__(self, client: AirflowClient, dags: Sequence[Dag]) -> None:
        super().__init__(auth_backend=_NoRequests(client.url), name=client.instance)
        self._client = client
        self._dags = dags

    @override
    def list_dags(self, retrieval_filter: object = None) -> list[DagInfo]:
        return [
            DagInfo(webserver_url=self._client.url, dag_id=dag.dag_id, metadata=dict(dag.raw))
            for dag in self._dags
        ]

    @override
    def get_all_datasets(self, **_: object) -> list[object]:  # type: ignore[override]
        return []  # the specs of DAGs hold nothing of them
