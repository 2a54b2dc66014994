"""A stub of Airflow 2 for benchmarks, with lists of any length, as slow as a real server's.

It answers as 2.11 does: pages of at most 100 entries, a connection per request, and as many
requests at a time as its web server has workers (4).
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PAGE_LIMIT = 100  # the default of `[api] maximum_page_limit`
WORKERS = 4  # the default of `[webserver] workers`


def build_dag(number: int) -> dict[str, Any]:
    """Build a list entry as 2.11.2 does."""
    dag_id = f"dag_{number:05}"
    nothing = (
        "last_expired last_pickled next_dagrun next_dagrun_create_after pickle_id root_dag_id "
        "next_dagrun_data_interval_end next_dagrun_data_interval_start scheduler_lock"
    )
    return dict.fromkeys(nothing.split()) | {
        "dag_display_name": dag_id,
        "dag_id": dag_id,
        "default_view": "grid",
        "description": f"Loads table {number} of the lake, and checks what it has loaded.",
        "file_token": f"Ii9vcHQvYWlyZmxvdy9kYWdzL3RlYW0vbG9hZF90YWJsZS5weSI.{number:08}",
        "fileloc": f"/opt/airflow/dags/team/{dag_id}.py",
        "has_import_errors": False,
        "has_task_concurrency_limits": False,
        "is_active": True,
        "is_paused": False,
        "is_subdag": False,
        "last_parsed_time": "2026-11-20T14:22:59.360107+00:00",
        "max_active_runs": 16,
        "max_active_tasks": 16,
        "max_consecutive_failed_dag_runs": 0,
        "owners": ["data-platform"],
        "schedule_interval": {"__type": "CronExpression", "value": "0 3 * * *"},
        "tags": [{"name": "federated"}, {"name": f"team-{number % 7}"}],
        "timetable_description": "At 03:00",
    }


def build_run(number: int) -> dict[str, Any]:
    """Build a list entry as 2.11.2 does."""
    moment = f"2026-11-20T{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}+00:00"
    return {
        "conf": {"day": "2026-11-20", "source": "federation"},
        "dag_id": f"dag_{number % 50:05}",
        "dag_run_id": f"scheduled__{moment}_{number}",
        "data_interval_end": moment,
        "data_interval_start": moment,
        "end_date": moment,
        "execution_date": moment,
        "external_trigger": False,
        "last_scheduling_decision": moment,
        "logical_date": moment,
        "note": None,
        "run_type": "scheduled",
        "start_date": moment,
        "state": "success",
    }


class Pages:
    """A list whose entries are rendered in advance, so that the stub itself takes no time."""

    def __init__(self, field: str, build: Callable[[int], dict[str, Any]], total: int) -> None:
        self._field, self._total = field, total
        self._entries = [json.dumps(build(number)) for number in range(total)]

    def render(self, offset: int, limit: int) -> bytes:
        entries = self._entries[offset : offset + min(limit, PAGE_LIMIT)]
        text = f'{{"{self._field}": [{",".join(entries)}], "total_entries": {self._total}}}'
        return text.encode()


class Stub(ThreadingHTTPServer):
    """The server. `/figures` returns its counters and resets them."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int, dags: int, runs: int, page_s: float) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.dags = Pages("dags", build_dag, dags)
        self.runs = Pages("dag_runs", build_run, runs)
        self.page_s = page_s
        self.workers = threading.BoundedSemaphore(WORKERS)
        self.figures = {"requests": 0, "connections": 0, "most_connections": 0}
        self.lock = threading.Lock()


class _Handler(BaseHTTPRequestHandler):
    server: Stub  # type: ignore[assignment]

    def setup(self) -> None:
        super().setup()
        self._count(1)

    def finish(self) -> None:
        super().finish()
        self._count(-1)

    def _count(self, step: int) -> None:
        with self.server.lock:
            figures = self.server.figures
            figures["connections"] += step
            figures["most_connections"] = max(figures["most_connections"], figures["connections"])

    def do_GET(self) -> None:
        path = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(path.query).items()}
        if path.path == "/figures":
            with self.server.lock:
                body = json.dumps(self.server.figures).encode()
                self.server.figures.update(requests=0, most_connections=0)
            self._answer(body)
        elif path.path == "/api/v1/version":
            self._answer(b'{"version": "2.11.2", "git_version": null}')
        elif path.path == "/api/v1/dags":
            self._answer_page(self.server.dags, asked.get("offset", 0), asked.get("limit", 100))
        elif path.path == "/api/v1/dags/~/dagRuns":
            self._answer_page(self.server.runs, asked.get("offset", 0), asked.get("limit", 100))
        else:
            self._answer(b"<h1>Airflow 404</h1>", 404, "text/html")

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/api/v1/dags/~/dagRuns/list":
            self._answer_page(self.server.runs, asked["page_offset"], asked["page_limit"])
        else:
            self._answer(b"<h1>Airflow 404</h1>", 404, "text/html")

    def _answer_page(self, pages: Pages, offset: str | int, limit: str | int) -> None:
        with self.server.workers:
            time.sleep(self.server.page_s)  # as long as a real server works
            body = pages.render(int(offset), int(limit))
        with self.server.lock:
            self.server.figures["requests"] += 1
        self._answer(body)

    def _answer(self, body: bytes, status: int = 200, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Log nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dags", type=int, default=5_000)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--page-ms", type=float, default=30)
    asked = parser.parse_args()
    Stub(asked.port, asked.dags, asked.runs, asked.page_ms / 1000).serve_forever()


if __name__ == "__main__":
    main()
