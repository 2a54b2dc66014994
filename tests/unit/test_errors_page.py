"""`docs/errors.md` lists every error with its real message."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from federation_defs import errors
from federation_defs.airflow.session import describe_needed_permission

PAGE = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()

SALES = "https://sales.example.com"
TRIGGER = "POST /api/v2/dags/revenue/dagRuns"
PARAM = "Invalid input for param day: None is not of type 'string'"
USERINFO = "remove user name and password: they belong in `auth`"
EXAMPLES = [
    errors.DeclarationError([f"defs/sales/defs.yaml: url: {USERINFO}"]),
    errors.ReloadFailedError("core", "dagster-graphql is not installed"),
    errors.TickOutdatedError("sales__events"),
    errors.DeclaredTwiceError("sales", "sales_team", "core"),
    errors.OnlyIfError(
        "rules:is_month_end",
        upstream="warehouse/load_orders",
        downstream="sales/revenue",
        why="failed: rules.py:7: ValueError: no date",
    ),
    errors.UnreachableError("sales", SALES, "Connection refused"),
    errors.UnreachableError(
        "sales", SALES, "GET /api/v2/dags: 500: database is locked", status=500
    ),
    errors.TlsError("sales", SALES, "certificate verify failed: self-signed certificate"),
    errors.CredentialError(
        "sales", "the token command vault ended with exit code 2", "SALES_TOKEN"
    ),
    errors.MissingExtraError("sales", "boto3", "mwaa"),
    errors.SignInRefusedError("sales", "POST /auth/token", 401, "SALES_AIRFLOW_PASSWORD"),
    errors.PermissionMissingError(
        "sales", TRIGGER, describe_needed_permission(TRIGGER), "Forbidden", "SALES_AIRFLOW_PASSWORD"
    ),
    errors.RequestRefusedError("sales", TRIGGER, 400, PARAM),
    errors.UnsupportedError("sales", "2.11.2", "partition keys", "3.2"),
    errors.UnexpectedAnswerError(
        "sales",
        "GET /api/v2/dags",
        "text/html instead of JSON",
        "Is there a login page or a proxy in between?",
    ),
    errors.DagNotFoundError("sales", "revenue", "404"),
    errors.DagPausedError("sales", "revenue", f"{SALES}/dags/revenue"),
    errors.DagBrokenError(
        "sales",
        "revenue",
        f"{SALES}/dags/revenue",
        "ModuleNotFoundError: No module named 'forecast'",
    ),
    errors.TriggersOffError("sales", "run DAG 'revenue'", "FEDERATION_TRIGGERS is 'off'"),
    errors.LogicalDateTakenError("sales", "revenue", "dagster__1", "already exists"),
    errors.PartitionMismatchError(
        "sales",
        "revenue[2026-01-01]",
        "scheduled__2026-01-02",
        "partition 2026-01-02 by its data_interval_end",
    ),
    errors.RunNotStartedError(
        "sales", "revenue", "dagster__1", f"{TRIGGER}: 500: database is locked"
    ),
    errors.RunLostError(
        "sales",
        "has no run 'dagster__1' of DAG 'revenue' to clear: it was deleted there. "
        f"{errors.RUN_ANEW}",
    ),
]


def find_subclasses(error: type[Exception]) -> set[type[Exception]]:
    direct = set(error.__subclasses__())
    return direct.union(*(find_subclasses(kind) for kind in direct))


def test_the_page_and_the_tree_list_every_error() -> None:
    kinds = {kind.__name__ for kind in find_subclasses(errors.FederationError)}
    assert kinds == set(re.findall(r"^#+ (\w+Error)$", PAGE, re.MULTILINE))
    assert all(kind in (errors.__doc__ or "") for kind in kinds)
    assert kinds == {type(error).__name__ for error in EXAMPLES} | {"AirflowError"}


def test_the_page_has_the_real_messages() -> None:
    shown = re.findall(r"^```\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
    assert shown == [str(error) for error in EXAMPLES]


def test_every_message_is_one_line_with_the_instance_and_a_remedy() -> None:
    for error in EXAMPLES[3:]:
        message = str(error)
        assert message.startswith("Airflow 'sales' ")
        assert "\n" not in message
        assert len(re.split(r"[.?:] ", message)) > 1, message


@pytest.mark.parametrize(
    ("request_line", "needed"),
    [
        ("GET /api/v2/assets", "Assets.can_read"),
        ("GET /sales/api/v1/datasets", "Datasets.can_read"),
        ("GET /api/v2/dags/assets_daily", "DAGs.can_read"),
        ("GET /api/v2/dags/assets_daily/dagRuns/one", "DAG Runs.can_read"),
        ("GET /api/v1/dags/datasets/dagRuns/1/taskInstances/a/logs/1", "Task Logs.can_read"),
        ("POST /api/v2/dags/revenue/clearTaskInstances", "DAG Runs.can_edit"),
        ("GET /health", ""),
    ],
)
def test_a_request_needs_what_it_is_about_and_not_what_the_dag_is_called(
    request_line: str, needed: str
) -> None:
    permission = describe_needed_permission(request_line)
    assert needed in permission
    assert bool(permission) == bool(needed)
