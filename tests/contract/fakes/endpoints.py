"""The endpoints of both APIs over a fake Airflow's database."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timezone
from functools import cache
from typing import Any

from werkzeug import Request, Response
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule, Submount

from tests.contract.fakes.answers import (
    build_asset,
    build_dag,
    build_dag_details,
    build_error,
    build_import_error,
    build_list,
    build_log_lines,
    build_log_text,
    build_run,
    build_task,
    build_task_name,
    build_token,
)
from tests.contract.fakes.database import DagRow, Database, RunRow, TaskRow

NDJSON = "application/x-ndjson"
VERSIONS = {"v1": "2.11.2", "v2": "3.3.2"}

Order = Mapping[str, Callable[[Any], Any]]

_LIST_PARAMETERS = frozenset({"limit", "offset", "order_by"})


class RefusedError(Exception):
    """An error answer. 3.x has no titles."""

    def __init__(self, status: int, detail: Any, title: str | None = None) -> None:
        super().__init__(status, detail)
        self.status, self.detail, self.title = status, detail, title


class FakeApi:
    """What the endpoints of both APIs share: pages, lookups and refusals.

    Attributes:
        version: Of Airflow; it has all that this one has, but for what is said to be newer.
        page_limit: The most entries that a page holds, whatever is asked for.
    """

    def __init__(self, api: str, database: Database) -> None:
        self.api = api
        self.database = database
        self.version = VERSIONS[api]
        self.page_limit = 100

    def is_since(self, major: int, minor: int) -> bool:
        """Return whether the version is at least this."""
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
        """Answer a page of rows.

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
        """Return a DAG, with or without its file, or refuse with this message."""
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
        """Build the refusal of a field. 3.x adds a context to some."""
        if self.api == "v1":
            return RefusedError(400, f"{{'{name}': ['{why}']}}", "Bad Request")
        where = {"loc": ["body", name], "input": None} | ({"ctx": context} if context else {})
        return RefusedError(422, [{"type": "invalid", "msg": why, **where}])

    def read_time(self, body: Mapping[str, Any], name: str) -> datetime | None:
        """Return a time in UTC, or refuse one without a zone."""
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


DAG_ROUTES = [
    ("GET", "/dags", "list_dags"),
    ("GET", "/dags/<dag_id>", "show_dag"),
    ("GET", "/dags/<dag_id>/details", "show_details"),
    ("GET", "/dagSources/<key>", "show_source"),
    ("GET", "/importErrors", "list_import_errors"),
]


class DagEndpoints(FakeApi):
    """DAGs, their sources and import errors."""

    def list_dags(self, request: Request) -> Response:
        part, tags = request.args.get("dag_id_pattern", ""), set(request.args.getlist("tags"))
        with_stale = "only_active" if self.api == "v1" else "exclude_stale"
        lists_all = request.args.get(with_stale) == "false"
        dags = [
            dag
            for dag in self.database.dags.values()
            if (dag.is_present or lists_all)
            and _is_like(dag.dag_id, part)
            and (not tags or tags & {*dag.tags})
        ]
        order = {"dag_id": lambda dag: dag.dag_id}
        parameters = {"dag_id_pattern", "tags", with_stale}
        return self.page(request, "dags", dags, build_dag, order, parameters)

    def show_dag(self, _: Request, dag_id: str) -> Response:
        dag = self.find_dag(dag_id, f"The DAG with dag_id: {dag_id} was not found")
        return build_json(build_dag(self.api, dag))

    def show_details(self, _: Request, dag_id: str) -> Response:
        dag = self.find_dag(dag_id, f"The DAG with dag_id: {dag_id} was not found")
        return build_json(build_dag_details(self.api, dag))

    def show_source(self, request: Request, key: str) -> Response:
        for dag in self.database.dags.values():
            if key == (build_token(dag) if self.api == "v1" else dag.dag_id):
                if "text/plain" in request.headers["Accept"]:
                    return Response(dag.source, content_type="text/plain")
                name = {"dag_id": dag.dag_id, "dag_display_name": dag.dag_id}
                more = {} if self.api == "v1" else name | {"version_number": 1}
                return build_json({"content": dag.source, **more})
        raise RefusedError(404, None, "Dag source not found")

    def list_import_errors(self, request: Request) -> Response:
        order = {"timestamp": lambda error: error.timestamp}
        errors = self.database.import_errors
        return self.page(request, "import_errors", errors, build_import_error, order)


def _is_like(dag_id: str, part: str) -> bool:
    """Match as SQL's ILIKE does: `_` is any character and `%` any text."""
    pattern = re.escape(part).replace("_", ".").replace("%", ".*")
    return re.search(pattern, dag_id, re.IGNORECASE) is not None


