"""How the client starts runs, on an Airflow of either API version, fake or real."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from federation_defs.airflow.models import TriggerOptions
from federation_defs.errors import (
    DagNotFoundError,
    LogicalDateTakenError,
    RequestRefusedError,
    UnsupportedError,
)
from tests.contract.conftest import Airflow
from tests.contract.worlds import FakeWorld, World, make_date, make_run_id, wait_for_end

CONF = {"day": "2026-02-03", "size": 5}


def test_an_unknown_dag_cannot_be_triggered(fake_world: FakeWorld) -> None:
    with pytest.raises(DagNotFoundError, match="has no DAG 'nobody_knows_it'"):
        fake_world.client.trigger_run("nobody_knows_it", make_run_id())


def test_a_triggered_run_is_there_and_ends_with_its_conf(world: World) -> None:
    run_id, conf = (
        make_run_id(),
        {"day": "2026-01-02", "sizes": [1, 2.5, None], "deep": {"ünï": True}},
    )
    triggered = world.client.trigger_run(world.dag_id, run_id, conf)
    assert (triggered.dag_id, triggered.run_id) == (world.dag_id, run_id)
    assert (triggered.run_type, triggered.is_finished) == ("manual", False)
    ended = wait_for_end(world, run_id)
    assert ended.is_success
    assert ended.start_date is not None
    assert ended.end_date is not None
    assert ended.start_date <= ended.end_date
    assert ended.conf == conf


def test_a_run_id_that_is_there_is_adopted_and_not_run_twice(world: World) -> None:
    since, run_id = datetime.now(timezone.utc) - timedelta(hours=1), make_run_id()
    first = world.client.trigger_run(world.dag_id, run_id)
    second = world.client.trigger_run(world.dag_id, run_id)
    assert (second.run_id, second.logical_date) == (first.run_id, first.logical_date)
    assert wait_for_end(world, run_id).is_success
    assert world.client.trigger_run(world.dag_id, run_id).is_success
    runs = world.client.fetch_changed_runs(since).entries
    assert [run.run_id for run in runs].count(run_id) == 1


def test_date_interval_conf_and_note_come_back(world: World) -> None:
    run_id, date = make_run_id(), make_date()
    interval = (date - timedelta(days=2), date - timedelta(days=1))
    options = TriggerOptions(date, interval, "Nachgeholt für 日")
    triggered = world.client.trigger_run("described", run_id, CONF, options)
    ended = wait_for_end(world, run_id, "described")
    for run in (triggered, ended):
        assert run.logical_date == date
        assert (run.data_interval_start, run.data_interval_end) == interval
        assert (run.conf, run.note) == (CONF, "Nachgeholt für 日")
    assert ended.is_success
    tasks = world.client.fetch_task_instances("described", run_id)
    assert {task.task_id: task.state for task in tasks} == dict.fromkeys(
        ("begin", "load", "end"), "success"
    )


def test_a_date_of_another_zone_is_the_same_moment(world: World) -> None:
    date = make_date()
    there = date.astimezone(timezone(timedelta(hours=5, minutes=30)))
    run = world.client.trigger_run("described", make_run_id(), CONF, TriggerOptions(there))
    assert (run.logical_date, run.logical_date and run.logical_date.tzinfo) == (date, timezone.utc)


def test_a_date_without_a_zone_is_refused(fake_world: FakeWorld) -> None:
    """It could be any of 26 hours."""
    options = TriggerOptions(make_date().replace(tzinfo=None))
    with pytest.raises(RequestRefusedError, match="logical_date"):
        fake_world.client.trigger_run("described", make_run_id(), CONF, options)


def test_a_date_that_another_run_has_is_reported_as_taken(world: World) -> None:
    run_id, options = make_run_id(), TriggerOptions(make_date())
    first = world.client.trigger_run("described", run_id, CONF, options)
    other = make_run_id()
    with pytest.raises(LogicalDateTakenError, match=r"another run has its logical date \(409"):
        world.client.trigger_run("described", other, CONF, options)
    assert world.client.fetch_run("described", other) is None
    again = world.client.trigger_run("described", run_id, CONF, options)
    assert (again.run_id, again.logical_date) == (first.run_id, first.logical_date)


def test_an_interval_without_a_date_is_not_passed_over(world: World) -> None:
    """3.3 takes no notice of it, and says nothing."""
    end = make_date()
    options = TriggerOptions(data_interval=(end - timedelta(days=1), end))
    try:
        run = world.client.trigger_run("described", make_run_id(), CONF, options)
    except RequestRefusedError:
        return
    assert (run.data_interval_start, run.data_interval_end) == options.data_interval


def test_a_conf_that_the_params_do_not_allow_is_refused_in_airflows_words(
    fake_world: FakeWorld,
) -> None:
    run_id = make_run_id()
    with pytest.raises(RequestRefusedError, match=r"400: Invalid input for param day: 5 is not"):
        fake_world.client.trigger_run("described", run_id, {"day": 5})
    assert fake_world.client.fetch_run("described", run_id) is None


def test_a_partition_key_comes_back(world_v2: World) -> None:
    run_id, options = make_run_id(), TriggerOptions("none", partition_key="2026-02-01")
    triggered = world_v2.client.trigger_run("partitioned", run_id, options=options)
    run = world_v2.client.fetch_run("partitioned", run_id)
    assert run is not None
    assert (triggered.partition_key, run.partition_key) == ("2026-02-01", "2026-02-01")
    assert run.logical_date is None


def test_a_partition_key_of_a_wrong_form_is_refused(world_v2: World) -> None:
    options = TriggerOptions("none", partition_key="yesterday")
    with pytest.raises(RequestRefusedError, match=r"400: Partition key 'yesterday'"):
        world_v2.client.trigger_run("partitioned", make_run_id(), options=options)


def test_a_partition_key_is_refused_by_a_dag_without_partitions(world_v2: World) -> None:
    options = TriggerOptions("none", partition_key="2026-02-01")
    with pytest.raises(RequestRefusedError, match="not a partitioned Dag"):
        world_v2.client.trigger_run("mapped", make_run_id(), options=options)


def test_airflow_2_has_no_partition_keys(world_v1: World) -> None:
    run_id, options = make_run_id(), TriggerOptions("none", partition_key="2026-02-01")
    with pytest.raises(
        UnsupportedError, match=r"runs Airflow 2\.11\.2, .* partition keys: .* 3\.2\."
    ):
        world_v1.client.trigger_run("mapped", run_id, options=options)
    assert world_v1.client.fetch_run("mapped", run_id) is None


def test_airflow_3_1_has_no_partition_keys_yet(airflow_v2: Airflow) -> None:
    airflow_v2.server.endpoints.version = "3.1.5"
    airflow_v2.database.add_dag("load_customers")
    options = TriggerOptions("none", partition_key="2026-02-01")
    with pytest.raises(
        UnsupportedError, match=r"runs Airflow 3\.1\.5, .* partition keys: .* 3\.2\."
    ):
        airflow_v2.client.trigger_run("load_customers", "mine", options=options)
    assert airflow_v2.database.runs == []
