"""What the client tells of Airflow assets (datasets in 2.x) and their events, fake or real."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from werkzeug import Response

from federation_defs.airflow.models import AssetEvent, DagRun
from tests.contract.conftest import Airflow
from tests.contract.fakes.airflow import asks
from tests.contract.fakes.faults import Act
from tests.contract.worlds import World, run_dag
from tests.waiting import wait_for

URI = "x-contract://lake/numbers"
EVENTS = "/(assets|datasets)/events"


def update_numbers(world: World) -> tuple[DagRun, AssetEvent]:
    """A run that updates the asset, and the event that this is, once it has started a run."""
    since = datetime.now(timezone.utc) - timedelta(seconds=1)
    run = run_dag(world, "write_numbers")

    def find_event() -> AssetEvent | None:
        events = world.client.fetch_asset_events(since)
        own = [event for event in events if event.source_run_id == run.run_id]
        return own[0] if own and own[0].created_runs else None

    return run, wait_for(find_event, "an asset event that has started a run", interval_s=0.2)


def test_an_asset_has_its_fields(world: World) -> None:
    (asset,) = [asset for asset in world.client.fetch_assets() if asset.uri == URI]
    names = {"v1": (URI, None), "v2": ("numbers", "lake")}
    assert (asset.name, asset.group) == names[world.api]
    assert asset.extra == {"owner": "Zoë"}
    assert asset.producing_tasks == (("write_numbers", "write"),)
    assert asset.scheduled_dag_ids == ("read_numbers",)
    assert asset.consuming_tasks == ()


def test_an_event_tells_who_made_it_and_which_runs_it_started(world: World) -> None:
    run, event = update_numbers(world)
    (asset,) = [asset for asset in world.client.fetch_assets() if asset.uri == URI]
    assert (event.asset_id, event.uri) == (asset.id, URI)
    source = (event.source_dag_id, event.source_task_id, event.source_run_id)
    assert source == ("write_numbers", "write", run.run_id)
    assert event.source_map_index == -1
    assert event.extra == {"rows": 3, "place": "Zürich"}
    assert event.partition_key is None
    ((dag_id, run_id),) = event.created_runs
    created = world.client.fetch_run(dag_id, run_id)
    assert created is not None
    kinds = {"v1": "dataset_triggered", "v2": "asset_triggered"}
    assert (created.dag_id, created.run_type) == ("read_numbers", kinds[world.api])


def test_events_are_told_since_a_moment_which_is_one_of_them(world: World) -> None:
    _, event = update_numbers(world)
    since = world.client.fetch_asset_events(event.timestamp)
    assert event.id in {one.id for one in since}
    later = world.client.fetch_asset_events(event.timestamp + timedelta(microseconds=1))
    assert event.id not in {one.id for one in later}


def test_events_come_in_the_order_in_which_they_were(world: World) -> None:
    events = [update_numbers(world)[1] for _ in range(2)]
    since = world.client.fetch_asset_events(events[0].timestamp)
    ids = [event.id for event in since]
    assert ids.index(events[0].id) < ids.index(events[1].id)
    assert [event.timestamp for event in since] == sorted(event.timestamp for event in since)


def add_events(airflow: Airflow, count: int) -> list[int]:
    """Their ids, a second between each and the next, the last one now."""
    asset = airflow.database.add_asset(URI)
    now = airflow.database.now()
    return [
        airflow.database.add_event(asset, timestamp=now - timedelta(seconds=count - number)).id
        for number in range(count)
    ]


def test_many_events_are_read_until_an_older_one_comes(airflow: Airflow) -> None:
    ids = add_events(airflow, 100)
    airflow.server.endpoints.page_limit = 10
    since = airflow.database.now() - timedelta(seconds=35.5)
    assert [event.id for event in airflow.client.fetch_asset_events(since)] == ids[-35:]
    assert airflow.server.count("GET", EVENTS) == 4


def test_events_that_come_while_others_are_read_push_none_out(airflow: Airflow) -> None:
    """The newest come first: each new one has the next page begin with what came already."""
    ids = add_events(airflow, 40)
    airflow.server.endpoints.page_limit = 10

    def add_more(act: Act) -> Response:
        response = act()
        airflow.database.add_event(airflow.database.assets[0])
        return response

    airflow.server.fail_next(asks("GET", EVENTS), add_more, times=3)
    since = airflow.database.now() - timedelta(hours=1)
    found = [event.id for event in airflow.client.fetch_asset_events(since)]
    assert found == ids


def test_events_of_the_same_moment_are_all_told(airflow: Airflow) -> None:
    asset, moment = airflow.database.add_asset(URI), airflow.database.now()
    ids = [airflow.database.add_event(asset, timestamp=moment).id for _ in range(25)]
    airflow.server.endpoints.page_limit = 10
    assert [event.id for event in airflow.client.fetch_asset_events(moment)] == ids


def test_all_assets_are_listed_by_a_server_with_small_pages(airflow: Airflow) -> None:
    uris = [f"s3://lake/{number:02}" for number in range(35)]
    for uri in uris:
        airflow.database.add_asset(uri)
    airflow.server.endpoints.page_limit = 10
    assert [asset.uri for asset in airflow.client.fetch_assets()] == uris


def test_an_event_that_nobody_made_has_no_source(airflow: Airflow) -> None:
    """Somebody posted it."""
    airflow.database.add_event(airflow.database.add_asset(URI))
    (event,) = airflow.client.fetch_asset_events(airflow.database.now() - timedelta(hours=1))
    assert (event.source_dag_id, event.source_task_id, event.source_run_id) == (None, None, None)
    assert event.created_runs == ()