RUN = "/dags/<dag_id>/dagRuns/<run_id>"
RUN_ROUTES = [
    ("GET", "/dags/~/dagRuns", "list_runs"),
    ("GET", "/dags/<dag_id>/dagRuns", "list_runs"),
    ("POST", "/dags/<dag_id>/dagRuns", "trigger"),
    ("POST", "/dags/<dag_id>/clearTaskInstances", "clear"),
    ("GET", RUN, "show_run"),
    ("PATCH", RUN, "patch_run"),
    ("POST", f"{RUN}/clear", "clear_run"),
]

_INTERVAL = ("data_interval_start", "data_interval_end")
_TRIGGER_FIELDS = {"dag_run_id", "conf", "logical_date", "note", *_INTERVAL}
_CLEAR_FIELDS = {"dag_run_id", "only_failed", "reset_dag_runs", "dry_run"}
_RUN_ID_OF_V2 = re.compile(r"[A-Za-z0-9_.~:+-]+")
_STATES = ("success", "failed", "queued")
_KINDS = {"string": str, "integer": int}


class RunEndpoints(FakeApi):
    """DAG runs: lists, triggers, clears, stops."""

    def list_runs(self, request: Request, dag_id: str = "~") -> Response:
        if dag_id != "~" and self.api == "v2":  # 2.x lists none
            self.find_dag(dag_id)
        runs = [run for run in self.database.runs if dag_id in ("~", run.dag_id)]
        if {"queued", "running"}.issuperset(request.args.getlist("state") or [""]):
            for run in runs:
                self.database.count_poll(run)  # as reading each of them on its own does
        name = "execution_date" if self.api == "v1" else "logical_date"
        if since := request.args.get(f"{name}_gte"):
            moment = datetime.fromisoformat(since)
            runs = [run for run in runs if run.logical_date and run.logical_date >= moment]
        if until := request.args.get(f"{name}_lte"):
            moment = datetime.fromisoformat(until)
            runs = [run for run in runs if run.logical_date and run.logical_date <= moment]
        if since := request.args.get("updated_at_gte"):
            runs = [run for run in runs if run.updated_at >= datetime.fromisoformat(since)]
        if until := request.args.get("updated_at_lte"):
            runs = [run for run in runs if run.updated_at <= datetime.fromisoformat(until)]
        if until := request.args.get("start_date_lte"):
            moment = datetime.fromisoformat(until)
            runs = [run for run in runs if run.start_date and run.start_date <= moment]
        prefix = request.args.get("run_id_prefix_pattern")
        if prefix and self.api == "v2" and self.is_since(3, 3):
            stem = prefix.rstrip("_-.~:+")  # as 3.3: a collation may ignore the rest
            runs = [run for run in runs if run.run_id.startswith(stem)]
        if states := request.args.getlist("state"):
            runs = [run for run in runs if run.state in states]
        first = datetime.min.replace(tzinfo=timezone.utc)
        order = {"id": lambda run: run.id, "end_date": lambda run: run.end_date or first}
        known = {"updated_at_gte", "updated_at_lte", "state", "start_date_lte"}
        known |= {f"{name}_gte", f"{name}_lte"}
        return self.page(request, "dag_runs", runs, build_run, order, known)

    def show_run(self, _: Request, dag_id: str, run_id: str) -> Response:
        run = self.find_run(dag_id, run_id)
        self.database.count_poll(run)
        return build_json(build_run(self.api, run))

    def trigger(self, request: Request, dag_id: str) -> Response:
        body = request.get_json()
        if self.api == "v2":
            self._check_trigger(body)
        dag = self.database.dags.get(dag_id)
        if dag is None or not dag.is_present:
            raise RefusedError(404, f"DAG with dag_id: '{dag_id}' not found", "DAG not found")
        self._check_trigger(body)
        self._check_values(dag, body)
        run_id, given = body["dag_run_id"], self.read_time(body, "logical_date")
        # Without a date 2.x gives the moment, and 3.x none.
        date = given or (self.database.now() if self.api == "v1" else None)
        self._refuse_taken(dag_id, run_id, date)
        start, end = (self.read_time(body, name) for name in _INTERVAL)
        run = self.database.start_run(
            dag_id,
            run_id,
            "queued",
            body.get("conf", {}),
            date,
            # Without a date 3.x takes no notice of the interval.
            data_interval=(start, end) if start and end and date else None,
            note=body.get("note"),
            partition_key=body.get("partition_key"),
        )
        return build_json(build_run(self.api, run))

    def _check_trigger(self, body: Mapping[str, Any]) -> None:
        has_keys = self.api == "v2" and self.is_since(3, 2)
        self.check_fields(body, _TRIGGER_FIELDS | ({"partition_key"} if has_keys else set()))
        if self.api == "v2" and "logical_date" not in body:
            raise self.refuse_field("logical_date", "Field required")
        if not isinstance(body.get("conf", {}), dict):
            raise self.refuse_field("conf", "Input should be a valid dictionary")
        dates = [self.read_time(body, name) for name in ("logical_date", *_INTERVAL)]
        if (dates[1] is None) != (dates[2] is None):
            raise self.refuse_field("_schema", "Both or none of the interval's ends", {"error": {}})

    def _check_values(self, dag: DagRow, body: Mapping[str, Any]) -> None:
        """Refuse what both APIs answer with 400."""
        run_id, key = body["dag_run_id"], body.get("partition_key")
        refusal = dag.refusal
        if self.api == "v2" and not _RUN_ID_OF_V2.fullmatch(run_id):
            refusal = f"The run_id provided '{run_id}' does not match regex pattern"
        for name, value in body.get("conf", {}).items():
            kind = dag.params.get(name, {}).get("schema", {}).get("type")
            if kind is not None and not isinstance(value, _KINDS[kind]):
                refusal = f"Invalid input for param {name}: {value!r} is not of type '{kind}'"
        if key is not None and dag.key_format is None:
            refusal = f"Dag '{dag.dag_id}' is not a partitioned Dag"
        elif key is not None and dag.key_format is not None:
            try:
                datetime.strptime(key, dag.key_format)
            except ValueError as error:
                refusal = f"Partition key '{key}' does not match the key_format: {error}"
        if refusal:
            raise RefusedError(400, refusal, "Bad Request")

    def _refuse_taken(self, dag_id: str, run_id: str, date: datetime | None) -> None:
        for run in self.database.runs:
            has_date = date is not None and run.logical_date == date
            if run.dag_id != dag_id or not (run.run_id == run_id or has_date):
                continue
            if self.api == "v1":
                what = f"logical date: '{date}'" if has_date else f"ID: '{run_id}'"
                words = f"DAGRun with DAG ID: '{dag_id}' and DAGRun {what} already exists"
                raise RefusedError(409, words, "Conflict")
            hidden = {"statement": "hidden", "orig_error": "hidden", "message": "Serious error"}
            raise RefusedError(409, {"reason": "Unique constraint violation", **hidden})

    def patch_run(self, request: Request, dag_id: str, run_id: str) -> Response:
        state = request.get_json()["state"]
        if state not in _STATES:
            words = f"'{state}' is not one of {list(_STATES)} - 'state'"
            raise (
                RefusedError(400, words, "Bad Request")
                if self.api == "v1"
                else self.refuse_field("state", words, {"expected": words})
            )
        run = self.database.find_run(dag_id, run_id)
        if run is None:
            words = f"Dag Run id {run_id} not found in dag {dag_id}"
            raise RefusedError(404, words if self.api == "v2" else None, words)
        self.database.set_state(run, state)
        return build_json(build_run(self.api, run))

    def clear(self, request: Request, dag_id: str) -> Response:
        body = request.get_json()
        self.check_fields(body, _CLEAR_FIELDS)
        run = self.database.find_run(dag_id, body["dag_run_id"])
        if run is None:
            words = f"Dag Run id {body['dag_run_id']} not found in dag {dag_id}"
            raise RefusedError(404, words if self.api == "v2" else None, words)
        cleared: list[TaskRow] = []
        if not body.get("dry_run", True):
            cleared = self.database.clear(run, only_failed=body["only_failed"])
        if self.api == "v1":
            return build_json({"task_instances": [build_task_name(run, task) for task in cleared]})
        entries = [build_task("v2", run, task) for task in cleared]
        return build_json(build_list("v2", "task_instances", entries, len(entries)))

    def clear_run(self, request: Request, dag_id: str, run_id: str) -> Response:
        run = self.find_run(dag_id, run_id)
        if not request.get_json().get("dry_run", True):
            self.database.clear(run)
        return build_json(build_run(self.api, run))


