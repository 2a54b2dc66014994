"""The tasks of a run: how they ended, and what they said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from federation_defs.airflow.api import PagedApi, follow_upgrade, is_json
from federation_defs.airflow.models import TaskInstance
from federation_defs.airflow.parsing import parse_log, parse_task_instance
from federation_defs.airflow.versions import build_run_path

# A page has all that there is; a task that goes on talking has one more each time it is asked for.
MAX_LOG_PAGES = 100


class TaskEndpoints(PagedApi):
    """Questions about task instances."""

    @follow_upgrade
    def fetch_task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        """The tasks of a run, mapped ones once per index."""
        path = build_run_path(dag_id, run_id, "taskInstances")
        pages = self._fetch_pages(path, "task_instances", parse_task_instance, {})
        # Mapped tasks that are expanded meanwhile move the rest, and have some come twice.
        return list({(task.task_id, task.map_index): task for task in pages.entries}.values())

    @follow_upgrade
    def fetch_running_tasks(self, at_most: int) -> dict[tuple[str, str], list[TaskInstance]] | None:
        """The tasks that run now in any DAG, by (DAG id, run id); None if they are more than so
        many."""
        path = build_run_path("~", "~", "taskInstances")
        params = {"state": ["running"]}
        page, _ = self._fetch_list(path, "task_instances", _parse_with_run, params, at_most)
        if page.total > at_most:
            return None
        tasks: dict[tuple[str, str], list[TaskInstance]] = {}
        for run, task in page.entries:
            tasks.setdefault(run, []).append(task)
        return tasks

    @follow_upgrade
    def fetch_log(
        self, dag_id: str, run_id: str, task: TaskInstance, try_number: int | None = None
    ) -> str:
        """The log of one try of a task instance as text, however long.

        Args:
            try_number: From 1; the last one unless said.
        """
        tried = str(try_number or task.try_number)
        path = build_run_path(dag_id, run_id, "taskInstances", task.task_id, "logs", tried)
        params = {"full_content": "true"} | (
            {"map_index": str(task.map_index)} if task.map_index >= 0 else {}
        )
        text, token = "", ""
        for _ in range(MAX_LOG_PAGES):
            response = self._get(path, params=params, accept=self.api_version.log_type)
            if is_json(response):
                page, following = self._read(response, parse_log)
            else:
                page, following = self._read_text(response), None
            text += page
            if not following or following == token or not page:
                break
            params["token"] = token = following
        return text


def _parse_with_run(answer: Mapping[str, Any]) -> tuple[tuple[str, str], TaskInstance]:
    return (answer["dag_id"], answer["dag_run_id"]), parse_task_instance(answer)
