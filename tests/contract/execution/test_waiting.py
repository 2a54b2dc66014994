"""Waiting for DAG runs: the number of requests, and outages and upgrades meanwhile."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import dagster as dg
import pytest
from werkzeug import Response

from federation_defs.naming import RUN_ID_PREFIX, build_asset_key
from federation_defs.timing import RetryPolicy
from tests.contract.conftest import Airflow
from tests.contract.execution.executing import FAST, materialize, meanwhile, wait_for_log
from tests.contract.execution.interrupting import before_acting, before_answering
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.database import DagRow
from tests.contract.fakes.faults import Act, answer
from tests.contract.observation.daemon import Daemon, fetch_reported_run_ids
from tests.contract.worlds import Upgraded
from tests.waiting import wait_for

DAG = "customer_metrics"
OTHER = "order_metrics"
TRIGGER = f"/dags/{DAG}/dagRuns"
RUN = f"/dags/{DAG}/dagRuns/[^/]+"
ANY_RUN = "/dags/[^~/]+/dagRuns/[^/]+"
LIST = "/dags/~/dagRuns"


# Checks at nearly every poll whether DAGs are paused and which tasks run.
EAGER = replace(FAST, check_paused=RetryPolicy(first_s=0.01, max_s=0.01), list_tasks_s=0.05)


def test_many_runs_are_polled_with_one_request_and_singly_when_they_ended(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    dag_ids = [f"dag_{number:02}" for number in range(20)]
    for number, dag_id in enumerate(dag_ids):
        airflow.database.add_dag(dag_id, polls=1 + number % 2)
    read: Counter[str] = Counter()
    airflow.server.fail_next(asks("GET", ANY_RUN), partial(note_state, airflow, read), times=99)
    moment = [0.0]
    every_second = RetryPolicy(first_s=1.0, max_s=1.0)
    timing = replace(FAST, poll_run=every_second, monotonic=lambda: moment[0])

    def pass_seconds() -> None:
        for text, count in ((" is queued in ", 20), (" is success in ", 10)):
            wait_for(lambda: count_logs(instance, text) == count, text, interval_s=0.2)  # noqa: B023
            moment[0] += 1.0

    with meanwhile(pass_seconds):
        executed = materialize(airflow.client, dag_ids, instance, timing=timing)
    assert sorted(executed.materialized) == dag_ids
    assert read == {"success": 20}
    assert airflow.server.count("GET", LIST) == 2


def count_logs(instance: dg.DagsterInstance, text: str) -> int:
    logs = [entry for run in instance.get_runs() for entry in instance.all_logs(run.run_id)]
    return sum(text in entry.user_message for entry in logs)


def note_state(airflow: Airflow, read: Counter[str], act: Act) -> Response:
    """Of the run that is asked for."""
    path = airflow.server.requests[-1].path.split("/")
    run = airflow.database.find_run(path[2], path[4])
    assert run is not None
    read[run.state] += 1
    return act()


def test_each_run_is_fetched_by_itself_where_the_list_of_active_runs_is_long(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag("busy")
    for _ in range(101):  # a list of two pages, for two runs
        airflow.database.start_run("busy")
    for dag_id in (DAG, OTHER):
        airflow.database.add_dag(dag_id, polls=3)
    executed = materialize(airflow.client, [DAG, OTHER], instance)
    assert sorted(executed.materialized) == [DAG, OTHER]
    first_pages = [query for query in read_list_queries(airflow) if query["offset"] == "0"]
    others = [query for query in read_list_queries(airflow) if query not in first_pages]
    # Whether there is a run beyond the first page.
    assert {(query["offset"], query["limit"]) for query in others} <= {("100", "1")}
    assert airflow.server.count("GET", ANY_RUN) >= 2 * len(first_pages)


def read_list_queries(airflow: Airflow) -> list[dict[str, str]]:
    return [request.query for request in airflow.server.requests if request.path == LIST]


def test_each_run_is_fetched_by_itself_if_the_list_is_refused(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    for dag_id in (DAG, OTHER):
        airflow_v2.database.add_dag(dag_id, polls=2)
    refused = answer(400, {"detail": "no such list"})
    airflow_v2.server.fail_next(asks("GET", LIST), refused, times=99)
    executed = materialize(airflow_v2.client, [DAG, OTHER], instance)
    assert sorted(executed.materialized) == [DAG, OTHER]


def test_an_odd_answer_about_one_run_does_not_hold_up_the_others(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    for dag_id in (DAG, OTHER):
        airflow_v2.database.add_dag(dag_id, polls=1)
    odd = answer(200, {"odd": 1})

    def answer_oddly_until_the_other_has_ended(act: Act) -> Response | None:
        others = [run for run in airflow_v2.database.runs if run.dag_id == OTHER]
        return act() if others and others[0].is_finished else odd(act)

    fault = answer_oddly_until_the_other_has_ended
    airflow_v2.server.fail_next(asks("GET", RUN), fault, times=999)
    executed = materialize(airflow_v2.client, [DAG, OTHER], instance)
    assert sorted(executed.materialized) == [DAG, OTHER]


def test_states_and_running_tasks_are_logged_when_they_change(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG, polls=math.inf)

    def proceed() -> None:
        wait_for_log(instance, f"{DAG} runs extract.")
        (run,) = airflow.database.runs
        with airflow.database.lock:
            run.tasks[0].state, run.tasks[1].state = "success", "running"
        wait_for_log(instance, f"{DAG} runs load.")
        airflow.database.finish_run(run)

    with meanwhile(proceed):
        executed = materialize(airflow.client, [DAG], instance, timing=EAGER)
    url = airflow.client.build_run_url(DAG, airflow.database.runs[0].run_id)
    states = [line for line in executed.log if line.startswith(f"{DAG} is ")]
    assert states == [
        f"{DAG} is queued in metrics: {url}",
        f"{DAG} is running in metrics.",
        f"{DAG} is success in metrics.",
    ]
    tasks = [line for line in executed.log if line.startswith(f"{DAG} runs ")]
    assert tasks == [f"{DAG} runs extract.", f"{DAG} runs load."]


@pytest.mark.parametrize("fault", [answer(403, {"detail": "Forbidden"}), answer(500, "odd")])
def test_running_tasks_that_can_not_be_listed_are_no_problem(
    airflow_v2: Airflow, instance: dg.DagsterInstance, fault: Callable[[Act], Response]
) -> None:
    airflow_v2.database.add_dag(DAG, polls=2)
    airflow_v2.server.fail_next(asks("GET", ".*/~/taskInstances"), fault, times=99)
    executed = materialize(airflow_v2.client, [DAG], instance, timing=EAGER)
    assert executed.materialized == [DAG]
    assert not any("Dagster keeps waiting" in line for line in executed.log)


def test_a_queued_run_whose_dag_gets_paused_is_waited_for_no_longer_and_reported_when_it_ends(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    dag = airflow.database.add_dag(DAG)
    airflow.server.fail_next(asks("POST", TRIGGER), before_answering(lambda: pause(dag)))
    executed = materialize(airflow.client, [DAG], instance, timing=EAGER)
    (run,) = airflow.database.runs
    assert executed.failure == (
        f"Airflow 'metrics' has DAG '{DAG}' paused: run '{run.run_id}' stays queued, and Dagster "
        f"no longer waits for it. Unpause the DAG at {airflow.client.build_dag_url(DAG)}: the run "
        "then starts, and is reported when it ends."
    )
    assert run.state == "queued"
    airflow.database.finish_run(run)
    daemon = Daemon(airflow.client, [DAG], instance)
    assert (daemon.tick(), daemon.tick()) == ([run.run_id], [])


def test_a_run_that_was_given_up_is_reported_while_the_dagster_run_goes_on(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    dag = airflow_v2.database.add_dag(DAG, is_paused=False)
    airflow_v2.database.add_dag(OTHER)
    daemon = Daemon(airflow_v2.client, [DAG, OTHER], instance)
    airflow_v2.server.fail_next(asks("POST", TRIGGER), before_answering(lambda: pause(dag)))

    def end_both() -> None:
        wait_for_log(instance, "stays queued")
        runs = {run.dag_id: run for run in airflow_v2.database.runs}
        airflow_v2.database.finish_run(runs[DAG])
        assert daemon.tick() == [runs[DAG].run_id]
        airflow_v2.database.finish_run(runs[OTHER])

    with meanwhile(end_both):
        executed = materialize(airflow_v2.client, [DAG, OTHER], instance, timing=EAGER)
    assert executed.materialized == [OTHER]
    assert daemon.tick() == []


def pause(dag: DagRow) -> None:
    dag.is_paused = True


def vanish(dag: DagRow) -> None:
    dag.is_present = False


def test_a_queued_run_whose_dag_has_gone_is_waited_for_no_longer(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    dag = airflow_v2.database.add_dag(DAG)
    airflow_v2.server.fail_next(asks("POST", TRIGGER), before_answering(lambda: vanish(dag)))
    executed = materialize(airflow_v2.client, [DAG], instance, timing=EAGER)
    assert f"has no DAG '{DAG}' (its file has gone" in (executed.failure or "")


def test_a_running_run_goes_on_though_its_dag_gets_paused(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    dag = airflow_v2.database.add_dag(DAG, polls=math.inf)

    def pause_then_end() -> None:
        wait_for_log(instance, f"{DAG} is running in ")
        pause(dag)
        polls = airflow_v2.server.count("GET", RUN) + 3
        wait_for(lambda: airflow_v2.server.count("GET", RUN) >= polls, "polls", interval_s=0.02)
        airflow_v2.database.finish_run(airflow_v2.database.runs[0])

    with meanwhile(pause_then_end):
        executed = materialize(airflow_v2.client, [DAG], instance, timing=EAGER)
    assert executed.materialized == [DAG]


def test_a_run_that_starts_right_after_its_dag_was_seen_paused_is_waited_for(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    dag = airflow_v2.database.add_dag(DAG)
    was_paused: list[bool] = []

    def start() -> None:
        (run,) = airflow_v2.database.runs
        was_paused.append(dag.is_paused and run.state == "queued")
        dag.is_paused = False
        airflow_v2.database.finish_after(run, polls=2)

    def pause_and_start_after_check() -> None:
        pause(dag)
        airflow_v2.server.fail_next(asks("GET", f"/dags/{DAG}"), before_answering(start))

    paused = before_answering(pause_and_start_after_check)
    airflow_v2.server.fail_next(asks("POST", TRIGGER), paused)
    executed = materialize(airflow_v2.client, [DAG], instance, timing=EAGER)
    assert executed.materialized == [DAG]
    assert was_paused == [True]


def test_an_upgrade_in_mid_wait_is_one_materialization(
    upgraded: Upgraded, instance: dg.DagsterInstance
) -> None:
    upgraded.server.fail_next(asks("GET", "/dags/described/dagRuns/[^/]+"), upgraded.upgrade_after)
    executed = materialize(upgraded.client, ["described"], instance)
    assert executed.materialized == ["described"]
    assert upgraded.server.count("POST", ".*/dagRuns") == 1
    assert Daemon(upgraded.client, ["described"], instance).tick() == []
    key = build_asset_key("metrics", "described")
    assert len(fetch_reported_run_ids(instance, key)) == 1


def test_an_upgrade_in_mid_list_is_one_materialization_of_each(
    upgraded: Upgraded, instance: dg.DagsterInstance
) -> None:
    dag_ids = ["described", "mapped", "warned", "wordy"]
    upgraded.server.fail_next(asks("GET", LIST), upgraded.upgrade_after)
    executed = materialize(upgraded.client, dag_ids, instance)
    assert sorted(executed.materialized) == dag_ids
    # A trigger may be refused first, by the API that is there no more.
    runs = [run for run in upgraded.server.database.runs if run.run_id.startswith(RUN_ID_PREFIX)]
    assert sorted(run.dag_id for run in runs) == dag_ids


def test_an_instance_that_is_away_for_long_in_mid_wait_is_waited_for(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG)
    airflow.server.fail_next(asks("GET", RUN), before_acting(airflow.server.stop))

    def come_back() -> None:
        wait_for_log(instance, "Dagster keeps waiting.")
        (run,) = airflow.database.runs
        airflow.database.finish_run(run)
        airflow.server.start()

    with meanwhile(come_back):
        executed = materialize(airflow.client, [DAG], instance)
    assert executed.materialized == [DAG]
    assert len([line for line in executed.log if "Dagster keeps waiting." in line]) == 1
    assert airflow.server.count("POST", TRIGGER) == 1