TASK_ROUTES = [
    ("GET", "/dags/~/dagRuns/~/taskInstances", "list_all_tasks"),
    ("GET", f"{RUN}/taskInstances", "list_tasks"),
    ("GET", f"{RUN}/taskInstances/<task_id>/logs/<int:try_number>", "show_log"),
]


class TaskEndpoints(FakeApi):
    """Task instances and their logs."""

    def list_tasks(self, request: Request, dag_id: str, run_id: str) -> Response:
        if self.api == "v1" and self.database.find_run(dag_id, run_id) is None:
            return build_json(build_list("v1", "task_instances", [], 0))  # no 404 there
        run = self.find_run(dag_id, run_id)

        def shape(api: str, task: TaskRow) -> dict[str, Any]:
            return build_task(api, run, task)

        return self.page(request, "task_instances", run.tasks, shape)

    def list_all_tasks(self, request: Request) -> Response:
        rows = [(run, task) for run in self.database.runs for task in run.tasks]
        if states := request.args.getlist("state"):
            rows = [(run, task) for run, task in rows if task.state in states]

        def shape(api: str, row: tuple[RunRow, TaskRow]) -> dict[str, Any]:
            return build_task(api, *row)

        return self.page(request, "task_instances", rows, shape, parameters={"state"})

    def show_log(
        self, request: Request, dag_id: str, run_id: str, task_id: str, try_number: int
    ) -> Response:
        run, index = self.find_run(dag_id, run_id), request.args.get("map_index", -1, int)
        wants_text = "text/plain" in request.headers["Accept"]
        if self.api == "v2" and wants_text:
            raise RefusedError(406, "Only application/json or application/x-ndjson is supported")
        for task in run.tasks:
            log = task.find_log(try_number)
            if log is None and self.api == "v1":  # which has an answer for tries that never were
                log = ["*** No logs found"], None
            if (task.task_id, task.map_index) == (task_id, index) and log is not None:
                if wants_text:
                    return Response(build_log_text(*log), content_type="text/plain")
                lines = build_log_lines(*log)
                if not request.headers["Accept"].startswith(NDJSON):
                    return build_json({"content": lines, "continuation_token": None})
                text = "".join(f"{json.dumps(line)}\n" for line in lines)
                return Response(text, content_type=NDJSON)
        not_found = "TaskInstance not found"
        raise RefusedError(404, not_found if self.api == "v2" else None, not_found)


