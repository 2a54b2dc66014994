"""Where Airflow's two REST APIs differ, as data. What is the same in both is in `client`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote


@dataclass(frozen=True)
class Dialect:
    """What the client must know of an API version.

    Attributes:
        api: The API version, as in its path: "v1" is Airflow 2's, "v2" Airflow 3's.
    """

    api: str

    @property
    def prefix(self) -> str:
        return f"/api/{self.api}"

    def build_trigger_body(self, run_id: str, conf: Mapping[str, Any]) -> dict[str, Any]:
        body: dict[str, Any] = {"dag_run_id": run_id, "conf": dict(conf)}
        if self.api == "v2":
            body["logical_date"] = None  # required, though it may be null (else 422)
        return body

    def build_source_path(self, dag_id: str, file_token: str) -> str:
        # 3.x answers a file token with 404.
        return f"/dagSources/{_part(dag_id if self.api == 'v2' else file_token)}"

    def build_dag_page(self, dag_id: str) -> str:
        return f"/dags/{_part(dag_id)}" + ("" if self.api == "v2" else "/grid")

    def build_run_page(self, dag_id: str, run_id: str) -> str:
        if self.api == "v2":
            return f"/dags/{_part(dag_id)}/runs/{_part(run_id)}"
        return f"/dags/{_part(dag_id)}/grid?dag_run_id={_part(run_id)}"

    def parse_log(self, answer: Any) -> str:
        """The text of a task's log. 2.x answers text; 3.x a list of structured lines."""
        if isinstance(answer, str):
            return answer
        lines = answer.get("content") or []
        return "\n".join(line if isinstance(line, str) else _log_line(line) for line in lines)


V1 = Dialect(api="v1")
V2 = Dialect(api="v2")
DIALECTS = {"v1": V1, "v2": V2}


def format_time(moment: datetime) -> str:
    return moment.isoformat()


def _part(text: str) -> str:
    return quote(text, safe="")


def _log_line(line: Mapping[str, Any]) -> str:
    """One structured log line; the traceback that 3.x keeps apart is put under it."""
    text = str(line.get("event", ""))
    for error in line.get("error_detail") or ():
        text += f"\n{error.get('exc_type', 'Error')}: {error.get('exc_value', '')}"
    return text
