"""What a client asks that knows an Airflow's API from before the Airflow was upgraded."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import Any

import pytest
from werkzeug import Response

from federation_defs.airflow.client import AirflowClient
from federation_defs.errors import AirflowError, DagNotFoundError, SignInRefusedError
from tests.contract.conftest import Airflow, StartAirflow
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.faults import Act
from tests.contract.worlds import RUN, Upgraded

DAG = "described"


def read_log(client: AirflowClient) -> bool:
    (task,) = client.fetch_task_instances(*RUN)
    return "could not read its table" in client.fetch_log(*RUN, task)


SINCE = datetime(2026, 1, 1, tzinfo=timezone.utc)
READS: dict[str, Callable[[AirflowClient], Any]] = {
    "the version": lambda client: client.fetch_version(),
    "the DAGs": lambda client: client.fetch_dags(),
    "a DAG": lambda client: client.fetch_dag(DAG),
    "the import errors": lambda client: client.fetch_import_errors(),
    "a run": lambda client: client.fetch_run(*RUN),
    "an unknown run": lambda client: client.fetch_run(DAG, "none"),
    "what changed": lambda client: client.fetch_changed_runs(SINCE).entries,
    "a log": read_log,
    "the assets": lambda client: client.fetch_assets(),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_a_client_reads_after_an_upgrade_what_a_new_client_reads(
    upgraded: Upgraded, read: Callable[[AirflowClient], Any]
) -> None:
    upgraded.upgrade()
    assert read(upgraded.client) == read(upgraded.connect())
    assert upgraded.client.api_version.api == upgraded.server.api


def test_the_new_api_is_detected_once(upgraded: Upgraded) -> None:
    upgraded.upgrade()
    upgraded.client.fetch_dag(DAG)
    before = len(upgraded.server.requests)
    upgraded.client.fetch_dag(DAG)
    assert len(upgraded.server.requests) == before + 1


def test_a_run_is_started_once_though_the_upgrade_came_first(upgraded: Upgraded) -> None:
    """3.x answers a POST to what it has no more with 405, and not with 404 as it does a GET."""
    upgraded.upgrade()
    run = upgraded.client.trigger_run(DAG, "new", {"day": "2026-02-03"})
    assert (run.run_id, run.conf) == ("new", {"day": "2026-02-03"})
    runs = [run.run_id for run in upgraded.server.database.runs if run.dag_id == DAG]
    assert runs == ["new"]


def test_a_run_that_was_started_before_the_upgrade_is_stopped_after_it(upgraded: Upgraded) -> None:
    upgraded.client.trigger_run("endless", "new")
    upgraded.upgrade()
    assert upgraded.client.stop_run("endless", "new").state == "failed"


CLEARS: dict[str, Callable[[AirflowClient], None]] = {
    "as a whole": lambda client: client.clear_run(*RUN),
    "where it failed": lambda client: client.clear_failed_tasks(*RUN),
}


@pytest.mark.parametrize("clear", CLEARS.values(), ids=CLEARS.keys())
def test_a_run_that_was_over_before_the_upgrade_is_cleared_after_it(
    upgraded: Upgraded, clear: Callable[[AirflowClient], None]
) -> None:
    upgraded.upgrade()
    clear(upgraded.client)
    run = upgraded.server.database.find_run(*RUN)
    assert run is not None
    assert run.state == "queued"


def test_what_does_not_exist_after_an_upgrade_is_not_found(upgraded: Upgraded) -> None:
    upgraded.upgrade()
    assert upgraded.client.fetch_run(DAG, "none") is None
    with pytest.raises(DagNotFoundError):
        upgraded.client.fetch_dag("none")


LISTS: dict[str, tuple[str, Callable[[AirflowClient], Any]]] = {
    "DAGs": ("/dags", lambda client: [dag.dag_id for dag in client.fetch_dags()]),
    "runs": (
        "/dags/~/dagRuns",
        lambda client: [run.run_id for run in client.fetch_changed_runs(SINCE).entries],
    ),
    "assets": (
        "/(assets|datasets)",
        lambda client: [asset.uri for asset in client.fetch_assets()],
    ),
}
on_lists = pytest.mark.parametrize(("path", "read"), LISTS.values(), ids=LISTS.keys())


def fill(upgraded: Upgraded) -> None:
    """More of everything than there is room for on three pages."""
    database = upgraded.server.database
    for number in range(7):
        database.add_asset(f"s3://lake/{number}")
        database.start_run(DAG)


@on_lists
def test_a_list_is_complete_if_the_upgrade_comes_after_its_first_page(
    upgraded: Upgraded, path: str, read: Callable[[AirflowClient], Any]
) -> None:
    fill(upgraded)
    expected = read(upgraded.client)
    upgraded.server.fail_next(asks("GET", path), upgraded.upgrade_after)
    assert read(upgraded.client) == expected
    assert upgraded.client.api_version.api == upgraded.server.api


@on_lists
def test_a_list_is_complete_if_another_call_sees_the_upgrade_first(
    upgraded: Upgraded, path: str, read: Callable[[AirflowClient], Any]
) -> None:
    """The list was begun in the one API; the client knows the other by now."""
    fill(upgraded)
    expected = read(upgraded.client)

    def upgrade_and_tell(act: Act) -> Response:
        response = upgraded.upgrade_after(act)
        upgraded.client.fetch_dag(DAG)
        return response

    upgraded.server.fail_next(asks("GET", path), upgrade_and_tell)
    assert read(upgraded.client) == expected


def test_sources_of_dags_listed_before_an_upgrade_are_not_skipped(
    upgraded: Upgraded,
) -> None:
    """2.x has them by a token, 3.x by the DAG's id: asked for in the other's way, all have gone."""
    dags = upgraded.client.fetch_dags()
    expected = upgraded.client.fetch_dag_sources(dags)
    assert set(expected) == {dag.dag_id for dag in dags}
    upgraded.upgrade()
    assert upgraded.client.fetch_dag_sources(dags) == expected


def test_all_threads_of_a_client_survive_an_upgrade(upgraded: Upgraded) -> None:
    def read(number: int) -> str:
        if number == 50:
            upgraded.upgrade()
        run = upgraded.client.fetch_run(*RUN)
        assert run is not None
        return run.run_id

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(read, range(200), timeout=60)) == {"mine"}


def test_a_basic_account_gets_a_remedy_after_an_upgrade(
    start_airflow: StartAirflow,
) -> None:
    airflow = start_airflow("v1")
    airflow.client.fetch_dags()
    airflow.server.api = "v2"
    with pytest.raises(SignInRefusedError, match="declare `type: password`"):
        airflow.client.fetch_dags()


def test_an_account_unknown_after_a_downgrade_is_reported(
    airflow_v2: Airflow,
) -> None:
    airflow_v2.client.fetch_dags()
    airflow_v2.server.api = "v1"
    with pytest.raises(AirflowError, match="METRICS_PASSWORD"):
        airflow_v2.client.fetch_dags()
