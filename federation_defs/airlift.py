"""dagster-airlift's `AirflowInstance`, for Airflow 2 and 3 and every way to sign in.

`get_all_datasets` has to return records of `serialized_data`, which dagster-airlift (0.29) exports
nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

from dagster_airlift.core import AirflowAuthBackend, AirflowInstance, DagInfo
from dagster_airlift.core.filter import AirflowFilter
from dagster_airlift.core.runtime_representations import DagRun, TaskInstance
from dagster_airlift.core.serialization.serialized_data import (
    Dataset,
    DatasetConsumingDag,
    DatasetProducingTask,
)
from typing_extensions import override

from federation_defs.airflow.api import MAX_ROWS
from federation_defs.airflow.client import AirflowClient, build_client
from federation_defs.airflow.models import AirflowAsset, Dag, TriggerOptions
from federation_defs.airflow.models import TaskInstance as Task
from federation_defs.airflow.session import RequestsFacade
from federation_defs.declaration import parse_declaration
from federation_defs.errors import AirflowError, TriggersOffError, UnexpectedAnswerError
from federation_defs.safety import find_safe_mode_reason


class ClientBackend(AirflowAuthBackend):
    """Gives dagster-airlift the instance's address, and a session over our client."""

    def __init__(self, client: AirflowClient) -> None:
        self._client = client

    @override
    def get_session(self) -> RequestsFacade:
        return RequestsFacade(self._client.session)

    @override
    def get_webserver_url(self) -> str:
        return self._client.url


MAX_PREFETCHED_SOURCES = 64  # in one call


class ClientInstance(AirflowInstance):
    """An instance whose requests our client sends. It raises the client's errors, not airlift's."""

    def __init__(self, client: AirflowClient) -> None:
        super().__init__(auth_backend=ClientBackend(client), name=client.instance)
        self.client = client
        self._dags_by_token: dict[str, Dag] = {}
        self._sources: dict[str, str] = {}

    @override
    def get_api_url(self) -> str:
        return self.client.url + self.client.api_version.prefix

    @override
    def list_dags(self, retrieval_filter: AirflowFilter | None = None) -> list[DagInfo]:
        wanted = retrieval_filter or AirflowFilter()
        tags = wanted.airflow_tags or ()
        dags = self.client.fetch_dags(wanted.dag_id_ilike, tags, with_raw=True)
        self._dags_by_token = {dag.file_token: dag for dag in dags}
        self._sources = {}
        return [
            DagInfo(webserver_url=self.client.url, dag_id=dag.dag_id, metadata=dict(dag.raw or {}))
            for dag in dags
        ]

    @override
    def get_dag_source_code(self, file_token: str) -> str:
        """Return the source of a DAG's file. Airlift requests one file after the other, so all
        fetches but the first include the files that follow."""
        if file_token not in self._sources:
            if file_token not in self._dags_by_token:
                self.list_dags()
            if file_token not in self._dags_by_token:
                raise AirflowError(
                    self.name,
                    "has no DAG whose file has the token for which the source was requested. The "
                    "file was deleted or moved; load the DAGs again.",
                )
            tokens = list(self._dags_by_token)
            start = tokens.index(file_token)
            batch = tokens[start : start + (MAX_PREFETCHED_SOURCES if self._sources else 1)]
            dags = {token: self._dags_by_token[token] for token in batch}
            texts = self.client.fetch_dag_sources(dags.values())
            # Airlift needs a text: that of a deleted file is empty.
            read = {token: texts.get(dag.dag_id, "") for token, dag in dags.items()}
            if isinstance(source := read[file_token], AirflowError):
                raise source
            self._sources |= {tok: text for tok, text in read.items() if isinstance(text, str)}
        return self._sources[file_token]

    @override
    def get_all_datasets(
        self,
        *,
        batch_size: int = 100,
        retrieval_filter: AirflowFilter | None = None,
        dag_ids: Sequence[str] | None = None,
    ) -> Sequence[Dataset]:
        part = (retrieval_filter.dataset_uri_ilike if retrieval_filter else None) or ""
        assets = self.client.fetch_assets()
        wanted = [asset for asset in assets if part.lower() in asset.uri.lower()]
        datasets = [_build_dataset(asset, dag_ids) for asset in wanted]
        # As in airlift, datasets that none of these DAGs produces are left out.
        return [dataset for dataset in datasets if dataset.producing_tasks]

    @override
    def get_dag_run(self, dag_id: str, run_id: str) -> DagRun:
        return self._complete_run(super().get_dag_run(dag_id, run_id))

    @override
    def get_dag_runs_batch(
        self, dag_ids: Sequence[str], *args: Any, **kwargs: Any
    ) -> tuple[list[DagRun], int]:
        if not dag_ids:  # the API would return runs of all DAGs
            return [], 0
        runs, total = super().get_dag_runs_batch(dag_ids, *args, **kwargs)
        return [self._complete_run(run) for run in runs], total

    def _complete_run(self, run: DagRun) -> DagRun:
        kind = _DagRun3 if self.client.api_version.api == "v2" else DagRun
        metadata = _complete_dates(run.metadata)
        return kind(
            webserver_url=self.client.url, dag_id=run.dag_id, run_id=run.run_id, metadata=metadata
        )

    @override
    def get_task_instance_batch_time_range(
        self,
        dag_ids: Sequence[str],
        states: Sequence[str],
        end_date_gte: datetime,
        end_date_lte: datetime,
    ) -> list[TaskInstance]:
        times = {"end_date_gte": end_date_gte.isoformat(), "end_date_lte": end_date_lte.isoformat()}
        body = {"dag_ids": list(dag_ids), "state": list(states), **times}
        return self._list_task_instances(body)

    @override
    def get_task_instance_batch(
        self, dag_id: str, task_ids: Sequence[str], run_id: str, states: Sequence[str]
    ) -> list[TaskInstance]:
        if not task_ids:
            return []
        body = {"dag_ids": [dag_id], "dag_run_ids": [run_id], "task_ids": list(task_ids)}
        return [task for task in self._list_task_instances(body) if task.state in states]

    def _list_task_instances(self, body: dict[str, Any]) -> list[TaskInstance]:
        url = f"{self.get_api_url()}/dags/~/dagRuns/~/taskInstances/list"
        session = self.auth_backend.get_session()
        rows: list[dict[str, Any]] = []
        while True:  # airlift reads the first page only
            page = {**body, "page_offset": len(rows), "page_limit": self.batch_task_instance_limit}
            answer = session.post(url, json=page).json()
            more = answer["task_instances"]
            if more and more == rows[: len(more)]:
                seen = "the same `task_instances` at each offset"
                raise UnexpectedAnswerError(self.name, f"POST {url}", seen)
            rows += more
            if not more or len(rows) >= min(answer["total_entries"], MAX_ROWS):
                return [self._build_task_instance(row) for row in rows]

    @override
    def get_task_instance(self, dag_id: str, task_id: str, run_id: str) -> TaskInstance:
        task = super().get_task_instance(dag_id, task_id, run_id)
        return self._build_task_instance(task.metadata)

    def _build_task_instance(self, answer: Mapping[str, Any]) -> TaskInstance:
        return TaskInstance(
            webserver_url=self.client.url,
            dag_id=answer["dag_id"],
            task_id=answer["task_id"],
            run_id=answer["dag_run_id"],
            metadata=_complete_dates(answer),
        )

    @override
    def trigger_dag(self, dag_id: str, logical_date: datetime | None = None) -> str:
        if (reason := find_safe_mode_reason(os.environ)) is not None:
            raise TriggersOffError(self.name, f"run DAG '{dag_id}'", reason)
        options = TriggerOptions(logical_date or "now")
        return self.client.trigger_run(dag_id, f"dagster__{uuid4()}", {}, options).run_id

    @override
    def unpause_dag(self, dag_id: str) -> None:
        # Airlift's own request would unpause all DAGs whose id contains this one.
        url = f"{self.get_api_url()}/dags/{dag_id}"
        self.auth_backend.get_session().patch(url, json={"is_paused": False})

    @override
    def get_task_instance_logs(
        self, dag_id: str, task_id: str, run_id: str, try_number: int
    ) -> str:
        task = Task(task_id, map_index=-1, state=None, try_number=try_number)
        return self.client.fetch_log(dag_id, run_id, task)


