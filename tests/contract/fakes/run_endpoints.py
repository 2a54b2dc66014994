"""What a fake Airflow says of its runs, and does to them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from werkzeug import Request, Response

from tests.contract.fakes.answers import build_list
from tests.contract.fakes.api import FakeApi, RefusedError, build_json
from tests.contract.fakes.rows import DagRow, TaskRow
from tests.contract.fakes.run_answers import build_run, build_task, build_task_name

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
        prefix = request.args.get("run_id_prefix_pattern")
        if prefix and self.api == "v2" and self.is_since(3, 3):
            begin = prefix.rstrip("_-.~:+")  # 3.3 passes over what a collation may
            runs = [run for run in runs if run.run_id.startswith(begin)]
        if states := request.args.getlist("state"):
            runs = [run for run in runs if run.state in states]
        first = datetime.min.replace(tzinfo=timezone.utc)
        order = {"id": lambda run: run.id, "end_date": lambda run: run.end_date or first}
        known = {"updated_at_gte", "updated_at_lte", "state", f"{name}_gte", f"{name}_lte"}
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
        """What is answered with 400 by both."""
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
