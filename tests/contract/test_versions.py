"""Code locations with other versions of this package: what these store, and this one reads.

What another version lacks or adds is made up, as there is no other one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import dagster as dg
import pytest

from federation_defs.dagster_io.reports import (
    CONF_LABEL,
    DEADLINE_LABEL,
    END_LABEL,
    LINK_LABEL,
    LOGICAL_DATE_LABEL,
    OUTCOME_LABEL,
    RUN_ID_LABEL,
    SIGNAL_LABEL,
    START_LABEL,
    STATE_LABEL,
)
from federation_defs.dagster_io.run_tags import Request, read_request
from federation_defs.dependencies import decider
from federation_defs.naming import build_asset_key, build_request_tag
from tests.contract.conftest import Airflow
from tests.contract.dependencies.reacting import DAG, EventDaemon
from tests.contract.observation.daemon import KEY, Observed

LOAD = build_asset_key("warehouse", "load")
EACH = {
    "depends_on": [{"dag": "warehouse/load", "state": "finished"}],
    "trigger": {"runs": "each", "pass_upstream": True},
}
ADDED: Mapping[str, Any] = {"Cost": 1.5, "Tasks": {"a": [1]}, "Operator": "somebody"}
READ = [LINK_LABEL, CONF_LABEL, LOGICAL_DATE_LABEL, START_LABEL, END_LABEL, DEADLINE_LABEL]


@pytest.fixture
def daemon(airflow_v2: Airflow, instance: dg.DagsterInstance) -> EventDaemon:
    airflow_v2.database.add_dag(DAG, polls=0)
    daemon = EventDaemon(airflow_v2.client, instance, {DAG: EACH})
    assert daemon.tick() == []
    return daemon


@pytest.mark.parametrize(
    ("metadata", "run_id"),
    [
        ({}, ""),
        ({RUN_ID_LABEL: "one"}, "one"),
        ({RUN_ID_LABEL: "one", OUTCOME_LABEL: "success", **ADDED}, "one"),
        ({RUN_ID_LABEL: "one", **dict.fromkeys(READ, "of another form")}, "one"),
        ({RUN_ID_LABEL: 1, **dict.fromkeys([OUTCOME_LABEL, *READ], 1)}, ""),
        ({RUN_ID_LABEL: "one", **dict.fromkeys(READ, 1e300)}, "one"),
    ],
    ids=["none", "only the run", "more", "texts", "numbers", "no times"],
)
def test_a_success_with_less_more_or_other_metadata_starts_what_depends_on_it(
    airflow_v2: Airflow,
    instance: dg.DagsterInstance,
    daemon: EventDaemon,
    metadata: Mapping[str, Any],
    run_id: str,
) -> None:
    instance.report_runless_asset_event(dg.AssetMaterialization(LOAD, metadata=metadata))
    assert daemon.tick() == [f"warehouse/load finished {run_id}"]
    assert daemon.tick() == []
    (run,) = airflow_v2.database.runs
    assert run.state == "success"
    (cause,) = run.conf["federation"]["upstream"]
    assert (cause["state"], cause["run_id"], cause["conf"]) == ("success", run_id or None, {})


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        ADDED,
        {RUN_ID_LABEL: "one", OUTCOME_LABEL: "partial"},
        {RUN_ID_LABEL: "one", SIGNAL_LABEL: "stuck"},
        {OUTCOME_LABEL: 1, SIGNAL_LABEL: 1.5},
    ],
)
def test_an_observation_of_something_new_starts_nothing_and_hides_nothing(
    instance: dg.DagsterInstance, daemon: EventDaemon, metadata: Mapping[str, Any]
) -> None:
    instance.report_runless_asset_event(dg.AssetObservation(LOAD, metadata=metadata))
    assert daemon.tick() == []
    failure = {RUN_ID_LABEL: "two", OUTCOME_LABEL: "failure", **ADDED}
    instance.report_runless_asset_event(dg.AssetObservation(LOAD, metadata=failure))
    assert daemon.tick() == ["warehouse/load finished two"]


@pytest.mark.parametrize(
    ("changes", "is_kept"),
    [
        ({"version": 9, "hint": "new"}, True),
        ({"version": 9, "dags": {DAG: [{"causes": []}]}}, False),
        ({"version": 9, "dags": {DAG: 1}}, False),
        ({"version": 9, "dags": []}, False),
        ({"version": "2026.1"}, False),
    ],
)
def test_a_cursor_of_a_version_to_come_stops_no_tick(
    airflow_v2: Airflow,
    instance: dg.DagsterInstance,
    daemon: EventDaemon,
    changes: Mapping[str, Any],
    is_kept: bool,
) -> None:
    """As after a rollback, or a move to a location that was not upgraded yet."""
    airflow_v2.database.dags[DAG].is_paused = True
    instance.report_runless_asset_event(
        dg.AssetMaterialization(LOAD, metadata={RUN_ID_LABEL: "one"})
    )
    assert daemon.tick() == []  # it waits
    assert daemon.cursor
    daemon.cursor = json.dumps({**json.loads(daemon.cursor), **changes})
    daemon.restart()
    airflow_v2.database.dags[DAG].is_paused = False
    assert daemon.tick() == ["warehouse/load finished one"] * is_kept
    assert daemon.cursor
    assert json.loads(daemon.cursor)["version"] == decider.VERSION


def test_a_request_with_less_or_more_is_read() -> None:
    events = [[LOAD.path, 7]]
    for values in ({}, {"conf": None, "clears": None, "date": None, "priority": 1}):
        tags = {build_request_tag("metrics", DAG): json.dumps({"events": events, **values})}
        run = dg.DagsterRun("any", tags=tags)
        assert read_request(run, "metrics", DAG) == Request([(LOAD, 7)])


@pytest.mark.parametrize("state", ["success", "failed"])
def test_a_report_is_known_by_run_state_outcome_and_end_whatever_else_it_has(
    instance: dg.DagsterInstance, observed: Observed, state: str
) -> None:
    """As after an upgrade, or a move to a location with another version."""
    run = observed.add_run("one", state)
    assert run.end_date
    metadata = {
        RUN_ID_LABEL: "one",
        STATE_LABEL: state,
        OUTCOME_LABEL: {"failed": "failure"}.get(state, state),
        END_LABEL: dg.MetadataValue.timestamp(run.end_date),
        **ADDED,
    }
    kind = dg.AssetMaterialization if state == "success" else dg.AssetObservation
    instance.report_runless_asset_event(kind(KEY, metadata=metadata))
    observed.daemon.tick()
    assert [event for event in observed.daemon.stored if isinstance(event, kind)] == []
