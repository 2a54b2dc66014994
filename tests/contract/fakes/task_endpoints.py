"""What a fake Airflow says of the tasks of a run."""

from __future__ import annotations

from typing import Any

from werkzeug import Request, Response

from tests.contract.fakes.answers import build_list
from tests.contract.fakes.api import FakeApi, RefusedError, build_json
from tests.contract.fakes.rows import RunRow, TaskRow
from tests.contract.fakes.run_answers import build_log_lines, build_log_text, build_task
from tests.contract.fakes.run_endpoints import RUN

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
                return self._show_log_page(request, task, build_log_lines(*log))
        not_found = "TaskInstance not found"
        raise RefusedError(404, not_found if self.api == "v2" else None, not_found)

    def _show_log_page(
        self, request: Request, task: TaskRow, lines: list[dict[str, Any]]
    ) -> Response:
        """While a task is running there is always a next page, be there anything in it or not."""
        offset = request.args.get("token", 0, int)
        end = min(len(lines), offset + (self.log_limit or len(lines)))
        is_last = end == len(lines) and task.state != "running"
        token = None if is_last else str(end)
        return build_json({"content": lines[offset:end], "continuation_token": token})
