"""Faults between client and Airflow: named in errors, and retried only where that is safe."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from federation_defs.airflow.client import AirflowClient
from federation_defs.errors import (
    PermissionMissingError,
    RequestRefusedError,
    RunNotStartedError,
    UnexpectedAnswerError,
    UnreachableError,
)
from tests.contract.clients import call_within
from tests.contract.conftest import Airflow, StartAirflow
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.faults import (
    LOGIN_PAGE,
    Fault,
    Stall,
    answer,
    cut_short,
    edit,
    hang_up,
    hang_up_after_acting,
)

TRIGGER = "/dags/load_customers/dagRuns"
RUN = "/dags/load_customers/dagRuns/mine"
UNAVAILABLE = answer(503, "<h1>503 Service Temporarily Unavailable</h1>")


def trigger(client: AirflowClient) -> Any:
    return client.trigger_run("load_customers", "mine")


def test_requests_to_airflow_3_share_a_connection(airflow_v2: Airflow) -> None:
    for _ in range(20):
        airflow_v2.client.fetch_dags()
    connections = {
        request.connection for request in airflow_v2.server.requests if request.path == "/dags"
    }
    assert len(connections) == 1


def test_an_instance_that_is_down_is_named_with_its_address(airflow_v2: Airflow) -> None:
    airflow_v2.server.stop()
    with pytest.raises(UnreachableError) as error:
        airflow_v2.client.fetch_dags()
    assert str(error.value) == (
        f"Airflow 'metrics' gave no usable answer at {airflow_v2.server.url} (Connection refused). "
        "Is it running, and is its `url` right?"
    )


REMEDIES = {
    429: r"lower `http\.max_requests_per_minute`",
    500: r"read the log of its web server \(Airflow 2\) or API server \(Airflow 3\)",
    503: "check whether the Airflow behind the gateway or proxy is running",
}


@pytest.mark.parametrize("status", REMEDIES)
def test_a_temporary_error_says_what_was_seen_and_what_to_do(airflow: Airflow, status: int) -> None:
    airflow.client.fetch_version()
    airflow.server.fail_next(asks("GET", "/dags"), answer(status, {"detail": "locked"}), times=4)
    words = rf"answered with an error at http\S+ \(GET \S+/dags: {status}: locked\)\. If it "
    with pytest.raises(UnreachableError, match=words + f"persists, {REMEDIES[status]}"):
        airflow.client.fetch_dags()


def test_an_instance_that_is_back_is_reached_again(airflow: Airflow) -> None:
    airflow.client.fetch_dags()
    airflow.server.stop()
    airflow.server.start()
    assert airflow.client.fetch_dags() == []


def test_a_read_is_repeated_until_a_busy_server_answers(airflow_v2: Airflow) -> None:
    airflow_v2.database.add_dag("customer_metrics")
    airflow_v2.client.fetch_version()
    airflow_v2.server.fail_next(asks("GET", "/dags"), UNAVAILABLE, times=3)
    assert [dag.dag_id for dag in airflow_v2.client.fetch_dags()] == ["customer_metrics"]
    assert airflow_v2.server.count("GET", "/dags") == 4


def test_a_read_whose_connection_breaks_is_repeated(airflow: Airflow) -> None:
    airflow.client.fetch_version()
    airflow.server.fail_next(asks("GET", "/dags"), hang_up)
    assert airflow.client.fetch_dags() == []


@pytest.mark.parametrize(
    "fault",
    [
        *(answer(status, acts=True) for status in (503, 500, 408, 202)),
        hang_up_after_acting,
        cut_short,
    ],
    ids=["503", "500", "408", "202", "no answer", "half an answer"],
)
def test_a_trigger_that_was_done_but_not_confirmed_is_adopted(
    airflow: Airflow, fault: Fault
) -> None:
    airflow.database.add_dag("load_customers")
    airflow.server.fail_next(asks("POST", TRIGGER), fault)
    run = trigger(airflow.client)
    assert (run.run_id, run.state) == ("mine", "queued")
    assert [run.run_id for run in airflow.database.runs] == ["mine"]
    assert airflow.server.count("POST", TRIGGER) == 1


def test_a_trigger_that_was_not_done_is_not_sent_again(airflow: Airflow) -> None:
    airflow.database.add_dag("load_customers")
    airflow.server.fail_next(asks("POST", TRIGGER), hang_up)
    with pytest.raises(RunNotStartedError, match="did not start run 'mine'"):
        trigger(airflow.client)
    assert airflow.database.runs == []
    assert airflow.server.count("POST", TRIGGER) == 1


def test_a_trigger_that_a_busy_server_refused_is_not_sent_again(airflow: Airflow) -> None:
    airflow.database.add_dag("load_customers")
    airflow.server.fail_next(asks("POST", TRIGGER), UNAVAILABLE)
    with pytest.raises(RunNotStartedError, match=f"POST /api/v.{TRIGGER}: 503"):
        trigger(airflow.client)
    assert airflow.server.count("POST", TRIGGER) == 1


def test_a_redirected_trigger_names_the_target(airflow_v2: Airflow) -> None:
    """As by a server that wants https: followed, a POST would arrive there as a GET."""
    airflow_v2.database.add_dag("load_customers")
    elsewhere = answer(301, "", {"Location": f"{airflow_v2.server.url}/elsewhere"})
    airflow_v2.server.fail_next(asks("POST", TRIGGER), elsewhere)
    with pytest.raises(UnexpectedAnswerError, match=f"POST /api/v2{TRIGGER} with 301.*/elsewhere"):
        trigger(airflow_v2.client)


def test_a_forbidden_trigger_is_reported_in_airflows_words(airflow: Airflow) -> None:
    airflow.database.add_dag("load_customers")
    airflow.client.fetch_dags()
    airflow.server.fail_next(asks("POST", TRIGGER), answer(403, {"detail": "You shall not"}))
    with pytest.raises(PermissionMissingError, match=f"{TRIGGER} .*You shall not"):
        trigger(airflow.client)


def test_a_conf_that_the_dag_refuses_is_reported_in_airflows_words(airflow: Airflow) -> None:
    words = "Invalid input for param day: None is not of type 'string'"
    airflow.database.add_dag("load_customers", refusal=words)
    with pytest.raises(RequestRefusedError) as error:
        trigger(airflow.client)
    assert f"(400: {words})" in str(error.value)


def test_a_body_that_airflow_3_refuses_is_reported_in_its_words(airflow_v2: Airflow) -> None:
    """Its detail is a list there, and not a sentence."""
    airflow_v2.database.add_dag("load_customers")
    detail = [{"type": "dict_type", "loc": ["body", "conf"], "msg": "Not a valid dictionary"}]
    airflow_v2.server.fail_next(asks("POST", TRIGGER), answer(422, {"detail": detail}))
    with pytest.raises(RequestRefusedError, match=r"422.*conf.*Not a valid dictionary"):
        trigger(airflow_v2.client)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (answer(200, LOGIN_PAGE), "text/html.* instead of JSON. Is there a login page"),
        (answer(200, ["not", "an", "object"]), "answered GET"),
        (cut_short, "answered GET"),
    ],
    ids=["a login page", "a list", "half an answer"],
)
def test_an_answer_that_is_not_airflows_is_reported(
    airflow: Airflow, fault: Fault, message: str
) -> None:
    airflow.database.add_dag("load_customers")
    airflow.database.start_run("load_customers", "mine")
    airflow.client.fetch_version()
    airflow.server.fail_next(asks("GET", f"/dags|{RUN}"), fault, times=2)
    with pytest.raises(UnexpectedAnswerError, match=message):
        airflow.client.fetch_dags()
    with pytest.raises(UnexpectedAnswerError, match=message):
        airflow.client.fetch_run("load_customers", "mine")


@pytest.mark.parametrize("field", ["dag_id", "dag_run_id", "state"])
def test_a_run_without_a_field_that_is_needed_names_it(airflow: Airflow, field: str) -> None:
    airflow.database.add_dag("load_customers")
    airflow.database.start_run("load_customers", "mine")
    airflow.server.fail_next(asks("GET", RUN), edit(lambda run: run.pop(field)))
    with pytest.raises(UnexpectedAnswerError, match=f"{RUN} with no `{field}`"):
        airflow.client.fetch_run("load_customers", "mine")


def test_a_list_without_its_total_names_what_is_missing(airflow: Airflow) -> None:
    airflow.client.fetch_version()
    airflow.server.fail_next(asks("GET", "/dags"), edit(lambda dags: dags.pop("total_entries")))
    with pytest.raises(UnexpectedAnswerError, match="no `total_entries`"):
        airflow.client.fetch_dags()


def test_an_address_that_is_no_airflows_asks_whether_it_is_one(airflow: Airflow) -> None:
    airflow.server.fail_next(asks("GET", ".*"), answer(200, LOGIN_PAGE), times=9)
    with pytest.raises(UnexpectedAnswerError) as error:
        airflow.client.fetch_dags()
    assert f"Is {airflow.server.url} an Airflow's web address" in str(error.value)


def test_an_instance_that_stalls_holds_no_other_up(start_airflow: StartAirflow) -> None:
    slow, quick = start_airflow("v2", "slow"), start_airflow("v1", "quick")
    slow.client.fetch_version()
    with ThreadPoolExecutor() as threads, Stall() as stall:
        slow.server.fail_next(asks("GET", "/dags"), stall)
        pending = threads.submit(slow.client.fetch_dags)
        stall.wait_until_entered()
        assert quick.client.fetch_dags() == []
        assert not pending.done()
    assert pending.result(timeout=60) == []


def test_a_server_that_says_to_come_back_in_an_hour_is_neither_slept_for_nor_asked_again(
    airflow: Airflow,
) -> None:
    """urllib3 would sleep what the server says, up to six hours, at every try."""
    airflow.client.fetch_version()
    later = answer(503, "maintenance", {"Retry-After": "3600"})
    airflow.server.fail_next(asks("GET", "/dags"), later)
    with pytest.raises(UnreachableError, match="503, retry after 3600 s"):
        call_within(60, airflow.client.fetch_dags)
    assert airflow.server.count("GET", "/dags") == 1


def test_a_redirect_is_not_followed_and_says_where_it_leads(start_airflow: StartAirflow) -> None:
    ours, theirs = start_airflow("v2"), start_airflow("v2", "other")
    ours.client.fetch_dags()
    away = {"Location": f"{theirs.server.url}/api/v2/dags"}
    ours.server.fail_next(asks("GET", "/dags"), answer(302, "", away))
    with pytest.raises(UnexpectedAnswerError, match=f"302: go to {theirs.server.url}"):
        ours.client.fetch_dags()
    assert theirs.server.count("GET", ".*") == 0


def test_the_password_does_not_follow_a_redirect(start_airflow: StartAirflow) -> None:
    ours, theirs = start_airflow("v2"), start_airflow("v2", "other")
    away = {"Location": f"{theirs.server.url}/auth/token"}
    ours.server.fail_next(asks("POST", "/auth/token"), answer(307, "", away))
    with pytest.raises(UnexpectedAnswerError, match="POST /auth/token with 307: go to"):
        ours.client.fetch_dags()
    assert theirs.server.count("POST", "/auth/token") == 0


@pytest.mark.parametrize(
    "spoil", [{"tags": ["no object"]}, {"tags": 5}, {"owners": 5}], ids=["tag", "tags", "owners"]
)
def test_optional_fields_of_another_kind_are_left_out(
    airflow: Airflow, spoil: dict[str, object]
) -> None:
    airflow.database.add_dag("a", tags=("one",), owners=("me",))
    fault = edit(lambda content: content["dags"][0].update(spoil))
    airflow.server.fail_next(asks("GET", "/dags"), fault)
    (dag,) = airflow.client.fetch_dags()
    left = {name: getattr(dag, name) for name in spoil}
    assert (dag.dag_id, left) == ("a", dict.fromkeys(spoil, ()))
