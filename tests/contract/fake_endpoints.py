"""What each endpoint of a fake Airflow answers and does, to whoever is signed in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from datetime import datetime
from functools import partial
from typing import Any

from werkzeug import Request, Response
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule, Submount

from tests.contract import fake_answers as answers
from tests.contract.fake_database import Database, RunRow, TaskRow

VERSIONS = {"v1": "2.11.2", "v2": "3.3.2"}

_OPEN = frozenset({"version", "health"})
_RUN = "/dags/<dag_id>/dagRuns/<run_id>"
_LOG = f"{_RUN}/taskInstances/<task_id>/logs/<int:try_number>"
_ENDPOINTS = [
    ("GET", "/version", "version"),
    ("GET", "/dags", "list_dags"),
    ("GET", "/dags/<dag_id>", "show_dag"),
    ("GET", "/dagSources/<key>", "show_source"),
    ("GET", "/dags/~/dagRuns", "list_runs"),
    ("POST", "/dags/<dag_id>/dagRuns", "trigger"),
    ("POST", "/dags/<dag_id>/clearTaskInstances", "clear"),
    ("GET", _RUN, "show_run"),
    ("POST", f"{_RUN}/clear", "clear_run"),
    ("GET", f"{_RUN}/taskInstances", "list_tasks"),
    ("GET", _LOG, "show_log"),
]
_LIST_PARAMETERS = {"limit", "offset", "order_by", "updated_at_gte"}
_TRIGGER_FIELDS = {"dag_run_id", "conf", "logical_date", "note"}
_CLEAR_FIELDS = {"dag_run_id", "only_failed", "reset_dag_runs", "dry_run"}
_RUN_ID_OF_V2 = re.compile(r"[A-Za-z0-9_.~:+-]+")


class RefusedError(Exception):
    """An answer that is no success; 3.x gives no title."""

    def __init__(self, status: int, detail: Any, title: str | None = None) -> None:
        super().__init__(status, detail)
        self.status, self.detail, self.title = status, detail, title


class Endpoints:
    """One API version over one database.

    Attributes:
        page_limit: The most entries that a page holds, whatever is asked for.
    """

    def __init__(self, api: str, database: Database) -> None:
        self.api = api
        self.database = database
        self.page_limit = 100
        rules = [Rule(path, methods=[how], endpoint=name) for how, path, name in _ENDPOINTS]
        health = Rule("/health" if api == "v1" else "/api/v2/monitor/health", endpoint="health")
        self._urls = Map([Submount(f"/api/{api}", rules), health]).bind("")

    def answer(self, request: Request, check_sign_in: Callable[[Request], None]) -> Response:
        """The answer; a refusal in this API's own shape."""
        try:
            endpoint, parts = self._urls.match(request.path, request.method)
        except HTTPException:
            return self._answer_unknown_path(request)
        try:
            if endpoint not in _OPEN:
                check_sign_in(request)
            return getattr(self, f"_{endpoint}")(request, **parts)
        except RefusedError as error:
            return self.build_refusal(error)

    def _answer_unknown_path(self, request: Request) -> Response:
        if self.api == "v2":
            return build_json({"error": "API route not found"}, 404)
        if request.path.startswith("/api/v1/"):
            return self.build_refusal(RefusedError(404, "The URL was not found", "Not Found"))
        return Response("<h1>Airflow 404</h1>", 404, content_type="text/html; charset=utf-8")

    def build_refusal(self, error: RefusedError) -> Response:
        content = answers.build_error(self.api, error.status, error.detail, error.title)
        response = build_json(content, error.status)
        if self.api == "v1":
            response.content_type = "application/problem+json"
        return response

    def _version(self, _: Request) -> Response:
        return build_json({"version": VERSIONS[self.api], "git_version": ""})

    def _health(self, _: Request) -> Response:
        healthy = {"status": "healthy"}
        return build_json({"metadatabase": healthy, "scheduler": healthy})

    def _list_dags(self, request: Request) -> Response:
        dags = [dag for dag in self.database.dags.values() if dag.is_present]
        return self._page(request, "dags", dags, partial(answers.build_dag, self.api))

    def _show_dag(self, _: Request, dag_id: str) -> Response:
        if dag_id not in self.database.dags:
            raise RefusedError(404, f"The DAG with dag_id: {dag_id} was not found", "DAG not found")
        return build_json(answers.build_dag(self.api, self.database.dags[dag_id]))

    def _show_source(self, _: Request, key: str) -> Response:
        dag = self.database.dags.get(key.removeprefix("token-of-" if self.api == "v1" else ""))
        if dag is None:
            raise RefusedError(404, None, "Dag source not found")
        return Response(dag.source, content_type="text/plain")

    def _list_runs(self, request: Request) -> Response:
        if request.args["order_by"] != "id":
            raise RefusedError(400, f"Ordering with '{request.args['order_by']}' is disallowed")
        since = datetime.fromisoformat(request.args["updated_at_gte"])
        runs = [run for run in self.database.runs if run.updated_at >= since]
        return self._page(request, "dag_runs", runs, partial(answers.build_run, self.api))

    def _show_run(self, _: Request, dag_id: str, run_id: str) -> Response:
        run = self._find_run(dag_id, run_id)
        self.database.count_poll(run)
        return build_json(answers.build_run(self.api, run))

    def _trigger(self, request: Request, dag_id: str) -> Response:
        dag, body = self.database.dags.get(dag_id), request.get_json()
        if dag is None or not dag.is_present:
            raise RefusedError(404, f"DAG with dag_id: '{dag_id}' not found", "DAG not found")
        self._check_fields(body, _TRIGGER_FIELDS)
        if self.api == "v2" and "logical_date" not in body:
            raise self._refuse_field("logical_date", "Field required")
        run_id, conf, text = body["dag_run_id"], body.get("conf", {}), body.get("logical_date")
        if not isinstance(conf, dict):
            raise self._refuse_field("conf", "Input should be a valid dictionary")
        if self.api == "v2" and not _RUN_ID_OF_V2.fullmatch(run_id):
            raise RefusedError(400, f"The run_id provided '{run_id}' does not match regex pattern")
        if dag.refusal:
            raise RefusedError(400, dag.refusal, "Bad Request")
        # Without a date 2.x gives the moment, and 3.x none.
        now = self.database.now() if self.api == "v1" else None
        date = datetime.fromisoformat(text) if text else now
        for run in self.database.runs:
            has_date = date is not None and run.logical_date == date
            if run.dag_id == dag_id and (run.run_id == run_id or has_date):
                raise self._refuse_taken(dag_id, run_id)
        run = self.database.start_run(dag_id, run_id, "queued", conf, date)
        return build_json(answers.build_run(self.api, run))

    def _clear(self, request: Request, dag_id: str) -> Response:
        body = request.get_json()
        self._check_fields(body, _CLEAR_FIELDS)
        run = self.database.find_run(dag_id, body["dag_run_id"])
        if run is None:
            words = f"Dag Run id {body['dag_run_id']} not found in dag {dag_id}"
            raise RefusedError(404, words if self.api == "v2" else None, words)
        cleared: list[TaskRow] = []
        if not body.get("dry_run", True):
            cleared = self.database.clear(run, only_failed=body["only_failed"])
        if self.api == "v1":
            names = [answers.build_task_name(run, task) for task in cleared]
            return build_json({"task_instances": names})
        entries = [answers.build_task("v2", run, task) for task in cleared]
        return build_json(answers.build_list("v2", "task_instances", entries, len(entries)))

    def _clear_run(self, request: Request, dag_id: str, run_id: str) -> Response:
        run = self._find_run(dag_id, run_id)
        if not request.get_json().get("dry_run", True):
            self.database.clear(run)
        return build_json(answers.build_run(self.api, run))

    def _list_tasks(self, request: Request, dag_id: str, run_id: str) -> Response:
        if self.api == "v1" and self.database.find_run(dag_id, run_id) is None:
            return build_json(answers.build_list("v1", "task_instances", [], 0))  # no 404 there
        run = self._find_run(dag_id, run_id)
        shape = partial(answers.build_task, self.api, run)
        return self._page(request, "task_instances", run.tasks, shape)

    def _show_log(
        self, request: Request, dag_id: str, run_id: str, task_id: str, try_number: int
    ) -> Response:
        run, index = self._find_run(dag_id, run_id), request.args.get("map_index", -1, int)
        wants_text = "text/plain" in request.headers["Accept"]
        if self.api == "v2" and wants_text:
            raise RefusedError(406, "Only application/json or application/x-ndjson is supported")
        for task in run.tasks:
            # 2.x has an answer for tries that never were.
            is_tried = task.try_number == try_number or self.api == "v1"
            if (task.task_id, task.map_index) == (task_id, index) and is_tried:
                if wants_text:
                    return Response(answers.build_log_text(task), content_type="text/plain")
                return build_json(answers.build_log_lines(task))
        not_found = "TaskInstance not found"
        raise RefusedError(404, not_found if self.api == "v2" else None, not_found)

    def _find_run(self, dag_id: str, run_id: str) -> RunRow:
        run = self.database.find_run(dag_id, run_id)
        if run is None:
            words = f"DAGRun with DAG ID: '{dag_id}' and DagRun ID: '{run_id}' not found"
            raise RefusedError(404, words, "DAGRun not found")
        return run

    def _page(
        self, request: Request, field: str, rows: Collection[Any], shape: Callable[[Any], Any]
    ) -> Response:
        unknown = ", ".join(set(request.args) - _LIST_PARAMETERS)
        if unknown and self.api == "v1":  # 3.x takes no notice of them
            raise RefusedError(400, f"Extra query parameter(s) {unknown} not in spec")
        offset = request.args.get("offset", 0, int)
        limit = min(request.args.get("limit", 100, int), self.page_limit)
        entries = [shape(row) for row in list(rows)[offset : offset + limit]]
        return build_json(answers.build_list(self.api, field, entries, len(rows)))

    def _check_fields(self, body: dict[str, Any], known: set[str]) -> None:
        for name in sorted(body.keys() - known):
            raise self._refuse_field(name, "Extra inputs are not permitted")

    def _refuse_field(self, name: str, why: str) -> RefusedError:
        if self.api == "v1":
            return RefusedError(400, f"{{'{name}': ['{why}']}}", "Bad Request")
        where = {"loc": ["body", name], "input": None}
        return RefusedError(422, [{"type": "invalid", "msg": why, **where}])

    def _refuse_taken(self, dag_id: str, run_id: str) -> RefusedError:
        if self.api == "v1":
            words = f"DAGRun with DAG ID: '{dag_id}' and DAGRun ID: '{run_id}' already exists"
            return RefusedError(409, words, "Conflict")
        hidden = {"statement": "hidden", "orig_error": "hidden", "message": "Serious error"}
        return RefusedError(409, {"reason": "Unique constraint violation", **hidden})


def build_json(content: Any, status: int = 200) -> Response:
    return Response(json.dumps(content), status, content_type="application/json")
