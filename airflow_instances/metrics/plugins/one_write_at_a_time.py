"""Keeps Airflow's api-server from locking itself out of its SQLite database.

Airflow 3.3 notes each change asked for over its REST API with a commit inside the event loop
(`log_action` in airflow/api_fastapi/logging/decorators.py). Meanwhile the loop serves nobody. If
another request has written and not committed yet, it can't: that commit needs a turn of the loop,
and the loop waits for its lock. After 30 s one of them gives up, answered with 500, and the
scheduler, which waited as long, dies of "database is locked".

So one request that may write enters at a time; reading ones are not held up. An Airflow with a
PostgreSQL database needs none of this.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from airflow.plugins_manager import AirflowPlugin

_READS = frozenset({"GET", "HEAD", "OPTIONS"})


class OneWriteAtATime:
    """An ASGI middleware around all of the api-server, the tasks' own API included."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._turn = asyncio.Lock()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers one request, when it is its turn."""
        if scope["type"] != "http" or scope["method"] in _READS:
            await self._app(scope, receive, send)
            return
        async with self._turn:
            await self._app(scope, receive, send)


class OneWriteAtATimePlugin(AirflowPlugin):
    """Tells Airflow of the middleware."""

    name = "one_write_at_a_time"
    fastapi_root_middlewares: ClassVar[list[dict[str, Any]]] = [
        {"middleware": OneWriteAtATime, "args": [], "kwargs": {}, "name": "one write at a time"}
    ]
