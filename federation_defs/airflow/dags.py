"""DAG and asset endpoints: what an instance has, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from federation_defs.airflow.api import PagedApi, follow_upgrade, is_absent
from federation_defs.airflow.http import describe_request
from federation_defs.airflow.models import (
    AirflowAsset,
    AssetEvent,
    Dag,
    DagDetails,
    DagImportError,
    DagWarning,
    Task,
)
from federation_defs.airflow.parsing import (
    parse_asset,
    parse_asset_event,
    parse_dag,
    parse_dag_details,
    parse_dag_warning,
    parse_import_error,
    parse_task,
)
from federation_defs.airflow.versions import build_path
from federation_defs.errors import DagNotFoundError


class DagEndpoints(PagedApi):
    """Questions about DAGs."""

    @follow_upgrade
    def fetch_dags(
        self, id_pattern: str | None = None, tags: Sequence[str] = (), *, with_raw: bool = False
    ) -> list[Dag]:
        """All DAGs that the account may read, those whose file has gone left out.

        Args:
            id_pattern: If given, only those whose id contains it, in capitals or not; as in SQL's
                LIKE, `_` and `%` stand for any letter and for any text.
            tags: If given, only those with at least one of these tags.
            with_raw: Keep the answers as they came too.
        """
        # In the order of their ids, so that one that comes or goes moves as few as can be.
        params: dict[str, Any] = {"order_by": "dag_id"}
        if id_pattern is not None:
            params["dag_id_pattern"] = id_pattern
        if tags:
            params["tags"] = list(tags)
        parse = partial(parse_dag, with_raw=with_raw)
        pages = self._fetch_pages("/dags", "dags", parse, params)
        # By id: one that came meanwhile moved the rest, and had one of them come twice.
        return list({dag.dag_id: dag for dag in pages.entries if dag.is_present}.values())

    @follow_upgrade
    def fetch_dags_by_id(self, at_most: int) -> dict[str, Dag] | None:
        """All DAGs that the account may read, by id; None if there are more than so many."""
        params = {"order_by": "dag_id"}
        page, _ = self._fetch_list("/dags", "dags", parse_dag, params, at_most)
        return {dag.dag_id: dag for dag in page.entries} if page.total <= at_most else None

    @follow_upgrade
    def fetch_dag(self, dag_id: str) -> Dag:
        """One DAG.

        Raises:
            DagNotFoundError: The instance does not know it, or its file has gone.
        """
        response = self._get(build_path("dags", dag_id))
        if is_absent(response):
            raise DagNotFoundError(self.instance, dag_id, "404")
        dag = self._read(response, parse_dag)
        if not dag.is_present:
            raise DagNotFoundError(self.instance, dag_id, "its file has gone, or no longer parses")
        return dag

    @follow_upgrade
    def fetch_dag_details(self, dag_id: str) -> DagDetails:
        """What is told of one DAG at a time only.

        Raises:
            DagNotFoundError: The instance does not know it.
        """
        response = self._get(build_path("dags", dag_id, "details"))
        if is_absent(response):
            raise DagNotFoundError(self.instance, dag_id, "404")
        return self._read(response, parse_dag_details)

    @follow_upgrade
    def fetch_tasks(self, dag_id: str) -> list[Task]:
        """The tasks of a DAG as it is now, in the order of their ids.

        Raises:
            DagNotFoundError: The instance does not know it.
        """
        response = self._get(build_path("dags", dag_id, "tasks"))
        if is_absent(response):
            raise DagNotFoundError(self.instance, dag_id, "404")
        request = describe_request(response)
        entries = self._read(response, lambda answer: list(answer["tasks"]))
        tasks = [self._parse(parse_task, entry, request) for entry in entries]
        return sorted(tasks, key=lambda task: task.task_id)

    def fetch_dag_source(self, dag: Dag) -> str:
        """The text of the file that defines a DAG.

        Raises:
            DagNotFoundError: The instance no longer has it.
        """
        sources = self.fetch_dag_sources([dag])
        if dag.dag_id not in sources:
            raise DagNotFoundError(self.instance, dag.dag_id, "404 to its source")
        return sources[dag.dag_id]

    @follow_upgrade
    def fetch_dag_sources(self, dags: Iterable[Dag]) -> dict[str, str]:
        """The texts of the files that define DAGs, by DAG id; without those that have gone.

        A file is asked for once however many DAGs it defines, several files at a time.
        """
        dags = list(dags)
        dags_by_file = {dag.file: dag for dag in dags}
        texts = self._fetch_together(self._fetch_source, list(dags_by_file.values()))
        texts_by_file = dict(zip(dags_by_file, texts, strict=True))
        found = ((dag.dag_id, texts_by_file[dag.file]) for dag in dags)
        return {dag_id: text for dag_id, text in found if text is not None}

    def _fetch_source(self, dag: Dag) -> str | None:
        response = self._get(self.api_version.build_source_path(dag), accept="text/plain")
        if is_absent(response):
            return None
        return self._read_text(response)

    @follow_upgrade
    def fetch_import_errors(self) -> list[DagImportError]:
        """The DAG files that do not parse."""
        params = {"order_by": "timestamp"}
        return self._fetch_pages(
            "/importErrors", "import_errors", parse_import_error, params
        ).entries

    @follow_upgrade
    def fetch_dag_warnings(self) -> list[DagWarning]:
        """What Airflow has against DAGs that it runs nevertheless."""
        params = {"order_by": "dag_id"}
        return self._fetch_pages("/dagWarnings", "dag_warnings", parse_dag_warning, params).entries


class AssetEndpoints(PagedApi):
    """Questions about Airflow assets."""

    @follow_upgrade
    def fetch_assets(self) -> list[AirflowAsset]:
        """All Airflow assets that the account may read."""
        api_version = self.api_version
        params = {"order_by": "id"}
        return self._fetch_pages(
            api_version.asset_path, api_version.asset_field, parse_asset, params
        ).entries

    @follow_upgrade
    def fetch_asset_events(self, since: datetime) -> list[AssetEvent]:
        """The events at or after a moment, by the server's clock; in the order in which they were.

        Read from the newest on, as 2.x knows no events since a moment: what happens meanwhile
        comes twice, and is dropped once. (Airflow takes no events out but by a cleaning of its
        database, which takes old ones.)
        """
        api_version = self.api_version
        path, field = f"{api_version.asset_path}/events", api_version.asset_event_field
        events: dict[int, AssetEvent] = {}
        offset = 0
        while True:
            params = {"order_by": "-timestamp", "offset": offset}
            page = self._fetch_page(path, field, parse_asset_event, params)
            events |= {event.id: event for event in page.entries if event.timestamp >= since}
            offset += len(page.entries)
            is_older = any(event.timestamp < since for event in page.entries)
            if is_older or not page.entries or offset >= page.total:
                return sorted(events.values(), key=lambda event: (event.timestamp, event.id))
