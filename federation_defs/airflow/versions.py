"""Where Airflow's two REST APIs differ, as data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from federation_defs.airflow.models import Dag, TriggerOptions


@dataclass(frozen=True)
class ApiVersion:
    """One of the two APIs.

    Attributes:
        api: The version in its path: "v1" for Airflow 2, "v2" for Airflow 3.
        assets: The name of Airflow assets in paths and lists; Airflow 2 calls them datasets.
        logical_date: The name of the logical date in filters. 2.x accepts the old name, and ignores
            the new one.
        log_type: The content type in which a log comes line by line. 2.x has plain text; 3.x
            answers 406 to that, and has a JSON object for each line.
    """

    api: str
    assets: str
    logical_date: str
    log_type: str

    @property
    def prefix(self) -> str:
        return f"/api/{self.api}"

    @property
    def with_stale(self) -> dict[str, str]:
        """The query that includes DAGs whose file has gone or no longer parses in a list."""
        return {"only_active" if self.api == "v1" else "exclude_stale": "false"}

    def is_own_error(self, answer: Mapping[str, Any]) -> bool:
        """Return whether an error is from this API. Only errors of 2.x have a title."""
        if self.api == "v1":
            return "title" in answer
        return "title" not in answer and ("detail" in answer or "error" in answer)

    def build_trigger_body(
        self, run_id: str, conf: Mapping[str, Any], options: TriggerOptions
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"dag_run_id": run_id, "conf": dict(conf)}
        if isinstance(options.logical_date, datetime):
            body["logical_date"] = options.logical_date.isoformat()
        elif self.api == "v2":
            body["logical_date"] = None  # a missing one is a 422
        if options.data_interval is not None:
            start, end = options.data_interval
            body |= {"data_interval_start": start.isoformat(), "data_interval_end": end.isoformat()}
        texts = {"note": options.note, "partition_key": options.partition_key}
        return body | {name: text for name, text in texts.items() if text is not None}

    def build_source_path(self, dag: Dag) -> str:
        # 3.x has file tokens too, but answers them with 404.
        return build_path("dagSources", dag.dag_id if self.api == "v2" else dag.file_token)

    def build_dag_page(self, dag_id: str) -> str:
        return build_path("dags", dag_id) + ("" if self.api == "v2" else "/grid")

    def build_run_page(self, dag_id: str, run_id: str) -> str:
        if self.api == "v2":
            return build_path("dags", dag_id, "runs", run_id)
        return f"{self.build_dag_page(dag_id)}?dag_run_id={quote(run_id, safe='')}"


V1 = ApiVersion("v1", assets="datasets", logical_date="execution_date", log_type="text/plain")
V2 = ApiVersion("v2", assets="assets", logical_date="logical_date", log_type="application/x-ndjson")
API_VERSIONS = {"v1": V1, "v2": V2}


def parse_version(version: str) -> tuple[int, int]:
    """Return the major and minor version; (0, 0) for anything else."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def build_path(*parts: str) -> str:
    """Return a path. Its parts may contain any characters, as run ids do."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


def build_run_path(dag_id: str, run_id: str, *more: str) -> str:
    return build_path("dags", dag_id, "dagRuns", run_id, *more)
