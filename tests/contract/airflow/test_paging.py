"""Lists longer than a page, which go on changing while they are read."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from threading import Event

import pytest
from werkzeug import Response

from federation_defs.errors import (
    PermissionMissingError,
    UnexpectedAnswerError,
    UnreachableError,
)
from tests.contract.clients import call_within
from tests.contract.conftest import Airflow
from tests.contract.fakes.airflow import Predicate, ReceivedRequest, asks
from tests.contract.fakes.faults import Act, answer, edit

DAGS = asks("GET", "/dags")


def asks_at(offset: int) -> Predicate:
    """Whether a request is for the page of the list of DAGs that begins there."""

    def is_it(request: ReceivedRequest) -> bool:
        return DAGS(request) and request.query.get("offset", "0") == str(offset)

    return is_it


def add_dags(airflow: Airflow, count: int, page_limit: int = 10) -> list[str]:
    """Their ids, in order."""
    airflow.server.endpoints.page_limit = page_limit
    dag_ids = [f"dag_{number:03}" for number in range(count)]
    for dag_id in dag_ids:
        airflow.database.add_dag(dag_id)
    return dag_ids


def fetch_ids(airflow: Airflow) -> list[str]:
    return [dag.dag_id for dag in airflow.client.fetch_dags()]


def after(act: Act, happen: Callable[[], object]) -> Response:
    response = act()
    happen()
    return response


def an_hour_ago() -> datetime:
    return datetime.now(timezone.utc) - timedelta(hours=1)


def test_all_dags_are_listed_though_the_server_clamps_the_pages(airflow: Airflow) -> None:
    dag_ids = add_dags(airflow, 250, page_limit=100)
    assert fetch_ids(airflow) == dag_ids
    assert airflow.server.count("GET", "/dags") == 3


def test_a_list_of_one_full_page_is_asked_for_once(airflow: Airflow) -> None:
    dag_ids = add_dags(airflow, 10)
    assert fetch_ids(airflow) == dag_ids
    assert airflow.server.count("GET", "/dags") == 1


def test_pages_are_asked_for_together_and_put_in_their_order(airflow: Airflow) -> None:
    """The second page is held back until the last one has been answered."""
    dag_ids = add_dags(airflow, 60)
    answered = Event()
    waited: list[bool] = []

    def wait_for_the_last(act: Act) -> Response:
        waited.append(answered.wait(60))
        return act()

    airflow.server.fail_next(asks_at(10), wait_for_the_last)
    airflow.server.fail_next(asks_at(50), lambda act: after(act, answered.set))
    assert fetch_ids(airflow) == dag_ids
    assert waited == [True]


def test_a_server_whose_pages_shrink_in_between_loses_nothing(airflow: Airflow) -> None:
    dag_ids = add_dags(airflow, 100, page_limit=30)

    def shrink() -> None:
        airflow.server.endpoints.page_limit = 7

    airflow.server.fail_next(asks_at(0), lambda act: after(act, shrink))
    assert fetch_ids(airflow) == dag_ids


def test_a_server_whose_pages_grow_in_between_repeats_nothing(airflow: Airflow) -> None:
    dag_ids = add_dags(airflow, 100, page_limit=7)

    def grow() -> None:
        airflow.server.endpoints.page_limit = 30

    airflow.server.fail_next(asks_at(0), lambda act: after(act, grow))
    assert fetch_ids(airflow) == dag_ids


def test_a_dag_added_while_the_list_is_read_repeats_no_other(airflow: Airflow) -> None:
    """It is put before the others: each of them moves on by one."""
    dag_ids = add_dags(airflow, 40)
    come = airflow.database.add_dag
    airflow.server.fail_next(asks_at(0), lambda act: after(act, lambda: come("aa_new")))
    found = fetch_ids(airflow)
    assert sorted(set(found) - {"aa_new"}) == dag_ids
    assert len(found) == len(set(found))


def test_a_dag_deleted_while_the_list_is_read_hides_no_other(airflow: Airflow) -> None:
    """Those after it move back by one: the first of the next page is at the end of the last."""
    dag_ids = add_dags(airflow, 40)
    go = airflow.database.dags.pop
    airflow.server.fail_next(asks_at(0), lambda act: after(act, lambda: go("dag_003")))
    assert set(dag_ids) - {"dag_003"} <= set(fetch_ids(airflow))


def test_all_changed_runs_are_listed_by_a_server_with_smaller_pages(airflow: Airflow) -> None:
    airflow.database.add_dag("load_customers")
    runs = [airflow.database.start_run("load_customers") for _ in range(25)]
    airflow.server.endpoints.page_limit = 10
    changed = airflow.client.fetch_changed_runs(an_hour_ago()).entries
    assert [run.run_id for run in changed] == [run.run_id for run in runs]
    assert airflow.server.count("GET", "/dags/~/dagRuns") == 3


def test_runs_that_change_while_the_list_is_read_push_no_others_out(airflow: Airflow) -> None:
    """Were there an upper bound, or an order by time, later pages would begin too late."""
    airflow.database.add_dag("load_customers")
    runs = [airflow.database.start_run("load_customers") for _ in range(25)]
    airflow.server.endpoints.page_limit = 10
    end = airflow.database.finish_run
    changes = asks("GET", "/dags/~/dagRuns")
    airflow.server.fail_next(changes, lambda act: after(act, lambda: end(runs[0])))
    changed = airflow.client.fetch_changed_runs(an_hour_ago()).entries
    assert [run.run_id for run in changed] == [run.run_id for run in runs]


def test_runs_added_while_the_list_is_read_appear_once_or_next_time(
    airflow: Airflow,
) -> None:
    airflow.database.add_dag("load_customers")
    runs = [airflow.database.start_run("load_customers").run_id for _ in range(25)]
    airflow.server.endpoints.page_limit = 10
    start = airflow.database.start_run
    changes = asks("GET", "/dags/~/dagRuns")

    def start_ten() -> None:
        runs.extend(start("load_customers").run_id for _ in range(10))

    airflow.server.fail_next(changes, lambda act: after(act, start_ten), times=2)
    changed = [run.run_id for run in airflow.client.fetch_changed_runs(an_hour_ago()).entries]
    assert changed == runs[: len(changed)]
    assert len(changed) >= 25


def test_the_servers_time_is_that_of_the_first_page(airflow: Airflow) -> None:
    """What changes after it is asked for the next time."""
    airflow.database.add_dag("load_customers")
    for _ in range(25):
        airflow.database.start_run("load_customers")
    airflow.server.endpoints.page_limit = 10

    def go_by() -> None:
        airflow.database.skew += timedelta(minutes=5)

    changes = asks("GET", "/dags/~/dagRuns")
    airflow.server.fail_next(changes, lambda act: after(act, go_by), times=3)
    server_time = airflow.client.fetch_changed_runs(an_hour_ago()).server_time
    assert server_time is not None
    assert abs(server_time - datetime.now(timezone.utc)) < timedelta(minutes=1)


def test_a_total_that_is_never_reached_ends_the_list(airflow: Airflow) -> None:
    """It counts what this account may not read, say."""
    dag_ids = add_dags(airflow, 25)
    more = edit(lambda page: page.update(total_entries=100))
    airflow.server.fail_next(DAGS, more, times=50)
    assert fetch_ids(airflow) == dag_ids


TOO_LARGE = [100, 10**12, 10**30]


@pytest.mark.parametrize("total", TOO_LARGE, ids="{:.0e}".format)
@pytest.mark.parametrize("at_most", [10, 26, 50, 200])
def test_a_total_that_is_too_large_does_not_make_a_list_longer(
    airflow: Airflow, total: int, at_most: int
) -> None:
    """There may be more than was asked for only if there is a row beyond."""
    airflow.database.add_dag("load_customers")
    runs = [airflow.database.start_run("load_customers").run_id for _ in range(25)]
    airflow.server.endpoints.page_limit = 10
    changes = asks("GET", "/dags/~/dagRuns")
    airflow.server.fail_next(changes, edit(lambda page: page.update(total_entries=total)), 50)
    page = call_within(
        60, lambda: airflow.client.fetch_changed_runs(an_hour_ago(), None, (), at_most)
    )
    whole = at_most >= 25
    assert (page.is_whole, len(page.entries)) == ((True, 25) if whole else (False, 10))
    assert [run.run_id for run in page.entries] == runs[: len(page.entries)]


@pytest.mark.parametrize("total", TOO_LARGE[1:], ids="{:.0e}".format)
def test_a_list_without_a_limit_ends_whatever_its_total(airflow: Airflow, total: int) -> None:
    dag_ids = add_dags(airflow, 25)
    airflow.server.fail_next(DAGS, edit(lambda page: page.update(total_entries=total)), times=50)
    assert call_within(60, lambda: fetch_ids(airflow)) == dag_ids


@pytest.mark.parametrize("total", ["-1", "null", '"5"', "5.0", "1e400", "true", "[]", "NaN"])
def test_a_total_that_is_no_count_is_an_error_and_no_short_list(
    airflow: Airflow, total: str
) -> None:
    add_dags(airflow, 25)
    airflow.client.fetch_version()

    def spoil(act: Act) -> Response:
        response = act()
        text = response.get_data(as_text=True)
        response.set_data(re.sub(r'"total_entries": \d+', f'"total_entries": {total}', text))
        return response

    airflow.server.fail_next(DAGS, spoil)
    with pytest.raises(UnexpectedAnswerError, match="`total_entries` is not a count"):
        call_within(60, lambda: fetch_ids(airflow))


def test_a_server_that_passes_over_the_offset_is_an_error(airflow: Airflow) -> None:
    """As a cache does that only knows the path. Every page would be the first one, for ever."""
    add_dags(airflow, 25)
    listed: list[Response] = []

    def repeat(act: Act) -> Response:
        listed.append(act())
        return listed[0]

    airflow.server.fail_next(DAGS, repeat, times=50)
    with pytest.raises(UnexpectedAnswerError, match="the same `dags` at each offset"):
        call_within(60, lambda: fetch_ids(airflow))


def test_an_empty_page_ends_the_list_whatever_its_total(airflow: Airflow) -> None:
    airflow.server.fail_next(DAGS, edit(lambda page: page.update(total_entries=5)))
    assert fetch_ids(airflow) == []


def test_a_page_that_fails_fails_the_list(airflow: Airflow) -> None:
    add_dags(airflow, 60)
    forbidden = answer(403, {"detail": "No more of them."})
    airflow.server.fail_next(asks_at(40), forbidden)
    with pytest.raises(PermissionMissingError, match=r"No more of them\."):
        fetch_ids(airflow)


def test_a_page_that_a_busy_server_refuses_for_good_fails_the_list(airflow: Airflow) -> None:
    add_dags(airflow, 60)
    airflow.client.fetch_version()
    airflow.server.fail_next(asks_at(20), answer(503, {"detail": "busy"}), times=9)
    with pytest.raises(UnreachableError, match="503: busy"):
        fetch_ids(airflow)