class _DagRun3(DagRun):
    """A run of Airflow 3. Its page has another address than in Airflow 2."""

    @property
    @override
    def url(self) -> str:
        return f"{self.webserver_url}/dags/{self.dag_id}/runs/{self.run_id}"


def _build_dataset(asset: AirflowAsset, dag_ids: Sequence[str] | None) -> Dataset:
    unknown = {"created_at": "", "updated_at": ""}
    consuming = [
        DatasetConsumingDag(dag_id=dag_id, **unknown)
        for dag_id in asset.scheduled_dag_ids
        if not dag_ids or dag_id in dag_ids
    ]
    producing = [
        DatasetProducingTask(dag_id=dag_id, task_id=task_id, **unknown)
        for dag_id, task_id in asset.producing_tasks
        if not dag_ids or dag_id in dag_ids
    ]
    return Dataset(
        id=asset.id,
        uri=asset.uri,
        extra=asset.extra,
        consuming_dags=consuming,
        producing_tasks=producing,
        **unknown,
    )


def _complete_dates(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer with the dates that airlift requires. A run of 3.x may lack a logical date,
    and a run whose state was set by hand may lack a start. UTC is written as in 2.x, because
    Python 3.10 can't parse "Z"."""
    dates = {
        name: value.replace("Z", "+00:00")
        for name, value in answer.items()
        if isinstance(value, str) and (name.endswith("_date") or name == "run_after")
    }
    complete = {**answer, **dates}
    fallback = dates.get("run_after") or dates.get("end_date")
    for name in ("logical_date", "start_date"):
        complete[name] = complete.get(name) or fallback
    return complete


def build_airflow_instance(**attributes: Any) -> AirflowInstance:
    """Build a dagster-airlift `AirflowInstance` for Airflow 2 or 3, with any way to sign in.

    It works with `load_airflow_dag_asset_specs`, `build_airflow_polling_sensor` and
    `build_defs_from_airflow_instance`. Requests raise this package's errors, not airlift's.

    Args:
        attributes: As in a `defs.yaml`: `name`, `url`, `auth`, and optionally `api`, `tls`, `http`.

    Raises:
        DeclarationError: The attributes are invalid.
        MissingExtraError: The declared sign-in needs a package that is not installed.
    """
    declaration = parse_declaration(attributes, "build_airflow_instance(...)")
    return ClientInstance(build_client(declaration, "`auth`"))
