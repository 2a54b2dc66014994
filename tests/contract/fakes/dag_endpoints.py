"""What a fake Airflow says of its DAGs."""

from __future__ import annotations

import re

from werkzeug import Request, Response

from tests.contract.fakes.answers import build_list
from tests.contract.fakes.api import FakeApi, RefusedError, build_json
from tests.contract.fakes.dag_answers import (
    build_dag,
    build_details,
    build_import_error,
    build_task_spec,
    build_token,
    build_warning,
)

DAG_ROUTES = [
    ("GET", "/dags", "list_dags"),
    ("GET", "/dags/<dag_id>", "show_dag"),
    ("GET", "/dags/<dag_id>/details", "show_details"),
    ("GET", "/dags/<dag_id>/tasks", "list_task_specs"),
    ("GET", "/dagSources/<key>", "show_source"),
    ("GET", "/importErrors", "list_import_errors"),
    ("GET", "/dagWarnings", "list_warnings"),
]


class DagEndpoints(FakeApi):
    """DAGs, their tasks and source, and what is wrong with them."""

    def list_dags(self, request: Request) -> Response:
        part, tags = request.args.get("dag_id_pattern", ""), set(request.args.getlist("tags"))
        dags = [
            dag
            for dag in self.database.dags.values()
            if dag.is_present and _is_like(dag.dag_id, part) and (not tags or tags & {*dag.tags})
        ]
        order = {"dag_id": lambda dag: dag.dag_id}
        return self.page(request, "dags", dags, build_dag, order, {"dag_id_pattern", "tags"})

    def show_dag(self, _: Request, dag_id: str) -> Response:
        dag = self.find_dag(dag_id, f"The DAG with dag_id: {dag_id} was not found")
        return build_json(build_dag(self.api, dag))

    def show_details(self, _: Request, dag_id: str) -> Response:
        dag = self.find_dag(dag_id, f"The DAG with dag_id: {dag_id} was not found")
        return build_json(build_details(self.api, dag))

    def list_task_specs(self, _: Request, dag_id: str) -> Response:
        dag = self.find_dag(dag_id)
        entries = [build_task_spec(self.api, dag, spec) for spec in dag.specs]
        return build_json(build_list(self.api, "tasks", entries, len(entries)))

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

    def list_warnings(self, request: Request) -> Response:
        order = {"dag_id": lambda warning: warning.dag_id}
        return self.page(request, "dag_warnings", self.database.warnings, build_warning, order)


def _is_like(dag_id: str, part: str) -> bool:
    """As SQL's ILIKE has it, in which `_` is any letter and `%` any text."""
    pattern = re.escape(part).replace("_", ".").replace("%", ".*")
    return re.search(pattern, dag_id, re.IGNORECASE) is not None
