"""The Airflows of the benchmark of fleets, as our client and dagster-airlift's see them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import requests
from dagster_airlift.core import AirflowBasicAuthBackend, AirflowInstance

from federation_defs.airflow.client import build_client
from federation_defs.declaration import InstanceDeclaration
from tests.bench.fleet.airflows import FleetOfAirflows
from tests.bench.fleet.sizes import SIZES
from tests.contract.clients import SIGN_INS
from tests.contract.fakes.airflow import PASSWORD, USERNAME
from tests.waiting import wait_for

FLEET = SIZES["XS"]
PAST = datetime.now(timezone.utc) - timedelta(hours=1)


@pytest.fixture(params=["v1", "v2"])
def airflows(request: pytest.FixtureRequest) -> Iterator[FleetOfAirflows]:
    with FleetOfAirflows(FLEET, request.param) as airflows:
        yield airflows


def fetch_notes(airflows: FleetOfAirflows) -> dict[str, Any]:
    return requests.get(f"{airflows.url}/notes", timeout=30).json()


def test_our_client_polls_and_triggers_each_airflow_and_that_is_noted(
    airflows: FleetOfAirflows,
) -> None:
    declared = {"name": "i001", "url": f"{airflows.url}/i001", "auth": SIGN_INS[airflows.api]}
    client = build_client(InstanceDeclaration.model_validate(declared), "the test")
    assert {dag.dag_id for dag in client.fetch_dags()} == set(FLEET.dag_ids["i001"])

    triggered = client.trigger_run("dag_0000", "dagster__1")
    assert not triggered.is_finished
    wait_for(lambda: client.fetch_changed_runs(PAST).entries[0].is_success, "the run has ended")

    notes = fetch_notes(airflows)
    assert [(note["instance"], note["run_id"]) for note in notes["triggers"]] == [
        ("i001", "dagster__1")
    ]
    assert set(notes["polls"]) == {"i001"}
    assert notes["ends"] == []


def test_runs_of_upstream_dags_end_at_the_rate_that_is_set(airflows: FleetOfAirflows) -> None:
    requests.post(f"{airflows.url}/ends", json={"per_second": 50}, timeout=30)
    wait_for(lambda: len(fetch_notes(airflows)["ends"]) >= 4, "runs have ended")
    ended = {(end["instance"], end["dag_id"]) for end in fetch_notes(airflows)["ends"]}
    assert ended == set(FLEET.upstreams.values())


@pytest.mark.parametrize("airflows", ["v1"], indirect=True)
def test_airlifts_client_polls_and_triggers_each_airflow_and_that_is_noted(
    airflows: FleetOfAirflows,
) -> None:
    account = AirflowBasicAuthBackend(f"{airflows.url}/i000", USERNAME, PASSWORD)
    airlift = AirflowInstance(account, "i000")
    assert {dag.dag_id for dag in airlift.list_dags()} == set(FLEET.dag_ids["i000"])

    run_id = airlift.trigger_dag("dag_0000")
    airlift.wait_for_run_completion("dag_0000", run_id)
    now = datetime.now(timezone.utc)
    for dag_id, expected in (("dag_0000", [run_id]), ("dag_0001", [])):
        runs, total = airlift.get_dag_runs_batch([dag_id], PAST, now)
        assert ([run.run_id for run in runs], total) == (expected, len(expected))

    notes = fetch_notes(airflows)
    assert [note["run_id"] for note in notes["triggers"]] == [run_id]
    assert len(notes["polls"]["i000"]) == 2
