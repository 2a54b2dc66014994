"""Which permission a request needs, in Airflow's own words.

From "Access Control" of the FAB provider's manual (2.x and 3.x), which names them as
resource.action; SimpleAuthManager knows only the roles. Airflow itself says "Forbidden".
"""

from __future__ import annotations

import re

_READ = "DAGs.can_read"
_EDIT = "DAGs.can_edit"
_RUNS = f"DAG Runs.can_read, {_READ}"

# What is asked, what that is, its permissions, and one of Airflow's roles that has them whichever
# the auth manager.
_NEEDS = (
    (r"POST .*/dags/[^/]+/dagRuns", "trigger DAG runs", f"DAG Runs.can_create, {_EDIT}", "User"),
    (r"POST .*/clear(TaskInstances)?", "clear tasks", f"Task Instances.can_edit, {_EDIT}", "User"),
    (r"PATCH .*/dagRuns/[^/]+", "stop DAG runs", f"DAG Runs.can_edit, {_EDIT}", "User"),
    (r"DELETE .*/dagRuns/[^/]+", "delete DAG runs", f"DAG Runs.can_delete, {_EDIT}", "User"),
    (r"PATCH .*/dags.*", "edit DAGs", _EDIT, "User"),
    (r"POST .*/datasets/events", "create dataset events", "Datasets.can_create", "Op"),
    (r"POST .*/assets/events", "create asset events", "Assets.can_create", "Op"),
    (r"GET .*/datasets.*", "read datasets", "Datasets.can_read", "Viewer"),
    (r"GET .*/assets.*", "read assets", "Assets.can_read", "Viewer"),
    (r".*/taskInstances.*", "read tasks and logs", f"Task Instances.can_read, {_RUNS}", "Viewer"),
    (r".*/dagRuns.*", "read DAG runs", _RUNS, "Viewer"),
    (r"GET .*/dagSources/.*", "read source code", f"DAG Code.can_read, {_READ}", "Viewer"),
    (r"GET .*/importErrors", "read import errors", "ImportError.can_read", "Viewer"),
    (r"GET .*/dagWarnings", "read DAG warnings", f"DAG Warnings.can_read, {_READ}", "Viewer"),
    (r"GET .*/dags.*", "read DAGs", _READ, "Viewer"),
)


def describe_permission(request: str) -> str:
    """What an account needs for a request; empty if we don't know.

    Args:
        request: Method and path.
    """
    for pattern, deed, permissions, role in _NEEDS:
        if re.fullmatch(pattern, request):
            return f"to {deed} ({permissions}; the role {role} has it)"
    return ""
