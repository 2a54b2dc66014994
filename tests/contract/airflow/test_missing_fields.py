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
class Read:
    """A method of the client that reads, and what the answer needs.

    Attributes:
        path: Of the request, from the API's prefix on, by API.
        entries: The field of the answer that is the list; None if the answer is one object.
        needed: Fields of each entry, or of the answer; by API where they differ.
    """

    call: Callable[[AirflowClient], Any]
    path: Mapping[str, str]
    entries: Mapping[str, str] | None
    needed: Mapping[str, tuple[str, ...]]


def both(value: Any) -> dict[str, Any]:
    return {"v1": value, "v2": value}


DAG_FIELDS = both(("dag_id", "fileloc", "is_paused", "file_token"))
READS = {
    "DAGs": Read(lambda client: client.fetch_dags(), both("/dags"), both("dags"), DAG_FIELDS),
    "DAG": Read(lambda client: client.fetch_dag(DAG), both(f"/dags/{DAG}"), None, DAG_FIELDS),
    "import errors": Read(
        lambda client: client.fetch_import_errors(),
        both("/importErrors"),
        both("import_errors"),
        both(("filename",)),
    ),
    "run": Read(
        lambda client: client.fetch_run(DAG, RUN),
        both(f"/dags/{DAG}/dagRuns/{RUN}"),
        None,
        both(("dag_id", "dag_run_id", "state")),
    ),
    "changed runs": Read(
        lambda client: client.fetch_changed_runs(SINCE),
        both("/dags/~/dagRuns"),
        both("dag_runs"),
        both(("dag_id", "dag_run_id", "state")),
    ),
    "task instances": Read(
        lambda client: client.fetch_task_instances(DAG, RUN),
        both(f"/dags/{DAG}/dagRuns/{RUN}/taskInstances"),
        both("task_instances"),
        both(("task_id",)),
    ),
    "assets": Read(
        lambda client: client.fetch_assets(),
        {"v1": "/datasets", "v2": "/assets"},
        {"v1": "datasets", "v2": "assets"},
        both(("id", "uri")),
    ),
}
# From these the client sees which version answered.
VERSION_FIELDS = {"is_stale"}
for_each_read = pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
# A row of the others that lacks a field is reported even if it is alone: test_unreadable_rows.py.
NEEDS_ALL = [what for what in READS if what not in ("changed runs", "task instances")]


@pytest.fixture
def filled(fake_world: FakeWorld) -> FakeWorld:
    """A fake Airflow with an entry for each read."""
    database = fake_world.database
    database.finish_run(database.start_run(DAG, RUN))
    fake_world.client.fetch_version()
    return fake_world


def read_without(filled: FakeWorld, read: Read, drop: Callable[[Any], None]) -> str:
    """Read an answer without some of its fields, and return the error's message."""
    filled.server.fail_next(asks("GET", read.path[filled.api]), edit(drop))
    with pytest.raises(UnexpectedAnswerError) as error:
        read.call(filled.client)
    return str(error.value)


@pytest.mark.parametrize("what", NEEDS_ALL)
@pytest.mark.parametrize("is_null", [False, True], ids=["missing", "null"])
def test_a_field_that_is_needed_is_named_with_request_and_version(
    filled: FakeWorld, what: str, is_null: bool
) -> None:
    api, read = filled.api, READS[what]
    for field in read.needed[api]:

        def drop(answer: dict[str, Any], field: str = field) -> None:
            for entry in answer[read.entries[api]] if read.entries else [answer]:
                if is_null:
                    entry[field] = None
                else:
                    del entry[field]

        message = read_without(filled, read, drop)
        assert f"GET /api/{api}{read.path[api]} with no `{field}`." in message
        assert f"The server is Airflow {VERSIONS[api]}:" in message


@pytest.mark.parametrize("what", [what for what, read in READS.items() if read.entries])
def test_a_list_that_is_missing_is_named(filled: FakeWorld, what: str) -> None:
    read = READS[what]
    assert read.entries is not None
    field = read.entries[filled.api]
    message = read_without(filled, read, lambda answer: answer.pop(field))
    assert f"GET /api/{filled.api}{read.path[filled.api]} with no `{field}`." in message


@for_each_read
def test_other_fields_may_be_missing(filled: FakeWorld, read: Read) -> None:
    """Other versions have other fields, and we do without them."""
    api = filled.api

    def drop(answer: dict[str, Any]) -> None:
        entry = answer[read.entries[api]][0] if read.entries else answer
        for field in entry.keys() - set(read.needed[api]) - VERSION_FIELDS:
            del entry[field]

    filled.server.fail_next(asks("GET", read.path[api]), edit(drop))
    assert read.call(filled.client)


def test_the_error_names_the_version_of_a_declared_api_too(airflow: Airflow) -> None:
    """Nobody has asked for it by then."""
    airflow.database.add_dag(DAG)
    airflow.server.takes_tokens = True
    client = connect_by_token(airflow.server, api=airflow.server.api)
    airflow.server.fail_next(asks("GET", "/dags"), edit(lambda dags: dags.pop("dags")))
    with pytest.raises(UnexpectedAnswerError) as error:
        client.fetch_dags()
    assert f"Airflow {VERSIONS[airflow.server.api]}" in str(error.value)