NAMES = {"v1": "datasets", "v2": "assets"}


class AssetEndpoints(FakeApi):
    """Airflow assets (datasets in 2.x)."""

    def list_assets(self, request: Request) -> Response:
        order = {"id": lambda asset: asset.id}
        return self.page(request, NAMES[self.api], self.database.assets, build_asset, order)


_ROUTES = [("GET", "/version", "show_version"), *DAG_ROUTES, *RUN_ROUTES, *TASK_ROUTES]
_NO_PAGE = "<!DOCTYPE html><title>Airflow 404</title><h1>Airflow 404</h1>"
# What 3.3.2 says to whoever takes it for a 2.x and reads, word by word.
_MOVED = {
    "/api/v1/": "/api/v1 has been removed in Airflow 3, please use its upgraded version /api/v2"
    " instead.",
    "/": "API route not found",
}


@cache  # it takes longer than the rest of the start of a fake
def _build_map(api: str) -> Map:
    routes = [*_ROUTES, ("GET", f"/{NAMES[api]}", "list_assets")]
    rules = [Rule(path, methods=[how], endpoint=name) for how, path, name in routes]
    return Map([Submount(f"/api/{api}", rules)])


class Endpoints(DagEndpoints, RunEndpoints, TaskEndpoints, AssetEndpoints):
    """All endpoints of one API version over a database."""

    def __init__(self, api: str, database: Database) -> None:
        super().__init__(api, database)
        self._urls = _build_map(api).bind("")

    def answer(self, request: Request, check_sign_in: Callable[[Request], None]) -> Response:
        """Answer a request, with refusals in this API's shape."""
        try:
            endpoint, parts = self._urls.match(request.path, request.method)
        except HTTPException:
            return self._answer_unknown_path(request)
        try:
            if endpoint != "show_version":
                check_sign_in(request)
            return getattr(self, endpoint)(request, **parts)
        except RefusedError as error:
            return self.build_refusal(error)

    def _answer_unknown_path(self, request: Request) -> Response:
        if self.api == "v2" and request.method != "GET":
            return build_json({"detail": "Method Not Allowed"}, 405)
        if self.api == "v2":
            words = next(said for path, said in _MOVED.items() if request.path.startswith(path))
            return build_json({"error": words}, 404)
        if request.path.startswith("/api/v1/"):
            return self.build_refusal(RefusedError(404, "The URL was not found", "Not Found"))
        return Response(_NO_PAGE, 404, content_type="text/html; charset=utf-8")

    def build_refusal(self, error: RefusedError) -> Response:
        content = build_error(self.api, error.status, error.detail, error.title)
        response = build_json(content, error.status)
        if self.api == "v1":
            response.content_type = "application/problem+json"
        return response

    def show_version(self, _: Request) -> Response:
        return build_json({"version": self.version, "git_version": ""})
