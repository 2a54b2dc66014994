"""Where Airflow's two REST APIs differ, as data. What is the same in both is where it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from federation_defs.airflow.models import Dag, TriggerOptions


@dataclass(frozen=True)
class ApiVersion:
    """What the client must know of an API version.

    Attributes:
        api: The API version, as in its path: "v1" is Airflow 2's, "v2" Airflow 3's.
        health_path: From the instance's `url` on.
        asset_path: Of what Airflow 2 calls datasets.
        asset_field: Of their list.
        asset_event_field: Of the list of their events.
        log_type: The content type in which a log is asked for; None for JSON.
        refused_event: An asset event that is well formed and yet made for nobody.
    """

    api: str
    health_path: str
    asset_path: str
    asset_field: str
    asset_event_field: str
    log_type: str | None
    refused_event: Mapping[str, Any]

    @property
    def prefix(self) -> str:
        return f"/api/{self.api}"

    def is_own(self, answer: Mapping[str, Any]) -> bool:
        """Whether this API says so that it has no such thing: 2.x with a title, 3.x with none."""
        if self.api == "v1":
            return "title" in answer
        return "title" not in answer and ("detail" in answer or "error" in answer)

    def build_trigger_body(
        self, run_id: str, conf: Mapping[str, Any], options: TriggerOptions
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"dag_run_id": run_id, "conf": dict(conf)}
        date = options.logical_date
        if date is None and options.data_interval is not None:
            date, _ = options.data_interval  # 3.x takes no notice of an interval without a date
        if date is not None:
            body["logical_date"] = format_time(date)
        elif self.api == "v2":
            body["logical_date"] = None  # required, though it may be null (else 422)
        if options.data_interval is not None:
            start, end = options.data_interval
            body["data_interval_start"] = format_time(start)
            body["data_interval_end"] = format_time(end)
        if options.note is not None:
            body["note"] = options.note
        if options.partition_key is not None:
            body["partition_key"] = options.partition_key
        return body

    def build_source_path(self, dag: Dag) -> str:
        # 3.x has file tokens too, and answers them with 404.
        return build_path("dagSources", dag.dag_id if self.api == "v2" else dag.file_token)

    def build_dag_page(self, dag_id: str) -> str:
        return build_path("dags", dag_id) + ("" if self.api == "v2" else "/grid")

    def build_run_page(self, dag_id: str, run_id: str) -> str:
        if self.api == "v2":
            return build_path("dags", dag_id, "runs", run_id)
        return f"{self.build_dag_page(dag_id)}?dag_run_id={quote(run_id, safe='')}"


V1 = ApiVersion(
    api="v1",
    health_path="/health",
    asset_path="/datasets",
    asset_field="datasets",
    asset_event_field="dataset_events",
    log_type="text/plain",  # 3.x answers that with 406
    # Past the check of its shape, which comes before that of the permission, and no further.
    refused_event={"dataset_uri": "", "extra": {}, "unknown_field": True},
)

V2 = ApiVersion(
    api="v2",
    health_path="/api/v2/monitor/health",
    asset_path="/assets",
    asset_field="assets",
    asset_event_field="asset_events",
    log_type=None,
    refused_event={"unknown_field": True},
)

API_VERSIONS = {"v1": V1, "v2": V2}


def format_time(moment: datetime) -> str:
    return moment.isoformat()


def build_path(*parts: str) -> str:
    """A path whose parts may hold anything: run ids do hold `+`, `:` and worse."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


def build_run_path(dag_id: str, run_id: str, *more: str) -> str:
    return build_path("dags", dag_id, "dagRuns", run_id, *more)
