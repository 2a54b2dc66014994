"""A row that can't be read hurts only itself: the others of its list are there."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation_defs.airflow.client import AirflowClient
from federation_defs.airflow.models import UNREADABLE_STATE, RunKey
from federation_defs.errors import AirflowError, UnexpectedAnswerError
from tests.contract.airflow.test_missing_fields import DAG, READS, RUN, Read
from tests.contract.clients import call_within
from tests.contract.conftest import Airflow
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.faults import answer, edit

RUNS = asks("GET", "/dags/~/dagRuns")
LISTS = {what: read for what, read in READS.items() if read.entries}
for_each_list = pytest.mark.parametrize("read", LISTS.values(), ids=LISTS.keys())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
# The fakes don't change from one example to the next.
generously = settings(
    max_examples=int(os.environ.get("HISTORIES", "20")),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def filled(airflow: Airflow) -> Airflow:
    """A fake Airflow with two rows in every list."""
    database = airflow.database
    for name in ("a", DAG):
        database.add_dag(name)
        database.add_asset(f"s3://{name}")
        database.add_import_error(f"{name}.py", "ImportError")
    database.start_run(DAG, RUN)
    database.start_run(DAG, "other")
    airflow.client.fetch_version()
    return airflow


def read_changed(airflow: Airflow, read: Read, change: Callable[[list[Any]], None]) -> list[Any]:
    """Read a list whose rows are changed on their way."""
    api = airflow.server.api
    assert read.entries is not None
    field = read.entries[api]
    fault = edit(lambda content: change(content[field]))
    airflow.server.fail_next(asks("GET", read.path[api]), fault)
    found = read.call(airflow.client)
    return found if isinstance(found, list) else found.entries


@for_each_list
@pytest.mark.parametrize("row", [None, 5, "text", [], {}], ids=repr)
def test_a_row_that_is_no_object_is_passed_over(filled: Airflow, read: Read, row: Any) -> None:
    whole = read.call(filled.client)
    whole = whole if isinstance(whole, list) else whole.entries
    found = read_changed(filled, read, lambda rows: rows.insert(1, row))
    assert [entry for entry in found if getattr(entry, "state", "") != UNREADABLE_STATE] == whole


def test_a_row_is_warned_of_once(filled: Airflow, caplog: pytest.LogCaptureFixture) -> None:
    def spoil(rows: list[Any]) -> None:
        rows[0]["fileloc"] = ["no", "text"]
        rows.append(5)

    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert [dag.dag_id for dag in read_changed(filled, LISTS["DAGs"], spoil)] == [DAG]
    assert caplog.messages == [
        "Airflow 'metrics' has an entry in `dags` (a) that can't be read: a field of another kind "
        "than Airflow's (no text for `fileloc`). The others are read.",
        "Airflow 'metrics' has an entry in `dags` that can't be read: a field of another kind than "
        "Airflow's (a int in place of an object). The others are read.",
    ]


def test_many_odd_rows_do_not_flood_the_log(
    airflow_v2: Airflow, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(300):
        airflow_v2.database.add_dag(f"dag_{number:03}")
    airflow_v2.client.fetch_version()

    def spoil(content: dict[str, Any]) -> None:
        for dag in content["dags"][1:]:
            del dag["fileloc"]

    airflow_v2.server.fail_next(asks("GET", "/dags"), edit(spoil), times=3)
    with caplog.at_level(logging.WARNING):
        assert len(airflow_v2.client.fetch_dags()) == 3
    assert len(caplog.messages) == 100


@pytest.mark.parametrize("state", [None, 5, ["success"], {}, "", "half \ud83d"], ids=repr)
def test_a_run_that_can_not_be_read_is_there_with_its_key_and_the_reason(
    filled: Airflow, state: Any
) -> None:
    def spoil(content: dict[str, Any]) -> None:
        content["dag_runs"][0]["state"] = state

    filled.server.fail_next(RUNS, edit(spoil))
    page = filled.client.fetch_changed_runs(an_hour_ago())
    assert [run.run_id for run in page.entries] == ["other"]
    (row,) = page.unreadable
    assert row.key == (DAG, RUN)
    assert "state" in row.reason or "surrogates" in row.reason
    assert page.is_whole


def test_a_list_of_which_only_keys_can_be_read_is_no_error(filled: Airflow) -> None:
    """Any of those runs would hold up all that end after it."""

    def spoil(content: dict[str, Any]) -> None:
        for run in content["dag_runs"]:
            del run["state"]

    filled.server.fail_next(RUNS, edit(spoil))
    page = filled.client.fetch_changed_runs(an_hour_ago())
    assert page.entries == []
    assert [row.key for row in page.unreadable] == [(DAG, RUN), (DAG, "other")]


def test_a_run_without_a_key_is_passed_over_also_if_it_is_alone(
    filled: Airflow, caplog: pytest.LogCaptureFixture
) -> None:
    filled.server.fail_next(RUNS, answer(200, {"dag_runs": [{}], "total_entries": 1}))
    page = filled.client.fetch_changed_runs(an_hour_ago())
    assert (page.entries, [row.key for row in page.unreadable]) == ([], [None])
    assert "has an entry in `dag_runs` that can't be read" in caplog.text


def test_a_task_that_can_not_be_read_is_there_also_if_it_is_alone(filled: Airflow) -> None:
    alone = answer(200, {"task_instances": [{"task_id": None}], "total_entries": 1})
    filled.server.fail_next(asks("GET", LISTS["task instances"].path["v2"]), alone)
    assert [task.state for task in filled.client.fetch_task_instances(DAG, RUN)] == [
        UNREADABLE_STATE
    ]


@for_each_list
def test_a_row_that_can_not_be_read_may_be_alone_on_its_page(
    filled: Airflow, read: Read, caplog: pytest.LogCaptureFixture
) -> None:
    api = filled.server.api
    assert read.entries is not None
    field = read.entries[api]
    filled.server.endpoints.page_limit = 1
    lists = asks("GET", read.path[api])
    filled.server.fail_next(lists, lambda act: act())
    filled.server.fail_next(lists, edit(lambda page: page.update({field: [{}]})))
    found = read.call(filled.client)
    found = found if isinstance(found, list) else found.entries
    assert len([entry for entry in found if getattr(entry, "state", "") != UNREADABLE_STATE]) == 1
    assert f"has an entry in `{field}` that can't be read" in caplog.text


@pytest.mark.parametrize(
    ("name", "key"), [("dag_id", None), ("dag_run_id", (DAG, "(a run without an id)"))]
)
@pytest.mark.parametrize("value", [None, 5, "", "nul\0", "half \ud83d"], ids=repr)
def test_of_a_run_without_a_valid_id_at_most_the_dag_is_known(
    filled: Airflow, name: str, key: RunKey | None, value: Any
) -> None:
    """No address or database can hold it."""

    def spoil(content: dict[str, Any]) -> None:
        content["dag_runs"][0][name] = value

    filled.server.fail_next(RUNS, edit(spoil))
    page = filled.client.fetch_changed_runs(an_hour_ago())
    assert [run.run_id for run in page.entries] == ["other"]
    assert [row.key for row in page.unreadable] == [key]


def test_rows_that_can_not_be_read_count_when_a_list_is_paged(airflow: Airflow) -> None:
    airflow.database.add_dag(DAG)
    for number in range(25):
        airflow.database.start_run(DAG, f"run_{number:02}")
    airflow.server.endpoints.page_limit = 10

    def spoil(content: dict[str, Any]) -> None:
        for run in content["dag_runs"][::3]:
            del run["state"]

    airflow.server.fail_next(RUNS, edit(spoil), times=3)
    page = airflow.client.fetch_changed_runs(an_hour_ago())
    run_ids = {run.run_id for run in page.entries} | {row.run_id for row in page.unreadable}
    assert run_ids == {f"run_{number:02}" for number in range(25)}
    assert page.is_whole


@pytest.mark.parametrize(
    "read_one",
    [
        lambda client: client.fetch_latest_finished_run(DAG),
        lambda client: client.fetch_run_of_date(DAG, datetime(2026, 1, 1, tzinfo=timezone.utc)),
    ],
    ids=["the latest", "that of a date"],
)
def test_where_one_run_is_read_an_unreadable_one_is_an_error(
    filled: Airflow, read_one: Callable[[AirflowClient], object]
) -> None:
    row = {"dag_id": DAG, "dag_run_id": RUN}
    listed = answer(200, {"dag_runs": [row], "total_entries": 1})
    filled.server.fail_next(asks("GET", f"/dags/{DAG}/dagRuns"), listed)
    with pytest.raises(UnexpectedAnswerError, match="no `state`"):
        read_one(filled.client)


def test_an_unreadable_active_run_is_returned_with_its_key(filled: Airflow) -> None:
    """It takes a place of `limits.max_active_runs`."""

    def spoil(content: dict[str, Any]) -> None:
        del content["dag_runs"][0]["state"]

    filled.server.fail_next(RUNS, edit(spoil))
    page = filled.client.fetch_active_runs(10, prefix=RUN)
    assert page is not None
    assert (page.entries, [row.run_id for row in page.unreadable]) == ([], [RUN])


@pytest.mark.parametrize(
    "spoil",
    [{"task_id": 5}, {"map_index": "all"}, {"state": ["success"]}, {"try_number": "two"}],
    ids=str,
)
def test_a_task_that_can_not_be_read_is_there_without_its_name(
    filled: Airflow, spoil: dict[str, Any]
) -> None:
    tasks = read_changed(filled, LISTS["task instances"], lambda rows: rows[0].update(spoil))
    assert [task.state for task in tasks] == [None, UNREADABLE_STATE]


@settings(generously, max_examples=int(os.environ.get("HISTORIES", "50")))
@given(read=st.sampled_from(list(READS.values())), body=JSON)
def test_any_answer_is_an_error_of_ours_or_a_list(filled: Airflow, read: Read, body: Any) -> None:
    if isinstance(body, dict) and body:  # half of them nearly right
        body |= {"total_entries": body[next(iter(body))]}
    filled.server.fail_next(asks("GET", read.path[filled.server.api]), answer(200, body))
    try:
        call_within(60, lambda: read.call(filled.client))
    except AirflowError as error:
        assert "metrics" in str(error)  # noqa: PT017 - there may be none
    filled.server.forget_faults()
    assert len(filled.client.fetch_dags()) == 2


@generously
@given(read=st.sampled_from(list(LISTS.values())), number=st.integers(0, 99), value=JSON)
def test_any_value_in_any_field_of_a_row_leaves_the_other_rows(
    filled: Airflow, read: Read, number: int, value: Any
) -> None:
    def spoil(rows: list[Any]) -> None:
        fields = sorted(rows[0])
        rows[0][fields[number % len(fields)]] = value

    whole = read.call(filled.client)
    found = read_changed(filled, read, spoil)
    others = (whole if isinstance(whole, list) else whole.entries)[1:]
    assert all(other in found for other in others)
    assert len(found) <= 2


@generously
@given(date=st.text() | st.datetimes().map(str) | JSON)
def test_any_date_is_a_moment_in_utc_or_none(filled: Airflow, date: Any) -> None:
    def spoil(run: dict[str, Any]) -> None:
        run.update(dict.fromkeys(["logical_date", "start_date", "end_date"], date))

    filled.server.fail_next(asks("GET", f"/dags/{DAG}/dagRuns/{RUN}"), edit(spoil))
    run = filled.client.fetch_run(DAG, RUN)
    assert run is not None
    assert run.end_date is None or run.end_date.utcoffset() == timedelta(0)


@generously
@given(text=st.text(st.characters()))
def test_any_text_in_a_name_or_a_note_is_read(filled: Airflow, text: str) -> None:
    def spoil(run: dict[str, Any]) -> None:
        run.update(dict.fromkeys(["note", "run_type", "partition_key"], text))

    filled.server.fail_next(asks("GET", f"/dags/{DAG}/dagRuns/{RUN}"), edit(spoil))
    run = filled.client.fetch_run(DAG, RUN)
    assert run is not None
    assert run.note is not None
    run.note.encode()
    names = {"description": text, "owners": [text], "tags": [{"name": text}]}
    dags = read_changed(filled, LISTS["DAGs"], lambda rows: rows[0].update(names))
    assert [dag.dag_id for dag in dags] == ["a", DAG]
    assert dags[0].tags == dags[0].owners == (dags[0].description,)


def an_hour_ago() -> datetime:
    return datetime.now(timezone.utc) - timedelta(hours=1)
