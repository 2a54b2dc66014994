"""How DAG runs are waited for: with how few requests, and through what."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import partial

import dagster as dg
import pytest
from werkzeug import Response

from federation_defs.execution import monitor as watching
from federation_defs.execution import polling as waiting
from federation_defs.naming import build_asset_key
from tests.contract.conftest import Airflow
from tests.contract.execution.executing import materialize, meanwhile, wait_for_log
from tests.contract.execution.interrupting import before_acting, before_answering
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.database import DagRow
from tests.contract.fakes.faults import Act, answer
from tests.contract.observation.daemon import Daemon, fetch_reported_run_ids
from tests.contract.worlds import Upgraded

DAG = "customer_metrics"
OTHER = "order_metrics"
TRIGGER = f"/dags/{DAG}/dagRuns"
RUN = f"/dags/{DAG}/dagRuns/[^/]+"
ANY_RUN = "/dags/[^~/]+/dagRuns/[^/]+"
LIST = "/dags/~/dagRuns"


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for every now and then is asked for at nearly every look."""
    monkeypatch.setattr(waiting, "PAUSE_CHECK_S", 0.0)
    monkeypatch.setattr(watching, "TASKS_S", 0.3)


def test_many_runs_are_asked_for_in_one_request_a_look_and_singly_when_they_ended(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    dag_ids = [f"dag_{number:02}" for number in range(20)]
    for number, dag_id in enumerate(dag_ids):
        airflow.database.add_dag(dag_id, polls=1 + number % 2)
    read: Counter[str] = Counter()
    airflow.server.fail_next(asks("GET", ANY_RUN), partial(note_state, airflow, read), times=99)
    executed = materialize(airflow.client, dag_ids, instance)
    assert sorted(executed.materialized) == dag_ids
    assert read == {"success": 20}
    assert airflow.server.count("GET", LIST) == 2


def note_state(airflow: Airflow, read: Counter[str], act: Act) -> Response:
    """Of the run that is asked for."""
    asked = airflow.server.asked[-1].path.split("/")
    run = airflow.database.find_run(asked[2], asked[4])
    assert run is not None
    read[run.state] += 1
    return act()


def test_each_run_is_asked_for_by_itself_where_more_runs_go_on_than_that_is_worth(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag("busy")
    for _ in range(101):  # a list of two pages, for two runs
        airflow.database.start_run("busy")
    for dag_id in (DAG, OTHER):
        airflow.database.add_dag(dag_id, polls=3)
    executed = materialize(airflow.client, [DAG, OTHER], instance)
    assert sorted(executed.materialized) == [DAG, OTHER]
    looks = airflow.server.count("GET", LIST)
    assert all(query.get("offset") == "0" for query in read_list_queries(airflow))
    assert airflow.server.count("GET", ANY_RUN) >= 2 * looks


def read_list_queries(airflow: Airflow) -> list[dict[str, str]]:
    return [asked.query for asked in airflow.server.asked if asked.path == LIST]


def test_a_list_that_is_refused_has_each_run_asked_for_by_itself(
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
    airflow_v2.server.fail_next(asks("GET", RUN), answer(200, {"odd": 1}), times=3)
    executed = materialize(airflow_v2.client, [DAG, OTHER], instance)
    assert executed.materialized == [OTHER, DAG]


@pytest.mark.usefixtures("eager")
def test_what_a_run_does_is_told_when_it_changes(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG, polls=math.inf)

    def look_on() -> None:
        wait_for_log(instance, f"{DAG} runs extract.")
        (run,) = airflow.database.runs
        with airflow.database.lock:
            run.tasks[0].state, run.tasks[1].state = "success", "running"
        wait_for_log(instance, f"{DAG} runs load.")
        airflow.database.finish_run(run)

    with meanwhile(look_on):
        executed = materialize(airflow.client, [DAG], instance)
    url = airflow.client.build_run_url(DAG, airflow.database.runs[0].run_id)
    states = [line for line in executed.log if line.startswith(f"{DAG} is ")]
    assert states == [
        f"{DAG} is queued in metrics: {url}",
        f"{DAG} is running in metrics.",
        f"{DAG} is success in metrics.",
    ]
    tasks = [line for line in executed.log if line.startswith(f"{DAG} runs ")]
    assert tasks == [f"{DAG} runs extract.", f"{DAG} runs load."]


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("fault", [answer(403, {"detail": "Forbidden"}), answer(500, "odd")])
def test_tasks_that_are_not_told_hinder_nobody(
    airflow_v2: Airflow, instance: dg.DagsterInstance, fault: Callable[[Act], Response]
) -> None:
    airflow_v2.database.add_dag(DAG, polls=2)
    airflow_v2.server.fail_next(asks("GET", ".*/~/taskInstances"), fault, times=99)
    executed = materialize(airflow_v2.client, [DAG], instance)
    assert executed.materialized == [DAG]
    assert not any("Waiting on" in line for line in executed.log)


@pytest.mark.usefixtures("eager")
def test_a_queued_run_whose_dag_gets_paused_is_waited_for_no_longer_and_reported_when_it_ends(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    dag = airflow.database.add_dag(DAG)
    airflow.server.fail_next(asks("POST", TRIGGER), before_answering(lambda: pause(dag)))
    executed = materialize(airflow.client, [DAG], instance)
    (run,) = airflow.database.runs
    assert executed.failure == (
        f"Airflow 'metrics' has DAG '{DAG}' paused: run '{run.run_id}' stays queued, and is waited "
        f"for no longer. Unpause it at {airflow.client.build_dag_url(DAG)}: then it runs, and is "
        "reported when it ends."
    )
    assert run.state == "queued"
    airflow.database.finish_run(run)
    daemon = Daemon(airflow.client, [DAG], instance)
    assert (daemon.tick(), daemon.tick()) == ([run.run_id], [])


@pytest.mark.usefixtures("eager")
def test_a_run_that_is_waited_for_no_longer_is_reported_while_the_dagster_run_goes_on(
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
        executed = materialize(airflow_v2.client, [DAG, OTHER], instance)
    assert executed.materialized == [OTHER]
    assert daemon.tick() == []


def pause(dag: DagRow) -> None:
    dag.is_paused = True


def vanish(dag: DagRow) -> None:
    dag.is_present = False


@pytest.mark.usefixtures("eager")
def test_a_queued_run_whose_dag_has_gone_is_waited_for_no_longer(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    dag = airflow_v2.database.add_dag(DAG)
    airflow_v2.server.fail_next(asks("POST", TRIGGER), before_answering(lambda: vanish(dag)))
    executed = materialize(airflow_v2.client, [DAG], instance)
    assert f"has no DAG '{DAG}' (its file has gone" in (executed.failure or "")


@pytest.mark.usefixtures("eager")
def test_a_running_run_goes_on_though_its_dag_gets_paused(
    airflow_v2: Airflow, instance: dg.DagsterInstance
) -> None:
    """What runs is not held up by that."""
    dag = airflow_v2.database.add_dag(DAG, polls=3)
    airflow_v2.server.fail_next(asks("GET", RUN), before_answering(lambda: pause(dag)))
    assert materialize(airflow_v2.client, [DAG], instance).materialized == [DAG]


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
    assert upgraded.server.count("POST", ".*/dagRuns") == 4


def test_an_instance_that_is_away_for_long_in_mid_wait_is_waited_for(
    airflow: Airflow, instance: dg.DagsterInstance
) -> None:
    airflow.database.add_dag(DAG)
    airflow.server.fail_next(asks("GET", RUN), before_acting(airflow.server.stop))

    def come_back() -> None:
        wait_for_log(instance, "Waiting on.")
        (run,) = airflow.database.runs
        airflow.database.finish_run(run)
        airflow.server.start()

    with meanwhile(come_back):
        executed = materialize(airflow.client, [DAG], instance)
    assert executed.materialized == [DAG]
    assert len([line for line in executed.log if "Waiting on." in line]) == 1
    assert airflow.server.count("POST", TRIGGER) == 1
