"""Lets one writing request at a time into Airflow's api-server, for its SQLite database.

Airflow 3.3 logs each change made through its REST API with a commit inside the event loop
(`log_action` in airflow/api_fastapi/logging/decorators.py). If another request has written and not
committed yet, the two deadlock: the commit waits for the database lock, and the other request waits
for the event loop. After 30 s one of them fails with status 500, and the scheduler, which waited
for the same lock, ends with "database is locked".

Reading requests are not delayed. An Airflow with a PostgreSQL database does not need this plugin.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from airflow.plugins_manager import AirflowPlugin

_READS = frozenset({"GET", "HEAD", "OPTIONS"})


class SerializeWrites:
    """An ASGI middleware around the whole api-server, including the API for tasks."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._write_lock = asyncio.Lock()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle a request, a writing one when no other is being handled."""
        if scope["type"] != "http" or scope["method"] in _READS:
            await self._app(scope, receive, send)
            return
        async with self._write_lock:
            await self._app(scope, receive, send)


class SerializeWritesPlugin(AirflowPlugin):
    """Adds the middleware to Airflow."""

    name = "serialize_writes"
    fastapi_root_middlewares: ClassVar[list[dict[str, Any]]] = [
        {"middleware": SerializeWrites, "args": [], "kwargs": {}, "name": "serialize writes"}
    ]
