"""Answers that lack what we need: an error that names request, field and the server's version."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import pytest

from federation_defs.airflow.client import AirflowClient
from federation_defs.errors import UnexpectedAnswerError
from tests.contract.conftest import Airflow
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.faults import edit
from tests.contract.worlds import FakeWorld, connect_by_token

DAG, RUN = "write_numbers", "mine"
SINCE = datetime(2026, 1, 1, tzinfo=timezone.utc)
VERSIONS = {"v1": "2.11.2", "v2": "3.3.2"}


@dataclass(frozen=True)
class Question:
    """What is asked, and what its answer must hold.

    Attributes:
        path: Of the request, from the API's prefix on: in 2.x, and in 3.x unless given apart.
        entries: The field of the answer that is a list of what is asked for; None if it is none.
        needed: Fields of each entry, or of the answer; by API where they differ.
    """

    ask: Callable[[AirflowClient], Any]
    path: Mapping[str, str]
    entries: Mapping[str, str] | None
    needed: Mapping[str, tuple[str, ...]]


def both(value: Any) -> dict[str, Any]:
    return {"v1": value, "v2": value}


DAG_FIELDS = both(("dag_id", "fileloc", "is_paused", "file_token"))
QUESTIONS = {
    "DAGs": Question(lambda ask: ask.fetch_dags(), both("/dags"), both("dags"), DAG_FIELDS),
    "DAG": Question(lambda ask: ask.fetch_dag(DAG), both(f"/dags/{DAG}"), None, DAG_FIELDS),
    "import errors": Question(
        lambda ask: ask.fetch_import_errors(),
        both("/importErrors"),
        both("import_errors"),
        both(("filename",)),
    ),
    "run": Question(
        lambda ask: ask.fetch_run(DAG, RUN),
        both(f"/dags/{DAG}/dagRuns/{RUN}"),
        None,
        both(("dag_id", "dag_run_id", "state")),
    ),
    "changed runs": Question(
        lambda ask: ask.fetch_changed_runs(SINCE),
        both("/dags/~/dagRuns"),
        both("dag_runs"),
        both(("dag_id", "dag_run_id", "state")),
    ),
    "task instances": Question(
        lambda ask: ask.fetch_task_instances(DAG, RUN),
        both(f"/dags/{DAG}/dagRuns/{RUN}/taskInstances"),
        both("task_instances"),
        both(("task_id",)),
    ),
    "assets": Question(
        lambda ask: ask.fetch_assets(),
        {"v1": "/datasets", "v2": "/assets"},
        {"v1": "datasets", "v2": "assets"},
        both(("id", "uri")),
    ),
}
# By these it is seen which version answered.
MARKS = {"is_stale"}
on_questions = pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS.keys())


@pytest.fixture
def asked(fake_world: FakeWorld) -> FakeWorld:
    """A fake Airflow that has something to say to every question."""
    database = fake_world.database
    database.finish_run(database.start_run(DAG, RUN))
    fake_world.client.fetch_version()
    return fake_world


def ask_without(world: FakeWorld, question: Question, drop: Callable[[Any], None]) -> str:
    """What is told of an answer from which something was dropped."""
    world.server.fail_next(asks("GET", question.path[world.api]), edit(drop))
    with pytest.raises(UnexpectedAnswerError) as error:
        question.ask(world.client)
    return str(error.value)


@on_questions
@pytest.mark.parametrize("is_null", [False, True], ids=["missing", "null"])
def test_a_field_that_is_needed_is_named_with_request_and_version(
    asked: FakeWorld, question: Question, is_null: bool
) -> None:
    api = asked.api
    if question.entries and question.entries[api] in ("dag_runs", "task_instances"):
        return  # such a row is told of, also if it is alone: see test_unreadable_rows.py
    for field in question.needed[api]:

        def drop(answer: dict[str, Any], field: str = field) -> None:
            for entry in answer[question.entries[api]] if question.entries else [answer]:
                if is_null:
                    entry[field] = None
                else:
                    del entry[field]

        told = ask_without(asked, question, drop)
        assert f"GET /api/{api}{question.path[api]} with no `{field}`." in told
        assert f"says it is Airflow {VERSIONS[api]}:" in told


@pytest.mark.parametrize("what", [what for what, question in QUESTIONS.items() if question.entries])
def test_a_list_that_is_missing_is_named(asked: FakeWorld, what: str) -> None:
    question = QUESTIONS[what]
    assert question.entries is not None
    field = question.entries[asked.api]
    told = ask_without(asked, question, lambda answer: answer.pop(field))
    assert f"GET /api/{asked.api}{question.path[asked.api]} with no `{field}`." in told


@on_questions
def test_other_fields_may_be_missing(asked: FakeWorld, question: Question) -> None:
    """Other versions have other fields, and we do without them."""
    api = asked.api

    def drop(answer: dict[str, Any]) -> None:
        entry = answer[question.entries[api]][0] if question.entries else answer
        for field in entry.keys() - set(question.needed[api]) - MARKS:
            del entry[field]

    asked.server.fail_next(asks("GET", question.path[api]), edit(drop))
    assert question.ask(asked.client)


def test_the_error_names_the_version_of_a_declared_api_too(airflow: Airflow) -> None:
    """Nobody has asked for it by then."""
    airflow.database.add_dag(DAG)
    airflow.server.takes_tokens = True
    client = connect_by_token(airflow.server, api=airflow.server.api)
    airflow.server.fail_next(asks("GET", "/dags"), edit(lambda dags: dags.pop("dags")))
    with pytest.raises(UnexpectedAnswerError) as error:
        client.fetch_dags()
    assert f"Airflow {VERSIONS[airflow.server.api]}" in str(error.value)
