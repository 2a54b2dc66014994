"""DAGs, their sources and import errors, and Airflow assets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from federation_defs.airflow.api import AirflowApi, is_absent, retry_after_upgrade
from federation_defs.airflow.models import AirflowAsset, Dag, DagImportError
from federation_defs.airflow.parsing import parse_asset, parse_dag, parse_import_error
from federation_defs.airflow.versions import build_path
from federation_defs.errors import DagNotFoundError


class DagEndpoints(AirflowApi):
    """Endpoints for DAGs and Airflow assets."""

    @retry_after_upgrade
    def fetch_dags(
        self, id_pattern: str | None = None, tags: Sequence[str] = (), *, with_raw: bool = False
    ) -> list[Dag]:
        """Fetch all DAGs that the account may read, without those whose file was deleted.

        Args:
            id_pattern: Only DAGs whose id contains it, ignoring case. As in SQL's LIKE, `_` matches
                any character and `%` any text.
            tags: Only DAGs with at least one of these tags.
            with_raw: Whether to keep the raw answers.
        """
        # Ordered by id, since DAGs come and go while the list is read.
        params: dict[str, Any] = {"order_by": "dag_id"}
        if id_pattern is not None:
            params["dag_id_pattern"] = id_pattern
        if tags:
            params["tags"] = list(tags)
        page = self._fetch_list("/dags", "dags", partial(parse_dag, with_raw=with_raw), params)
        # By id: a new DAG moves the others, so one of them may come twice.
        return list({dag.dag_id: dag for dag in page.entries if dag.is_present}.values())

    @retry_after_upgrade
    def fetch_dags_by_id(self, at_most: int) -> dict[str, Dag] | None:
        """Fetch all DAGs that the account may read, by id, or None if there are more."""
        page = self._fetch_pages("/dags", "dags", parse_dag, {"order_by": "dag_id"}, at_most)
        return {dag.dag_id: dag for dag in page.entries} if page.total <= at_most else None

    @retry_after_upgrade
    def fetch_dag(self, dag_id: str) -> Dag:
        """Fetch a DAG.

        Raises:
            DagNotFoundError: The instance does not know it, or its file was deleted.
        """
        response = self._get(build_path("dags", dag_id))
        if is_absent(response):
            raise DagNotFoundError(self.instance, dag_id, "404")
        dag = self._read(response, parse_dag)
        if not dag.is_present:
            raise DagNotFoundError(self.instance, dag_id, "its file has gone, or no longer parses")
        return dag

    @retry_after_upgrade
    def fetch_dag_sources(self, dags: Iterable[Dag]) -> dict[str, str]:
        """Fetch the texts of the files that define DAGs, by DAG id. Deleted files are left out.

        Each file is fetched once, several at a time.
        """
        dags = list(dags)
        dags_by_file = {dag.file: dag for dag in dags}
        texts = self._fetch_all(self._fetch_source, list(dags_by_file.values()))
        texts_by_file = dict(zip(dags_by_file, texts, strict=True))
        texts_by_dag = ((dag.dag_id, texts_by_file[dag.file]) for dag in dags)
        return {dag_id: text for dag_id, text in texts_by_dag if text is not None}

    def _fetch_source(self, dag: Dag) -> str | None:
        response = self._get(self.api_version.build_source_path(dag), accept="text/plain")
        return None if is_absent(response) else self._read_text(response)

    @retry_after_upgrade
    def fetch_import_errors(self) -> list[DagImportError]:
        """Fetch the errors of the DAG files that can't be imported."""
        params = {"order_by": "timestamp"}
        page = self._fetch_list("/importErrors", "import_errors", parse_import_error, params)
        return page.entries

    @retry_after_upgrade
    def fetch_assets(self) -> list[AirflowAsset]:
        """Fetch all Airflow assets (2.x: datasets) that the account may read."""
        name = self.api_version.assets
        return self._fetch_list(f"/{name}", name, parse_asset, {"order_by": "id"}).entries

    def build_dag_url(self, dag_id: str) -> str:
        """Return the address of a DAG's page."""
        return self.url + self.api_version.build_dag_page(dag_id)
