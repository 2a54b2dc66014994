"""What all endpoints of a fake Airflow share: lists in pages, and refusals in each API's words."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timezone
from typing import Any

from werkzeug import Request, Response

from tests.contract.fakes.answers import build_list
from tests.contract.fakes.database import Database
from tests.contract.fakes.rows import DagRow, RunRow

VERSIONS = {"v1": "2.11.2", "v2": "3.3.2"}

Order = Mapping[str, Callable[[Any], Any]]

_LIST_PARAMETERS = frozenset({"limit", "offset", "order_by"})


class RefusedError(Exception):
    """An answer that is no success; 3.x gives no title."""

    def __init__(self, status: int, detail: Any, title: str | None = None) -> None:
        super().__init__(status, detail)
        self.status, self.detail, self.title = status, detail, title


class FakeApi:
    """One API version over one database.

    Attributes:
        version: Of Airflow; it has all that this one has, but for what is said to be newer.
        page_limit: The most entries that a page holds, whatever is asked for.
        log_limit: The most lines that a page of a log holds (3.x); None for all.
    """

    def __init__(self, api: str, database: Database) -> None:
        self.api = api
        self.database = database
        self.version = VERSIONS[api]
        self.page_limit = 100
        self.log_limit: int | None = None

    def is_since(self, major: int, minor: int) -> bool:
        """Whether its version is at least this one."""
        return tuple(int(part) for part in self.version.split(".")[:2]) >= (major, minor)

    def page(
        self,
        request: Request,
        field: str,
        rows: Collection[Any],
        shape: Callable[[str, Any], Any],
        order: Order | None = None,
        parameters: Collection[str] = (),
    ) -> Response:
        """A page of rows.

        Args:
            order: What they may be asked to be ordered by, and how.
            parameters: What else may be asked.
        """
        unknown = ", ".join(set(request.args) - _LIST_PARAMETERS - set(parameters))
        if unknown and self.api == "v1":  # 3.x takes no notice of them
            raise RefusedError(400, f"Extra query parameter(s) {unknown} not in spec")
        ordered = self._sort(request.args.get("order_by"), rows, order or {})
        offset = request.args.get("offset", 0, int)
        limit = min(request.args.get("limit", 100, int), self.page_limit)
        entries = [shape(self.api, row) for row in ordered[offset : offset + limit]]
        return build_json(build_list(self.api, field, entries, len(rows)))

    def _sort(self, order_by: str | None, rows: Collection[Any], order: Order) -> list[Any]:
        if order_by is None:
            return list(rows)
        name = order_by.removeprefix("-")
        if name not in order:
            words = f"Ordering with '{name}' is disallowed or the attribute does not exist"
            raise RefusedError(400, words, "Bad Request")
        return sorted(rows, key=order[name], reverse=order_by.startswith("-"))

    def find_dag(self, dag_id: str, words: str | None = None) -> DagRow:
        """A DAG, be its file there or not; refuses in these words if there is none."""
        if dag_id not in self.database.dags:
            said = f"The Dag with ID: `{dag_id}` was not found" if self.api == "v2" else words
            raise RefusedError(404, said, "DAG not found")
        return self.database.dags[dag_id]

    def find_run(self, dag_id: str, run_id: str) -> RunRow:
        run = self.database.find_run(dag_id, run_id)
        if run is None:
            words = f"DAGRun with DAG ID: '{dag_id}' and DagRun ID: '{run_id}' not found"
            raise RefusedError(404, words, "DAGRun not found")
        return run

    def check_fields(self, body: Mapping[str, Any], known: Collection[str]) -> None:
        for name in sorted(body.keys() - set(known)):
            raise self.refuse_field(name, "Extra inputs are not permitted")

    def refuse_field(self, name: str, why: str, context: Any = None) -> RefusedError:
        """What says that a field is wrong; 3.x adds a context to some kinds of wrong."""
        if self.api == "v1":
            return RefusedError(400, f"{{'{name}': ['{why}']}}", "Bad Request")
        where = {"loc": ["body", name], "input": None} | ({"ctx": context} if context else {})
        return RefusedError(422, [{"type": "invalid", "msg": why, **where}])

    def read_time(self, body: Mapping[str, Any], name: str) -> datetime | None:
        """A time with its zone, in UTC."""
        text = body.get(name)
        if text is None:
            return None
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            if self.api == "v1":
                words = f"'{text}' is not a 'date-time' - '{name}'"
                raise RefusedError(400, words, "Bad Request")
            context = {"error": "input is too short"} if moment is None else None
            raise self.refuse_field(name, "Input should be a datetime with a zone", context)
        return moment.astimezone(timezone.utc)


def build_json(content: Any, status: int = 200) -> Response:
    return Response(json.dumps(content), status, content_type="application/json")
