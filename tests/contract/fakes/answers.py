"""What all answers of both APIs have in common: lists, errors, times."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

_ERRORS = "https://airflow.apache.org/docs/apache-airflow/2.11.2/stable-rest-api-ref.html#section/"
_WITH_CURSOR = frozenset({"dag_runs", "task_instances"})


def build_list(api: str, field: str, entries: list[Any], total: int) -> dict[str, Any]:
    answer: dict[str, Any] = {field: entries, "total_entries": total}
    if api == "v2" and field in _WITH_CURSOR:
        answer |= {"total_entries_limit": None, "next_cursor": None, "previous_cursor": None}
    return answer


def build_error(api: str, status: int, detail: Any, title: str | None) -> Mapping[str, Any]:
    """In 2.x a problem with a title, whose detail may be null; in 3.x a detail of any shape."""
    if api == "v2":
        return {"detail": detail}
    return {"detail": detail, "status": status, "title": title, "type": f"{_ERRORS}{status}"}


def build_time(api: str, moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return moment.isoformat() if api == "v1" else moment.isoformat().replace("+00:00", "Z")
