"""All that a fake Airflow answers to whoever is signed in."""

from __future__ import annotations

from collections.abc import Callable

from werkzeug import Request, Response
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule, Submount

from tests.contract.fakes.answers import build_error, build_time
from tests.contract.fakes.api import RefusedError, build_json
from tests.contract.fakes.asset_endpoints import AssetEndpoints, build_asset_routes
from tests.contract.fakes.dag_endpoints import DAG_ROUTES, DagEndpoints
from tests.contract.fakes.database import Database
from tests.contract.fakes.run_endpoints import RUN_ROUTES, RunEndpoints
from tests.contract.fakes.task_endpoints import TASK_ROUTES, TaskEndpoints

_OPEN = frozenset({"show_version", "show_health"})
_ROUTES = [("GET", "/version", "show_version"), *DAG_ROUTES, *RUN_ROUTES, *TASK_ROUTES]
_HEALTH = {"v1": "/health", "v2": "/api/v2/monitor/health"}
_NO_PAGE = "<!DOCTYPE html><title>Airflow 404</title><h1>Airflow 404</h1>"
# What 3.3.2 says to whoever takes it for a 2.x and reads, word by word.
_MOVED = {
    "/api/v1/": "/api/v1 has been removed in Airflow 3, please use its upgraded version /api/v2"
    " instead.",
    "/health": "Moved in Airflow 3. Please change config to check `/api/v2/monitor/health`",
    "/": "API route not found",
}


class Endpoints(DagEndpoints, RunEndpoints, TaskEndpoints, AssetEndpoints):
    """One API version over one database, path by path."""

    def __init__(self, api: str, database: Database) -> None:
        super().__init__(api, database)
        routes = [*_ROUTES, *build_asset_routes(api)]
        rules = [Rule(path, methods=[how], endpoint=name) for how, path, name in routes]
        health = Rule(_HEALTH[api], methods=["GET"], endpoint="show_health")
        self._urls = Map([Submount(f"/api/{api}", rules), health]).bind("")

    def answer(self, request: Request, check_sign_in: Callable[[Request], None]) -> Response:
        """The answer; a refusal in this API's own shape."""
        try:
            endpoint, parts = self._urls.match(request.path, request.method)
        except HTTPException:
            return self._answer_unknown_path(request)
        try:
            if endpoint == "post_event":
                self.check_event_shape(request)
            if endpoint not in _OPEN:
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

    def show_health(self, _: Request) -> Response:
        """As the demo's: 2.x reads its DAG files in its scheduler, and neither has triggers."""
        beat = build_time("v1", self.database.now())

        def build_part(name: str, *, runs: bool) -> dict[str, str | None]:
            status, moment = ("healthy", beat) if runs else (None, None)
            return {"status": status, f"latest_{name}_heartbeat": moment}

        return build_json(
            {
                "metadatabase": {"status": "healthy"},
                "scheduler": build_part("scheduler", runs=True),
                "triggerer": build_part("triggerer", runs=False),
                "dag_processor": build_part("dag_processor", runs=self.api == "v2"),
            }
        )
